"""onnxruntime driven through its C library, without its Python module and without numpy."""
