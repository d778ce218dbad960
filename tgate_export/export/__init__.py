"""From diffusers pipelines to ONNX graphs and solver tables."""
