"""The version of the client and of the server. Here alone: pyproject.toml, both distributions and the image read it."""

__version__ = "0.1.0"
