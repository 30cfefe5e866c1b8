"""How a model becomes a `ModelGraph`: ONNX files, torch modules, the zoo. Imports onnx and torch lazily."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from splitload.base.errors import ModelError, OutputError

if TYPE_CHECKING:
    from splitload.frontends.onnx import Source


def open_source(model: str, cache: Path) -> Source:
    """Return the ONNX file behind a MODEL word of the command line.

    Args:
        model: A path to an .onnx file, `zoo:NAME`, or `package.module:factory`.
        cache: Where zoo models and exports are kept.

    Raises:
        ModelError: If there is no such model or it cannot be read.
        UsageError: If a zoo name is unknown.
        MissingPackageError: If an optional package is needed.
        OutputError: If an export cannot be written.
    """
    from splitload.frontends.onnx import Source

    if model.startswith("zoo:"):
        from splitload.frontends import zoo

        name = model.removeprefix("zoo:")
        return Source.open(zoo.path(name, cache), name)
    path = Path(model)
    if path.is_dir():
        raise ModelError(f"'{model}' is a folder; give an .onnx file, zoo:NAME or package.module:factory")
    if not path.exists() and ":" in model and path.suffix != ".onnx":
        from splitload.frontends import torch as torch_frontend

        name = model.rpartition(":")[2]
        out = cache / "exports" / f"{model.replace(':', '-')}.onnx"
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make the folder '{out.parent}': {error.strerror}") from error
        examples = torch_frontend.export(model, out)
        return Source.open(out, name, examples)
    return Source.open(path, path.stem)
