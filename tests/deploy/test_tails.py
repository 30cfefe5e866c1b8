"""Personalized last stages: versions, whose they are, damage, several writers, and kills."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from runtime_models import loader_with

from splitload import ParallelLoader
from splitload.base.errors import BundleError, UsageError
from splitload.bundle.read import read_manifest
from splitload.bundle.tails import current_version, names, revert
from splitload.cli import main
from splitload.deploy.personalize import personalize

pytest.importorskip("torch")  # what builds a trainable bundle checks its gradients with torch
from small_bundle import CLASSES, QUICK, answer, data, frozen


def overwrite(path: Path, text: str) -> None:
    """Damage a file of a tail, which is read-only."""
    path.chmod(0o644)
    path.write_text(text)


def test_a_tail_is_learned_versioned_and_gone_back_from(bundle: Path, tmp_path: Path) -> None:
    train, valid = data(tmp_path / "train.npz"), data(tmp_path / "valid.npz", seed=1)
    before, files = answer(bundle), frozen(bundle)
    first = personalize(bundle, train, valid, settings=QUICK)
    assert first.best.valid_accuracy is not None
    assert first.best.valid_accuracy > 0.9
    assert first.epochs[-1].loss < first.epochs[0].loss
    after = answer(bundle)
    assert not np.allclose(after, before)
    np.testing.assert_array_equal(answer(bundle, tail=None), before)
    second = personalize(bundle, train, settings=QUICK)
    assert (first.version, second.version) == (1, 2)
    assert second.epochs[0].loss < first.epochs[0].loss, "it goes on where the tail stands"
    assert frozen(bundle) == files
    assert read_manifest(bundle, "hashes")
    assert revert(bundle, "default") == 1
    np.testing.assert_array_equal(answer(bundle), after)
    assert revert(bundle, "default") == 0
    np.testing.assert_array_equal(answer(bundle), before)
    with pytest.raises(UsageError, match="no personalized tail 'default'"):
        revert(bundle, "default")
    assert personalize(bundle, train, settings=QUICK).version == 3, "what was gone back from stays"


def test_a_tail_is_read_ahead_and_the_stage_it_replaces_is_not(bundle: Path, tmp_path: Path) -> None:
    personalize(bundle, data(tmp_path / "train.npz"), settings=QUICK)
    read: list[Path] = []

    def fetch(files: Sequence[tuple[str, object]], _: object) -> None:
        read.extend(Path(path) for path, _ in files)

    loader = loader_with(is_cached=lambda *_: False, fetch=fetch)
    with loader(bundle, upgrade=False) as model:
        *frozen_stages, last = (stage._replace(read_order=(1, 9)) for stage in model.variant.stages)
        read.clear()
        model._files.read(model.variant._replace(stages=(*frozen_stages, last)))
        assert model._files.are_fetched
        model.wait()
    assert model.tail is not None
    expected = [*(bundle / stage.graph.name for stage in frozen_stages), model.tail.graph]
    deadline = time.monotonic() + 30
    while read != expected and time.monotonic() < deadline:
        time.sleep(0.01)
    assert read == expected


def test_tails_of_several_users_lie_side_by_side(bundle: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("anna", "bert")):
        flipped = np.random.default_rng(number).integers(0, CLASSES, 120)
        personalize(bundle, data(tmp_path / f"{name}.npz", seed=number, y=flipped), settings=QUICK, tail=name)
    assert names(bundle) == ["anna", "bert"]
    answers = [answer(bundle, tail) for tail in ("anna", "bert", None)]
    assert not np.allclose(answers[0], answers[1])
    np.testing.assert_array_equal(answer(bundle, "default"), answers[2])


def test_going_back_leads_to_what_counted_before(bundle: Path, tmp_path: Path) -> None:
    train = data(tmp_path / "train.npz")
    personalize(bundle, train, settings=QUICK)
    first = answer(bundle)
    personalize(bundle, train, settings=QUICK)
    assert revert(bundle, "default") == 1
    shutil.copytree(bundle / "tails" / "default" / "0002", bundle / "tails" / "default" / "0003")  # a writer was killed
    assert personalize(bundle, train, settings=QUICK).version == 4
    assert revert(bundle, "default") == 1, "neither what was gone back from nor what never counted"
    np.testing.assert_array_equal(answer(bundle), first)
    assert revert(bundle, "default") == 0


def test_tails_that_are_written_at_the_same_time_are_all_kept(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert manifest.training is not None
    code = (
        "import sys; from pathlib import Path; from splitload.bundle.read import read_manifest; "
        "from splitload.bundle.tails import read_weights, write_tail; "
        "bundle = Path(sys.argv[1]); m = read_manifest(bundle); "
        "stage = m.variants[-1].stages[-1]; weights = read_weights(bundle / stage.weights.name, m.training); "
        "[write_tail(bundle, 'anna', stage, m.training, weights, {}) for _ in range(10)]"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(bundle)]) for _ in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert (bundle / "tails" / "anna" / "current").read_text().split() == [str(number) for number in range(1, 31)]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("current", "x", "is damaged: it should hold numbers of versions"),
        ("current", "7\n", "goes back"),
        ("0001/tail.json", "{", "not JSON"),
        ("0001/tail.json", "[]", "'.*/0001/tail.json': tail must be an object, it is list"),
        ("0001/tail.json", "{}", "is not version 1 of a tail|is missing"),
    ],
)
def test_a_damaged_tail_is_told_apart(bundle: Path, tmp_path: Path, file: str, text: str, message: str) -> None:
    personalize(bundle, data(tmp_path / "train.npz"), settings=QUICK)
    overwrite(bundle / "tails" / "default" / file, text)
    with pytest.raises(BundleError, match=message):
        ParallelLoader(bundle)
    assert answer(bundle, tail=None).shape == (5, CLASSES)


@pytest.mark.parametrize("pattern", ["*.bin", "*.onnx"])
def test_the_file_of_a_tail_that_is_damaged_is_named(bundle: Path, tmp_path: Path, pattern: str) -> None:
    personalize(bundle, data(tmp_path / "train.npz"), settings=QUICK)
    (file,) = (bundle / "tails" / "default" / "0001").glob(pattern)
    overwrite(file, "")
    with pytest.raises(BundleError, match=f"^'{re.escape(str(file))}' is damaged; 'splitload finetune --revert'"):
        ParallelLoader(bundle)


def test_the_tail_of_another_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    personalize(bundle, data(tmp_path / "train.npz"), settings=QUICK)
    path = bundle / "tails" / "default" / "0001" / "tail.json"
    row = json.loads(path.read_text())
    row["base"][1] = "0" * 64
    overwrite(path, json.dumps(row))
    with pytest.raises(BundleError, match="the tail of another bundle"):
        ParallelLoader(bundle)


def test_a_personalized_bundle_is_not_replaced(
    bundle: Path, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    personalize(bundle, data(tmp_path / "train.npz"), settings=QUICK, tail="anna")
    model_file = str(built.parent / "digits.onnx")
    assert main(["train", model_file, "--device", "s20", "-o", str(bundle)]) == 1
    assert "holds personalized tails (anna), which a new bundle would lose" in capsys.readouterr().err
    assert names(bundle) == ["anna"]


def test_an_unknown_tail_is_an_error(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="has no tail 'nobody', and no other; 'splitload finetune --tail nobody'"):
        ParallelLoader(bundle, tail="nobody")
    assert answer(bundle, "default").shape == (5, CLASSES), "the default one may be absent"
    personalize(bundle, data(tmp_path / "train.npz"), settings=QUICK, tail="anna")
    with pytest.raises(UsageError, match=r"unknown tail 'ana'\. Did you mean anna\? Known: anna\."):
        ParallelLoader(bundle, tail="ana")
    assert main(["run", str(bundle), "--tail", "ana"]) == 2
    assert "Did you mean anna?" in capsys.readouterr().err
    assert main(["run", str(bundle), "--tail", "anna", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tail"] == {"name": "anna", "version": 1}
    assert main(["run", str(bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tail"] is None
    revert(bundle, "anna")
    np.testing.assert_array_equal(answer(bundle, "anna"), answer(bundle, None))


def test_tails_are_listed(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["tails", str(bundle)]) == 0
    assert "has no tails yet" in capsys.readouterr().out
    train, valid = data(tmp_path / "train.npz"), data(tmp_path / "valid.npz", seed=1)
    for _ in range(2):
        anna = personalize(bundle, train, valid, settings=QUICK, tail="anna")
    bert = personalize(bundle, train, settings=QUICK, tail="bert")
    personalize(bundle, train, settings=QUICK, tail="carl")
    revert(bundle, "carl")
    assert main(["tails", str(bundle), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["tails"]
    best = anna.best
    none = {"valid_accuracy": None, "valid_loss": None, "loss_after": None}
    assert listed == [
        {
            "name": "anna", "version": 2, "versions": [1, 2], "loss": "cross-entropy",
            "valid_accuracy": best.valid_accuracy, "valid_loss": best.valid_loss, "loss_after": best.loss_after,
        },
        {
            "name": "bert", "version": 1, "versions": [1], "loss": "cross-entropy",
            **none, "loss_after": bert.best.loss_after,
        },
        {"name": "carl", "version": 0, "versions": [], "loss": None, **none},
    ]  # fmt: skip
    assert main(["tails", str(bundle)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    ends = {row[0]: row[-4:] for row in rows if row[:1] in (["anna"], ["bert"])}
    assert ends["anna"] == [f"{best.valid_loss:.4f}", "validation", "samples", f"{best.valid_accuracy:.1%}"]
    assert ends["bert"] == [f"{bert.best.loss_after:.4f}", "training", "samples", "–"]  # what it was judged by
    path = bundle / "tails" / "bert" / "0001" / "tail.json"
    row = json.loads(path.read_text())
    row["notes"] = {}  # whoever made it noted nothing
    overwrite(path, json.dumps(row))
    assert main(["tails", str(bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tails"][1]["loss"] is None
    assert main(["tails", str(bundle)]) == 0
    assert next(row for row in capsys.readouterr().out.splitlines() if row.startswith("bert")).count("unknown") == 4


KILLS = int(os.environ.get("SPLITLOAD_TEST_KILLS", "8"))


def test_a_kill_at_any_moment_leaves_a_bundle_that_loads(bundle: Path, tmp_path: Path) -> None:
    train = data(tmp_path / "train.npz")
    words = [sys.executable, "-m", "splitload.deploy.personalize", str(bundle), "--data", str(train), "--epochs", "3"]
    start = time.perf_counter()
    subprocess.run(words, check=True, capture_output=True)
    whole_s = time.perf_counter() - start
    rng = random.Random(0)  # noqa: S311 - not for secrets
    files, seen = frozen(bundle), {1: answer(bundle)}
    for _ in range(KILLS):
        running = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.3, 1.1) * whole_s)
        running.send_signal(signal.SIGKILL)
        running.wait()
        version, output = current_version(bundle, "default"), answer(bundle)
        assert version >= max(seen), "what was made current stays so"
        if version in seen:
            np.testing.assert_array_equal(output, seen[version])
        seen[version] = output
        assert frozen(bundle) == files
    subprocess.run(words, check=True, capture_output=True)
    assert not list(bundle.rglob(".new-*"))
    assert not list(bundle.rglob(".features-*"))
