"""Measures the cost of serving on top of the model: `python -m benchmarks NAME`. Each figure is a ratio of two things
that one run measures alternately."""
