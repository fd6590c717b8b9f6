"""A transducer in three ONNX files, or in two, to a bundle: `python -m export transducer`."""
