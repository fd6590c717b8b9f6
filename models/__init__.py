"""PyTorch modules and the recipes that train them. Imports nothing of the server, the client or the exporter."""
