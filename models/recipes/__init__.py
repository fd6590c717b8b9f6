"""The training of each shipped model: one module for each recipe, run with `python -m`."""
