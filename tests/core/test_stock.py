"""No part of splitload opens sessions by the name that a stand-in may have taken."""

from __future__ import annotations

import ast
from pathlib import Path

import onnxruntime as ort
import pytest

import splitload
from splitload.stock import session_class

PACKAGE = Path(splitload.__file__).parent
OF_THEIR_OWN = ("bench/**/*.py", "commands/client_calls.py", "commands/*_child.py")  # processes
FILES = sorted(
    {file.resolve() for folder in (PACKAGE, PACKAGE.parent / "deploy") for file in folder.rglob("*.py")}
    - {file.resolve() for pattern in OF_THEIR_OWN for file in PACKAGE.glob(pattern)}
)


def test_sessions_are_made_by_the_class_that_the_runtime_defines() -> None:
    assert len(FILES) > 100
    places = [
        f"{file.name}:{node.lineno}"
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "InferenceSession"
    ]
    assert not places, "make them by splitload.stock"


def test_a_stand_in_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = session_class()
    assert real is ort.InferenceSession
    monkeypatch.setattr(ort, "InferenceSession", None)
    assert session_class() is real
