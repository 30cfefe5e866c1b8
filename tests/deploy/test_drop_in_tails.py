"""`splitload.InferenceSession` answers as the model, or as the personalized last stage that is asked for."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

import splitload
from splitload.base.errors import UsageError
from splitload.deploy.personalize import personalize

pytest.importorskip("torch")  # what builds a trainable bundle checks its gradients with torch
from small_bundle import QUICK, answer, data

FEEDS = {"image": np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 1, 8, 8)}


@pytest.fixture
def model(built: Path, bundle: Path) -> Path:
    """A model beside a bundle of it."""
    return Path(shutil.copy(built.with_suffix(".onnx"), bundle.with_suffix(".onnx")))


@pytest.mark.parametrize("given", ["digits.onnx", "digits.splitload"])
def test_the_answers_are_the_models_unless_a_tail_is_asked_for(
    model: Path, bundle: Path, given: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "splitload")
    place = model.with_name(given)
    fresh = splitload.InferenceSession(place)
    assert fresh.reason.endswith("; its last stage is the one it was built with")
    for tail in ("default", "anna"):
        personalize(bundle, data(tmp_path / "train.npz"), settings=QUICK, tail=tail)
    (expected,) = ort.InferenceSession(model).run(None, FEEDS)
    for session in (splitload.InferenceSession(place), splitload.InferenceSession(place, tail=None)):
        assert session.bundle == bundle
        np.testing.assert_allclose(session.run(None, FEEDS)[0], expected, atol=1e-5)
        assert "the one it was built with, not a personalized one; tail=NAME takes one of: anna" in session.reason
    asked = splitload.InferenceSession(place, tail="anna")
    assert not np.allclose(asked.run(None, FEEDS)[0], expected)
    assert asked.reason.endswith("its last stage is version 1 of the tail 'anna'")
    assert asked.reason in caplog.records[-1].getMessage()
    assert not np.allclose(answer(bundle), answer(bundle, None)), "ParallelLoader takes the default one"


def test_a_tail_or_argument_that_is_not_there_is_an_error(model: Path, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no tail 'bob'"):
        splitload.InferenceSession(model, tail="bob")
    with pytest.raises(TypeError, match="nonsense"):
        splitload.InferenceSession(model, nonsense=1)
    options = ort.SessionOptions()
    options.enable_profiling = True
    with pytest.raises(UsageError, match="enable_profiling"):  # a plain session would have no such tail
        splitload.InferenceSession(model, options, tail="default")
    alone = shutil.copy(model, tmp_path / "alone.onnx")
    with pytest.raises(UsageError, match=r"'anna' is part of a bundle, and a plain .*no bundle lies beside"):
        splitload.InferenceSession(alone, tail="anna")
