"""The service and its description agree: whatever is sent, nothing fails but for want of room (schemathesis)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from service_threads import TOKEN, serving

from splitload.deploy import serve
from splitload.deploy.openapi import description

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
CONFIGURATION = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "507"]
"""


def run(folder: Path, phases: str, examples: int, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(serve, "REQUESTS", 1 << 60)
    (folder / "schemathesis.toml").write_text(CONFIGURATION)
    with serving(folder / "device") as url:
        command = [
            sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "-H",
            f"Authorization: Bearer {TOKEN}", "--checks", CHECKS, "--phases", phases, "--max-examples", str(examples),
            "--seed", "1", "--no-color", "--warnings", "off",
        ]  # fmt: skip
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def test_answers_are_as_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "No issues found" in run(tmp_path, "fuzzing", 8, monkeypatch)


@pytest.mark.slow
def test_answers_are_as_described_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "No issues found" in run(tmp_path, "coverage,fuzzing", 100, monkeypatch)


def test_every_path_is_described() -> None:
    paths = {
        (path, method.upper()) for path, methods in description()["paths"].items() for method in methods
    }  # fmt: skip
    source = Path(serve.__file__).read_text()
    assert len(paths) == 8
    assert all(f'("{path.replace("{name}", "{name:path}")}", "{method}"' in source for path, method in paths)
