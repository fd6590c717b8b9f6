"""ONNX files that somebody else made: read, run, wrapped, proven."""
