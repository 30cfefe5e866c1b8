"""Export torch modules to ONNX, named `package.module:factory` or given as they are. Imports torch lazily."""

from __future__ import annotations

import contextlib
import copy
import importlib
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from splitload.base import interrupts
from splitload.base.errors import ModelError, OutputError, UsageError
from splitload.base.scratch import scratch_folder
from splitload.frontends import torch_names
from splitload.frontends.torch_compare import by_name, compare, compare_longer
from splitload.frontends.torch_packages import declare_torchvision_ops, quiet, require

if TYPE_CHECKING:
    import torch

Example: TypeAlias = "tuple[torch.Tensor, ...] | dict[str, torch.Tensor]"

SCOPES = "pkg.torch.onnx.name_scopes"  # where the exporter keeps the modules that a node comes from
_QUOTED = re.compile(r"'([^']*)'")
_OPSET = 20  # torch 2.13's default, and the first with Gelu as one operator


def module_of(scopes: str) -> str:
    """Return the innermost named module in what the exporter writes of a node, under `SCOPES`; "" if there is none."""
    return next((name for name in reversed(_QUOTED.findall(scopes)[:-1]) if name), "")


def _first_line(error: BaseException) -> str:
    """Return the type and the first line of an error's own cause, without terminal colours."""
    while error.__cause__ is not None:  # the exporter's own message is only which of its steps failed
        error = error.__cause__
    first, _, rest = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().partition("\n")
    if first.endswith(":"):
        first += " " + rest.strip().partition("\n")[0]
    return f"{type(error).__name__}: {first[:300]}"


