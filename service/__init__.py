"""The server. It does not need torch."""

import os

# ONNX Runtime's published builds send telemetry to Microsoft unless this is set before their first import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
