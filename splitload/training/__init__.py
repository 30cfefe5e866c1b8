"""How the last layers of a model are trained: division, gradients, steps, checks. Imports onnx and torch lazily."""