def export(spec: str, out: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Write the torch module that a factory returns to an ONNX file, and return its example inputs by name.

    Args:
        spec: `package.module:factory`. The module is imported with the current folder on the path; the factory takes
            no arguments and returns the torch module and its example inputs: a tuple of tensors, or a dict of them by
            the names of the module's parameters. Shapes are exported as the examples have them, unless a third value
            says which sizes stay open, as `dynamic_shapes` of `torch.export.export` does.
        out: The file to write; one that exists is replaced once the new one is complete and checked.

    Raises:
        UsageError: `spec` is not of that form.
        ModelError: The factory cannot be found or called, returns something else, or its module cannot be exported
            with equal outputs.
        MissingPackageError: torch or onnxscript is missing.
        OutputError: `out` cannot be written.
    """
    module, example, dynamic_shapes = made_by(spec)
    return export_given(module, example, out, name=spec, dynamic_shapes=dynamic_shapes)


def made_by(spec: str) -> tuple[torch.nn.Module, Example, Any]:
    """Return what a factory returns: the torch module, its example inputs, and which sizes stay open, None for none.

    Raises:
        SplitloadError: See `export`.
    """
    module_name, _, factory_name = spec.partition(":")
    if not module_name or not factory_name:
        raise UsageError(f"'{spec}' is not of the form package.module:factory")
    require("torch", "onnxscript")
    with quiet():
        declare_torchvision_ops()
    with current_folder_importable():
        return _checked(spec, _call(spec, _find(spec, module_name, factory_name)))


def export_given(
    module: torch.nn.Module, example: Example, out: Path, *, name: str, dynamic_shapes: Any = None
) -> dict[str, np.ndarray[Any, Any]]:
    """Write a user's torch module to an ONNX file with its weights beside it, and return its example inputs by name.

    The module stays as it is. One with bfloat16 weights, which onnxruntime has no kernels for on a CPU, is exported as
    a copy in float32.

    Args:
        module: The module.
        example: Example inputs, a tuple or a dict by name.
        out: The file to write; one that exists is replaced once the new one is complete and checked.
        name: What to call the module in messages.
        dynamic_shapes: Which sizes of the inputs stay open, as `torch.export.export` takes it; by default none.

    Raises:
        ModelError: See `export_module`; or the module holds quantised layers.
        OutputError: `out` cannot be written.
    """
    import torch

    module, example, _ = _checked(name, (module, example, dynamic_shapes))
    _refuse_quantized(module, name)
    if any(tensor.dtype == torch.bfloat16 for tensor in (*module.parameters(), *module.buffers())):
        module = copy.deepcopy(module).float()
        example = _in_float32(example)
    from splitload.torch.order import left_as_it_was

    with left_as_it_was(module), written_beside(out) as file:
        export_module(module, example, file, name=name, dynamic_shapes=dynamic_shapes, external_data=True)
        return _named(file, example)


def _refuse_quantized(module: torch.nn.Module, name: str) -> None:
    """Raise if a layer is quantised, or holds something else than plain tensors."""
    import torch

    plain = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
    for path, each in module.named_modules():
        kinds = [type(tensor) for tensor in (*each.parameters(recurse=False), *each.buffers(recurse=False))]
        other = [kind.__name__ for kind in kinds if kind not in plain]
        if ".quantized" in type(each).__module__ or other:
            what = f"{type(each).__module__}.{type(each).__qualname__}{' of ' + other[0] if other else ''}"
            raise ModelError(
                f"{name} cannot be exported to ONNX: its module '{path or 'itself'}' is quantised, or has tensors of a "
                f"kind of its own ({what}); export it before it is quantised, and quantise the ONNX file"
            )


def _in_float32(example: Example) -> Example:
    import torch

    def wide(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.float() if tensor.dtype == torch.bfloat16 else tensor

    if isinstance(example, dict):
        return {name: wide(tensor) for name, tensor in example.items()}
    return tuple(wide(tensor) for tensor in example)


def export_module(
    module: torch.nn.Module,
    example: Example,
    file: Path,
    *,
    name: str,
    output_names: Sequence[str] | None = None,
    dynamic_shapes: Any = None,
    external_data: bool = False,
) -> None:
    """Write a torch module to an ONNX file, in evaluation mode, and check that the file computes the same.

    Nodes are named by the modules they come from. The weights are inside the file, up to 1.5 GB; above that, or with
    `external_data`, they are written to `FILE.data` one after the other, with no second copy of them in memory.

    Args:
        module: The module; it is switched to evaluation mode.
        example: Example inputs, which also fix the shapes.
        file: The file to write, in place.
        name: What to call the module in messages.
        output_names: Names for the outputs; by default the module's, and torch's where it gives none.
        dynamic_shapes: Which sizes of the inputs stay open, as `torch.export.export` takes it; by default none.
        external_data: Whether the weights go to a file of their own.

    Raises:
        ModelError: The module cannot be run or exported, or the outputs on the example inputs differ by more than
            1e-4 of the largest (float32).
        OSError: `file` cannot be written.
    """
    module.eval()
    program, expected = _exported(module, example, name, output_names, dynamic_shapes)
    for index, node in enumerate(program.model.graph.all_nodes()):
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)  # names folders of this machine
        module_name = module_of(node.metadata_props.get(SCOPES, "")) or "model"
        node.name = f"{module_name}/{node.op_type}_{index}"
    if output_names is None:
        torch_names.restore_names(program.model.graph, module, example, expected)
    with quiet():
        program.save(str(file), external_data=external_data)
    compare(name, file, example, expected)
    if dynamic_shapes is not None:
        compare_longer(name, file, module, example)


def _exported(
    module: torch.nn.Module, example: Example, name: str, output_names: Sequence[str] | None, dynamic_shapes: Any
) -> tuple[Any, Any]:
    """Return what torch's exporter makes of a module, and what the module itself gives for the example.

    Raises:
        ModelError: The module cannot be run or exported.
    """
    import torch

    args, kwargs = ((), example) if isinstance(example, dict) else (example, {})
    expected = None
    try:
        with quiet(), torch.no_grad():
            expected = module(*args, **kwargs)
            program = torch.onnx.export(
                module,
                args,
                kwargs=kwargs,
                dynamo=True,
                external_data=False,
                verbose=False,
                opset_version=_OPSET,
                output_names=output_names,
                dynamic_shapes=dynamic_shapes,
            )
    except (Exception, SystemExit) as e:  # whatever the module's own code raises
        if interrupts.stands_for_interrupt(e):
            raise KeyboardInterrupt from e
        reason = torch_names.cache_hint(module, expected) or _first_line(e)
        raise ModelError(f"{name} cannot be exported to ONNX: {reason}") from e
    if program is None:
        raise ModelError(f"{name} cannot be exported to ONNX: torch returned nothing")
    return program, expected


@contextlib.contextmanager
def written_beside(out: Path) -> Iterator[Path]:
    """Give a path to write to; when the block ends well, what stands there moves to `out`.

    Files that begin with the same name, such as external data, move with it, `out` last. After an error or an
    interrupt `out` is as it was.

    Raises:
        OutputError: Something could not be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(out.parent, f".{out.name}.") as folder:
            yield folder / out.name
            for file in sorted(folder.iterdir(), reverse=True):
                file.replace(out.parent / file.name)
    except OutputError:
        raise
    except OSError as e:
        raise OutputError(f"cannot write {out}: {e.strerror or e}") from e


@contextlib.contextmanager
def current_folder_importable() -> Iterator[None]:
    """Have the module that a user names be found in the current folder, as Python itself would."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _find(spec: str, module_name: str, factory_name: str) -> Any:
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as e:
        if e.name and f"{module_name}.".startswith(f"{e.name}."):
            raise ModelError(f"{spec}: there is no module '{e.name}' here or among the installed packages") from e
        raise ModelError(f"{spec}: importing {module_name} failed: {e}") from e
    except (Exception, SystemExit) as e:  # whatever the user's module raises
        raise ModelError(f"{spec}: importing {module_name} failed: {_first_line(e)}") from e
    try:
        return getattr(module, factory_name)
    except AttributeError as e:
        raise ModelError(f"{spec}: module '{module_name}' has no '{factory_name}'") from e


def _call(spec: str, factory: Any) -> Any:
    if not callable(factory):
        raise ModelError(f"{spec}: expected a function without arguments, got {type(factory).__name__}")
    try:
        return factory()
    except (Exception, SystemExit) as e:  # whatever the user's function raises
        raise ModelError(f"{spec}: calling it failed: {_first_line(e)}") from e


def _checked(spec: str, value: Any) -> tuple[torch.nn.Module, Example, Any]:
    """Return module, example inputs and open sizes (None for none)."""
    import torch

    wanted = "a pair (torch.nn.Module, example inputs), the inputs a tuple of tensors or a dict of them by name"
    if not isinstance(value, tuple) or len(value) not in (2, 3):
        raise ModelError(f"{spec}: expected {wanted}, got {type(value).__name__}")
    module, example, *dynamic_shapes = value
    if not isinstance(module, torch.nn.Module):
        raise ModelError(f"{spec}: expected {wanted}, but the first is {type(module).__name__}")
    inputs = (
        list(example.values()) if isinstance(example, dict) else list(example) if isinstance(example, tuple) else []
    )
    if not inputs or not all(torch.is_tensor(value) for value in inputs):
        holds = " with " + (", ".join(type(value).__name__ for value in inputs) or "nothing in it")
        kind = type(example).__name__ + (holds if isinstance(example, tuple | dict) else "")
        raise ModelError(f"{spec}: expected {wanted}, but the second is {kind}")
    return module, example, dynamic_shapes[0] if dynamic_shapes else None


def _named(file: Path, example: Example) -> dict[str, np.ndarray[Any, Any]]:
    """Return the example inputs as arrays, by the names that the file has for them."""
    import onnx

    names = [value.name for value in onnx.load_model(str(file), load_external_data=False).graph.input]
    return {name: tensor.numpy(force=True) for name, tensor in by_name(names, example)}
