"""Names of a torch module's inputs and outputs in its ONNX file: those that the module itself has."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_RETURNED = "_orig"  # what the exporter adds to the name of an input that the module returns as it is


def output_names(outputs: Any) -> list[str]:
    """Return the names that a module gives to the tensors it returns, "" for those it gives none.

    They are keys of dicts (Hugging Face's outputs are such), fields of named tuples and dataclasses; what lies in a
    list under a name has its number behind a dot.
    """
    return list(_names(outputs, ""))


def _names(value: Any, name: str) -> Iterator[str]:
    import torch

    if torch.is_tensor(value):
        yield name
        return
    parts: Mapping[Any, Any] = {}
    if isinstance(value, Mapping):
        parts = value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif isinstance(value, tuple) and hasattr(value, "_asdict"):
        parts = value._asdict()
    elif isinstance(value, list | tuple):
        parts = dict(enumerate(value))
        if not name:
            for part in value:
                yield from _names(part, "")
            return
    for key, part in parts.items():
        yield from _names(part, f"{name}.{key}" if name else str(key))


def restore_names(graph: Any, module: torch.nn.Module, example: Any, expected: Any) -> None:
    """Give inputs and outputs of an exported graph the names they have in the module.

    Where a name is taken, as that of an input which is returned too, the output has `_output` behind it.

    Args:
        graph: Of the exporter (`onnx_ir`), changed in place.
        module: What was exported.
        example: Its example inputs, a tuple or a dict by name.
        expected: What it returns for them.
    """
    wanted = {*inspect.signature(module.forward).parameters, *(example if isinstance(example, dict) else ())}
    outputs = output_names(expected)
    taken = {value.name for node in graph.all_nodes() for value in node.outputs} | set(graph.initializers)
    taken |= {value.name for value in graph.inputs}
    makers = {id(value): value for value in graph.outputs if value.producer() is not None}
    evaded: dict[int, str] = {}  # names that outputs cannot have
    for value in graph.inputs:
        plain = value.name.removesuffix(_RETURNED)
        if value.name in wanted or plain not in wanted:
            continue
        for output in makers.values():
            if output.name == plain:
                output.name = _fresh(plain, taken)
                evaded[id(output)] = plain
        value.name = plain
    if len(outputs) == len(graph.outputs):
        for value, name in zip(graph.outputs, outputs, strict=True):
            known = name in ("", value.name, evaded.get(id(value)))
            if not known and makers.pop(id(value), None) is not None:
                value.name = _fresh(name, taken)


def _fresh(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_output"
    taken.add(name)
    return name


def cache_hint(module: torch.nn.Module, returned: Any) -> str:
    """Return what to do about a decoder that returns its cache, or "" where a module returns none.

    Args:
        module: The module. Its parts may have configurations of their own, as the decoder of T5 has.
        returned: What it returns.
    """
    configured = {
        id(part.config): f"module{f'.{path}' if path else ''}.config.use_cache = False"
        for path, part in reversed([*module.named_modules()])  # of parts with one configuration the outermost
        if getattr(getattr(part, "config", None), "use_cache", False) is True
    }
    if not configured or not _holds_cache(returned):
        return ""
    return (
        "it returns a cache of keys and values, which a file has no type for: set "
        f"{' and '.join(reversed(configured.values()))}, or build it with use_cache=False in its configuration, and "
        "export it again"
    )


def _holds_cache(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_cache, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds_cache, value))
    return "Cache" in type(value).__name__
