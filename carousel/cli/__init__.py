"""The command `carousel`. Needs the extra `cli`, but for `--version`."""
