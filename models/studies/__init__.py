"""Studies: measure what the models can do, and draw the results."""
