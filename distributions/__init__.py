"""Makes two distributions, the client's and the server's, of one checkout: `python -m distributions --to dist`."""
