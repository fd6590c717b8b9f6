"""Deployment files. The Python packages here generate and check them; a running server does not need them."""
