"""What an error says of a tail is true, whichever step of writing it or of going back fails."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from splitload.base.errors import OutputError
from splitload.bundle.read import read_manifest
from splitload.bundle.tails import current_version, read_weights, revert, write_tail

pytest.importorskip("torch")  # what builds a trainable bundle checks its gradients with torch


@pytest.mark.parametrize("back", [False, True], ids=["write", "revert"])
def test_an_error_says_which_version_counts(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, back: bool
) -> None:
    manifest = read_manifest(built)
    assert manifest.training is not None
    training, stage = manifest.training, manifest.variants[-1].stages[-1]
    assert stage.weights is not None
    values = read_weights(built / stage.weights.name, training)
    calls: list[str] = []
    at = -1

    def failing(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            calls.append(name)
            if len(calls) - 1 == at:
                raise OSError(errno.EIO, "Input/output error")
            return real(*arguments, **named)

        return call

    for name in ("fsync", "rename", "replace", "chmod", "mkdir"):
        monkeypatch.setattr(os, name, failing(name, getattr(os, name)))
    told = {"unsaid": 0, "unchanged": 0, "counts": 0}
    for step in range(60):
        bundle = Path(shutil.copytree(built, tmp_path / str(step), copy_function=shutil.copyfile))
        write_tail(bundle, "anna", stage, training, values, {})
        before, after = (1, 0) if back else (1, 2)
        calls.clear()
        at, error = step, None
        try:
            if back:
                revert(bundle, "anna")
            else:
                write_tail(bundle, "anna", stage, training, values, {})
        except OutputError as raised:
            error = str(raised)
        at = -1
        if error is None:
            told["unsaid"] += 1
            assert current_version(bundle, "anna") == after
        elif "it is as it was" in error:
            told["unchanged"] += 1
            assert current_version(bundle, "anna") == before
        else:
            told["counts"] += 1
            assert f"version {after} of the tail counts" in error
            assert current_version(bundle, "anna") == after
        if step >= len(calls):
            break
    else:
        pytest.fail("no end of steps")
    assert min(told.values()) > 0, told
