"""From a checkpoint to a verified bundle. Needs torch; knows the models and, of the server, the manifest alone."""

import os

# ONNX Runtime's published builds report to their makers unless this is set before they are first imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
