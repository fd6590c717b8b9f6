"""How each shipped model is trained: one module a recipe, each runnable with `python -m`."""
