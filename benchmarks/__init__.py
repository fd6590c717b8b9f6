"""What serving costs on top of the model: `python -m benchmarks NAME`. Every figure is a ratio of two things measured
alternately in one run."""
