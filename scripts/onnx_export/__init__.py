"""What `scripts/export_onnx.py` is made of: the graph, its processing, what it says of itself, its check."""
