"""From a checkpoint to a bundle to a vehicle."""

import os

# ONNX Runtime 1.29 and later report to their vendor what they run, unless this is set before they are imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
