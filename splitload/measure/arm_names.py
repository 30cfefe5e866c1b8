"""The names of the arms, which a command line can show without importing what runs them."""

from __future__ import annotations

ARM_NAMES = (
    "stock",
    "tuned",
    "ort-format",
    "torch",
    "torch-mmap",
    "openvino",
    "ncnn",
    "splitload",
    "splitload-buffers",
)
PORTABLE_ARMS = ("stock", "tuned", "ort-format", "splitload", "splitload-buffers")  # that need onnxruntime alone
