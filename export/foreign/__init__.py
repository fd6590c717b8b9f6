"""Exports ONNX files from other exporters: reads, runs, wraps and proves them."""
