"""ONNX graphs to TensorRT and TensorRT-RTX plans, through Polygraphy."""
