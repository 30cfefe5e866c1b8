"""Today's architectures, as torch's exporter writes them: made bundles, cut and whole, they answer as stock does."""

import contextlib
import json
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("torch")
if find_spec("transformers") is None:  # it takes seconds to import, which only who needs it is to pay
    pytest.skip("transformers is not installed", allow_module_level=True)

from splitload.base.entries import is_whole
from splitload.base.errors import CacheWarning
from splitload.studies import architectures, records
from splitload.studies.architecture_models import MODEL, export, names

TRIED = {
    "transformers/bert": "fixed",
    "transformers/distilbert": "fixed",
    "transformers/albert": "fixed",
    "transformers/gpt2": "open",
    "transformers/llama": "fixed",
    "transformers/t5 encoder": "fixed",
    "transformers/bart decoder": "fixed",
    "transformers/whisper encoder": "fixed",
    "transformers/vit": "open",
    "transformers/wav2vec2": "fixed",
    "torchvision/squeezenet1_1": "open",
    "torchvision/mobilenet_v3_small": "fixed",
}


QUICK = ("transformers/gpt2", "transformers/t5 encoder", "torchvision/squeezenet1_1")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in (*TRIED, "transformers/mpnet")],
)
def test_an_architecture(name, tmp_path):
    export(name, TRIED.get(name, "open"), tmp_path)
    rows = list(architectures.try_model(tmp_path, tmp_path, ("whole", "middle")))
    assert [(row["device"], row["num_stages"]) for row in rows] == [("host", 1), ("host", 2), ("s20", 1), ("s20", 2)]
    assert [row["error"] for row in rows if row["error"]] == []


def test_the_study_covers_what_it_promises():
    packages = [name.partition("/")[0] for name in names()]
    assert packages.count("transformers") >= 25
    assert packages.count("torchvision") + packages.count("timm") >= 25
    assert set(TRIED) <= set(names())


def test_a_failure_stays_in_the_rows(tmp_path, monkeypatch):
    def run(words, limit_s):
        if "open" in words:
            raise architectures._FailedError("cannot be exported")
        if words[0] == "splitload.studies.architecture_models":
            (Path(words[-1]) / MODEL).write_text("an export")
            exports.append(words[1])
            return ""
        return json.dumps({"device": "s20", "cut": "whole", "num_stages": 1, "difference": 0.0, "failed": None}) + "\n"

    exports = []
    monkeypatch.setattr(architectures, "_run", run)
    fixed, opened = architectures.try_architecture("timm/lcnet_050", tmp_path, 1)
    assert (fixed["architecture"], fixed["sizes"], fixed["failed"]) == ("timm/lcnet_050", "fixed", None)
    assert (opened["sizes"], opened["failed"], opened["error"]) == ("open", "exporter", "cannot be exported")
    (entry,) = (tmp_path / "architectures").iterdir()
    for damaged in (False, True):
        if damaged:
            (entry / MODEL).write_text("an expert")
        with pytest.warns(CacheWarning, match=f"'{MODEL}' was changed") if damaged else contextlib.nullcontext():
            list(architectures.try_architecture("timm/lcnet_050", tmp_path, 1))
        assert len(exports) == 1 + damaged
    assert is_whole(entry)


def test_a_model_that_splitload_cannot_take_is_a_row(tmp_path):
    (tmp_path / MODEL).write_bytes(b"no model")
    rows = list(architectures.try_model(tmp_path, tmp_path))
    assert [row["failed"] for row in rows] == ["splitload"] * len(architectures.DEVICES)
    assert all("not an ONNX model" in row["error"] for row in rows)


def test_the_table_keeps_failures():
    row = {"architecture": "timm/a", "sizes": "fixed", "device": "host", "cut": "whole", "num_stages": 1}
    row |= {"difference": 1e-7, "failed": None, "error": None}
    wrong = row | {"cut": "middle", "num_stages": 2, "difference": None, "failed": "splitload", "error": "broken"}
    lost = row | {"sizes": "open", "num_stages": None, "difference": None, "failed": "exporter", "error": "no | way"}
    record = {"rows": [row, wrong, lost], "provenance": {"command": "make it"}}
    table = records.fill("<!-- results:architectures -->\n<!-- end -->", {"architectures": [("a.json", record)]})
    assert "| timm/a | fixed | 2 | 1 of 2 | 1.0e-07 | splitload: broken |" in table
    assert "| timm/a | open | – | 0 of 1 | – | exporter: no \\| way |" in table
    assert "| all 1 |  |  | 1 of 2 that a stock session runs |  |  |" in table
