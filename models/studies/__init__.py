"""Studies: what the models are good for, measured and drawn."""
