"""What is done to ONNX graphs: observe, tidy, lay out, fold, cut into stages. Imports onnx lazily."""
