"""Exports a checkpoint as a verified bundle. Needs torch.

Imports the models and, of the server, only `service.repository`: the manifest, and rules that both sides must share.
"""

import os

# ONNX Runtime's published builds send telemetry unless this is set before onnxruntime is first imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
