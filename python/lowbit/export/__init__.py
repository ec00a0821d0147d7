"""Language models as ONNX graphs."""
