"""Builds two distributions, the client's and the server's, from one checkout: `python -m distributions --to dist`."""
