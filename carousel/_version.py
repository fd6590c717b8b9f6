"""The version of client and server. It is set only here: pyproject.toml, both distributions and the image read it."""

__version__ = "0.1.0"
