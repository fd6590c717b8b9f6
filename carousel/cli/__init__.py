"""The command `carousel`. Needs the extra `cli`."""
