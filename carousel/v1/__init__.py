"""Generated from proto/carousel/v1; see scripts/proto."""
