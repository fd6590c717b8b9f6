"""Exports a transducer in three ONNX files, or in two, as a bundle: `python -m export transducer`."""
