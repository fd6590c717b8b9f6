"""The command `carousel`. It needs the extra `cli`, except for `--version`."""
