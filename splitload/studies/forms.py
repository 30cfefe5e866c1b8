"""Models of the study of sizes: those of the zoo in four forms, and some that store a weight once for several uses."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from splitload.base.entries import is_whole, making
from splitload.frontends import open_source
from splitload.frontends.onnx import Source
from splitload.frontends.torch import export_module
from splitload.frontends.torch_packages import require
from splitload.graphs.observe import plain_options
from splitload.runtime.inputs import example_inputs
from splitload.runtime.stock import stock_session

_VERSION = 1  # raise it when a change here changes a file
_SEED = 0
_CHANNELS = 200  # no multiple of 16
_GPT2_LAYERS = 6


def open_form(model: str, form: str, cache: Path) -> Source:
    """Return a model in one of its forms, made now unless the cache has it.

    Args:
        model: A MODEL word, or one of `SHARING`.
        form: One of `FORMS`.
        cache: The user's cache folder.

    Raises:
        MissingPackageError: If torch or transformers is needed and not installed.
        ModelError: If the model cannot be read or written.
        OutputError: If the cache cannot be written.
    """
    if model in SHARING:
        require("torch", "onnxscript", "transformers")
        file = _made(cache / "forms" / f"{model}-v{_VERSION}", lambda path: SHARING[model](path))
        return Source.open(file, model)
    source = open_source(model, cache)
    if form == "float32":
        return source
    name = f"{source.sha256[:24]}-{form.replace(' ', '-')}-v{_VERSION}"
    return Source.open(_made(cache / "forms" / name, lambda path: FORMS[form](source.path, path)), source.name)


def _made(entry: Path, make: Callable[[Path], None]) -> Path:
    """Return the model in a folder of the cache, made first where it is not there."""
    if not is_whole(entry):
        with making(entry, "the model") as folder:
            make(folder / "model.onnx")
    return entry / "model.onnx"


def _half(source: Path, target: Path) -> None:
    """Write a model with weights, inputs and outputs in half precision."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(source)), target)


def _dynamic(source: Path, target: Path) -> None:
    """Write a model with weights of 8 bits, whose activations are quantised while it runs."""
    from onnxruntime.quantization import quantize_dynamic

    with _ready(source, target) as ready:
        quantize_dynamic(ready, target)


def _static(source: Path, target: Path) -> None:
    """Write a model with weights and activations of 8 bits, calibrated on made-up inputs, in the QDQ format."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Once(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, feeds: Any) -> None:
            self._left = [feeds]

        def get_next(self) -> Any:
            return self._left.pop() if self._left else None

    session = stock_session(str(source), plain_options())
    feeds = example_inputs(session.get_inputs(), {})
    del session
    with _ready(source, target) as ready:
        quantize_static(ready, target, Once(feeds), quant_format=QuantFormat.QDQ, weight_type=QuantType.QInt8)


@contextlib.contextmanager
def _ready(source: Path, target: Path) -> Iterator[Path]:
    """Yield a model as the quantisers want it: optimised, with shapes."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready = target.with_name("ready.onnx")
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # its advice to do what is done here
    try:
        try:
            quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
        except Exception:  # it knows no common root for its errors; it is no more than recommended
            shutil.copyfile(source, ready)
        yield ready
    finally:
        ready.unlink(missing_ok=True)
        logging.root.setLevel(level)


def _gpt2(target: Path) -> None:
    import transformers

    config = transformers.GPT2Config(n_layer=_GPT2_LAYERS, use_cache=False)
    _export(lambda: transformers.GPT2LMHeadModel(config), target)


def _albert(target: Path) -> None:
    import transformers

    config = transformers.AlbertConfig(hidden_size=768, num_attention_heads=12, intermediate_size=3072)
    _export(lambda: transformers.AlbertModel(config), target)


def _export(build: Callable[[], Any], target: Path) -> None:
    """Write what a model of tokens gives first, by today's exporter of torch."""
    import torch

    class First(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, tokens: Any) -> Any:
            return self.model(input_ids=tokens)[0]

    torch.manual_seed(_SEED)
    tokens = torch.randint(0, 1000, (1, 64))
    export_module(First(build()), (tokens,), target, name=target.parent.name, output_names=["y"])


def _convolutions(target: Path) -> None:
    """Write six convolutions of channels that fill no block of 16."""
    import torch

    torch.manual_seed(_SEED)
    layers = [
        torch.nn.Sequential(torch.nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1), torch.nn.ReLU()) for _ in range(6)
    ]
    module = torch.nn.Sequential(torch.nn.Conv2d(3, _CHANNELS, 3, stride=2, padding=1), *layers)
    export_module(module, (torch.rand(1, 3, 64, 64),), target, name="convolutions", output_names=["y"])


FORMS: dict[str, Callable[[Path, Path], None]] = {
    "float32": lambda source, target: None,
    "float16": _half,
    "int8 dynamic": _dynamic,
    "int8 static": _static,
}
SHARING: dict[str, Callable[[Path], None]] = {
    "gpt2-tied": _gpt2,
    "albert-shared": _albert,
    f"convolutions-{_CHANNELS}": _convolutions,
}
