"""Makes the canary of a native graph: one small instance of each operator that no standard describes.

Operators on blocked layouts come from `blocked.py`, which also says by standard operators what is right. Others are
instances of the graph's own: the node as it is, with its weights and sizes cut down to what the runtime takes. What
such an instance answers is held against a second run with rearranged weights; that the graph as a whole is right has
been checked before. An operator of which no instance can be made leaves a variant without a canary: then it needs the
very version that made it.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from splitload.bundle.manifest import Canary, File, Needs
from splitload.bundle.validate import MAX_CANARY_BYTES
from splitload.graphs import blocked
from splitload.graphs.folding import made_weights
from splitload.graphs.here import HERE
from splitload.graphs.layout import channel_block
from splitload.graphs.observe import one_line
from splitload.graphs.ortfile import format_version
from splitload.graphs.proto import attributes, bodies, is_external
from splitload.graphs.runtime import Beside, GraphRuntime, Refusal
from splitload.graphs.shared import read_external
from splitload.graphs.tidy import DOMAIN
from splitload.plan.graph import ModelGraph
from splitload.runtime.inputs import DTYPES

TOLERANCE = 1e-5  # of the largest element of an output
HALF_TOLERANCE = 2e-3  # where it is of half precision
CHECKED_WITHIN = 1e-4  # what other ways to compute the same may differ by
MAX_ELEMENTS = 4096  # of an input
MAX_INSTANCES = 64
_SMALL = 16  # sizes up to here stay as they are
_OPEN = 3  # for a size that is open
_ROWS = 4  # for a larger one that no weight has
_CHANNELS = 8  # the least that a larger one is cut down to
Array = np.ndarray[Any, Any]
Shape = tuple[int | str | None, ...]


class NoCanaryError(Exception):
    """Why a canary cannot be made."""


def needs_of(graph: ModelGraph, folder: Path, runtime: GraphRuntime = HERE) -> tuple[Needs, str | None]:
    """Return what a native graph needs, and why its canary is missing, where it is.

    Args:
        graph: The native graph.
        folder: Where the canary's files are written, named by their content.
        runtime: What the graph was made for; it makes the canary, and says what is right.
    """
    import onnx

    model = onnx.load_model(str(graph.path), format="protobuf", load_external_data=False)
    nodes = [node for node in model.graph.node if _is_internal(node)]
    operators = tuple(sorted({f"{node.domain or 'ai.onnx'}:{node.op_type}" for node in nodes}))
    block = channel_block(runtime) if any(node.domain == DOMAIN for node in nodes) else None
    needs = Needs(block, operators, None)
    try:
        maker = _Maker(graph, model, block, runtime)
        for node in nodes:
            maker.add(node)
        canary, ort_format = maker.write(folder)
    except NoCanaryError as error:
        return needs, str(error)
    return needs._replace(canary=canary, ort_format=ort_format), None


def _is_internal(node: Any) -> bool:
    """Return whether a node's operator is none that ONNX defines."""
    import onnx

    return not onnx.defs.has(node.op_type, "" if node.domain == "ai.onnx" else node.domain)


class _Maker:
    """Collects instances in one graph without inputs, whose values are drawn once for each type, shape and layout."""

    def __init__(self, graph: ModelGraph, model: Any, block: int | None, runtime: GraphRuntime) -> None:
        from onnx import helper

        self._graph, self._model, self._block = graph, model, block
        self._runtime = runtime
        self._opset = next((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), 17)
        self._made = made_weights(model.graph)
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer} | self._made
        self._values: dict[str, Array] = {}  # in their plain order
        self._constants: dict[str, Any] = {}
        self._instances: set[Any] = set()
        self._expected: dict[str, Array] = {}  # of operators in blocks, by the standard ones
        # of a graph of standard operators a canary still tells whether its file format is read
        self._nodes = [helper.make_node("Neg", [self._random((_OPEN,), np.float32)], ["standard"])]
        self._tolerances = {"standard": TOLERANCE}

    def add(self, node: Any) -> None:
        """Add an instance of a node, unless there is an equal one.

        Raises:
            NoCanaryError: If none can be made.
        """
        found = self._add_blocked(node) if node.domain == DOMAIN else self._add_cut_down(node)
        if not found:
            raise NoCanaryError(f"no small instance of {node.domain or 'ai.onnx'}:{node.op_type} can be made")
        if len(self._instances) > MAX_INSTANCES:
            raise NoCanaryError(f"it has more than {MAX_INSTANCES} different operators outside the standard")

    def write(self, folder: Path) -> tuple[Canary, str]:
        """Write the canary; return it, and the version of its file format.

        Raises:
            NoCanaryError: If it is too large, or does not answer what it must.
        """
        with tempfile.TemporaryDirectory(dir=folder, prefix=".canary-") as made:
            path = Path(made) / "canary.ort"
            names = list(self._tolerances)
            try:
                self._runtime.optimize(self._proto(self._nodes, names), path, "none")
                found = dict(zip(names, self._runtime.run(path, names, {}), strict=True))
                repeated = self._runtime.run(path, names, {}, how="packed")
            except Refusal as refused:
                raise NoCanaryError(one_line(refused)) from refused
            data = path.read_bytes()
        for (name, value), again in zip(found.items(), repeated, strict=True):
            for other in (again, self._expected.get(name, again)):
                if other.shape != value.shape or not np.allclose(
                    value, other, rtol=0, atol=max(CHECKED_WITHIN, self._tolerances[name]) * _scale(value)
                ):
                    raise NoCanaryError(f"its operators do not compute what they should ('{name}')")
        bounds = [
            [(value + sign * self._tolerances[name] * _scale(value)).ravel() for name, value in found.items()]
            for sign in (-1, 1)
        ]
        pairs = np.array([np.concatenate(row) for row in bounds], "<f4").tobytes()
        if max(len(data), len(pairs)) > MAX_CANARY_BYTES:
            raise NoCanaryError(f"it would have more than {MAX_CANARY_BYTES} bytes")
        return Canary(_write(folder, "ort", data), _write(folder, "bin", pairs)), format_version(data)

    def _add_blocked(self, node: Any) -> bool:
        """Add an instance of an operator on blocked layouts; return whether there is one."""
        from onnx import helper

        assert self._block is not None  # noqa: S101
        weight = self._weights.get(node.input[1]) if len(node.input) > 1 else None
        filters = None if weight is None else tuple(weight.dims)
        made = blocked.instance(node, attributes(node), filters, self._block)
        if made is None:
            return False
        key = (made.op_type, repr(sorted(made.attributes.items())), made.inputs)
        if key in self._instances:
            return True
        names = ["" if each is None else self._random(each[0], np.float32, each[1]) for each in made.inputs]
        output = f"{made.op_type}{len(self._instances)}"
        values = [self._values[name] if name else None for name in names]
        self._expected[output] = blocked.reference(made, values, self._block, self._opset)
        self._instances.add(key)
        self._nodes.append(helper.make_node(made.op_type, names, [output], domain=DOMAIN, **made.attributes))
        self._tolerances[output] = TOLERANCE
        return True

    def _add_cut_down(self, node: Any) -> bool:
        """Add a node with smaller sizes, the first that the runtime takes; return whether there is one."""
        from onnx import helper

        key = (node.domain, node.op_type, repr(sorted(attributes(node).items())), tuple(map(bool, node.input)))
        if key in self._instances:
            return True
        shapes = {name: self._shape(name) for name in node.input if name}
        if any(shape is None for shape in shapes.values()) or any(True for _ in bodies(node)):
            return False
        known = {name: shape for name, shape in shapes.items() if shape is not None}
        weights = [shape for name, shape in known.items() if name in self._weights]
        for sizes in _smaller(known.values(), weights):
            small = {name: tuple(sizes.get(size, size) for size in shape) for name, shape in known.items()}
            if max(map(math.prod, small.values()), default=0) > MAX_ELEMENTS:  # type: ignore[arg-type]
                continue
            names = [self._value(name, small[name]) if name else "" for name in node.input]
            stem = f"{node.op_type}{len(self._instances)}"
            outputs = [f"{stem}/{place}" if name else "" for place, name in enumerate(node.output)]
            made = helper.make_node(node.op_type, names, outputs, domain=node.domain)
            made.attribute.extend(node.attribute)
            for attribute in made.attribute:
                if attribute.i in sizes:  # it names one of them
                    attribute.i = sizes[attribute.i]
            if self._take(made, [name for name in outputs if name]):
                self._instances.add(key)
                return True
        return False

    def _take(self, node: Any, outputs: list[str]) -> bool:
        """Add a node if it runs, and what it gives could tell right from wrong."""
        import onnx
        from onnx import helper

        try:
            found = self._runtime.run(self._proto([node], outputs), outputs, {})
        except Refusal:
            return False
        if any(value.dtype.kind not in "biuf" or not np.isfinite(value).all() for value in found):
            return False
        if not any(value.size > 1 and np.ptp(value.astype(np.float64)) > 0 for value in found):
            return False
        self._nodes.append(node)
        for name, value in zip(outputs, found, strict=True):
            kept = name
            if value.dtype != np.float32:
                kept = f"{name}/float"
                self._nodes.append(helper.make_node("Cast", [name], [kept], to=onnx.TensorProto.FLOAT))
            self._tolerances[kept] = _tolerance(value)
        return True

    def _shape(self, name: str) -> Shape | None:
        """Return the declared shape of a value or weight; that of a small image where only its layout is unknown."""
        if name in self._weights:
            return tuple(self._weights[name].dims)
        tensor = self._graph.tensors.get(name)
        if tensor is None or tensor.type not in DTYPES:
            return None
        if tensor.shape is None and self._block is not None:
            return (1, self._block, _OPEN, _OPEN)
        return tensor.shape

    def _value(self, name: str, shape: Sequence[Any]) -> str:
        """Return the name of a constant that stands for a value of the graph: the start of a weight, or random."""
        import onnx
        from onnx import numpy_helper

        if name not in self._weights:
            return self._random(shape, np.dtype(DTYPES[self._graph.tensors[name].type]))
        tensor = self._weights[name]
        if name in self._made:
            return self._random(shape, np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)))
        made = f"{name}{list(shape)}"
        if made not in self._constants:
            folder = self._graph.path.parent
            array = read_external(tensor, folder) if is_external(tensor) else numpy_helper.to_array(tensor)
            if tuple(array.shape) != tuple(tensor.dims):  # of a type that numpy lacks
                raise NoCanaryError(f"'{name}' is of a type that numpy lacks")
            part = np.array(array[tuple(slice(size) for size in shape)])
            self._constants[made] = numpy_helper.from_array(part, made)
        return made

    def _random(self, shape: Sequence[int], dtype: type[np.generic] | np.dtype[Any], layout: str = "plain") -> str:
        """Return the name of a constant of this shape: floats about 0, bytes of all values, ones of other types."""
        from onnx import numpy_helper

        kind = np.dtype(dtype)
        name = f"{kind}{list(shape)}{layout}"
        if name not in self._constants:
            rng = np.random.default_rng(len(self._values))
            if kind.kind == "f":
                value = rng.standard_normal(tuple(shape)).astype(kind)
            elif kind.itemsize == 1 and kind.kind in "iu":
                value = _bytes(rng, tuple(shape)).view(kind)
            else:
                value = np.ones(tuple(shape), kind)
            self._values[name] = value
            stored = value if self._block is None else blocked.to_layout(value, layout, self._block)
            self._constants[name] = numpy_helper.from_array(stored, name)
        return name

    def _proto(self, nodes: Sequence[Any], outputs: Iterable[str]) -> Beside:
        """Return some nodes as a model."""
        import onnx

        model = onnx.ModelProto(ir_version=self._model.ir_version, producer_name="splitload")
        model.opset_import.extend(self._model.opset_import)
        model.graph.name = "canary"
        model.graph.node.extend(nodes)
        read = dict.fromkeys(name for node in nodes for name in node.input)
        model.graph.initializer.extend(self._constants[name] for name in read if name in self._constants)
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        return Beside(self._graph.path.parent, model.SerializeToString())


def _smaller(shapes: Iterable[Shape], weights: Iterable[Shape]) -> Iterator[Mapping[Any, int]]:
    """Yield ways to make the sizes of a node smaller; equal ones stay equal, and open ones become small.

    Which relations between sizes an operator wants is not known: first the sizes of weights are divided by a common
    number and the others cut down, the large ones, then those that are not small, then with as few channels as can be;
    then all large ones are divided, then all are cut down, then they stay as they are.
    """
    unknown: dict[Any, int] = {size: _OPEN for shape in shapes for size in shape if not isinstance(size, int)}
    large = {size for shape in shapes for size in shape if isinstance(size, int) and size > _SMALL}
    weighed = {size for shape in weights for size in shape}
    rows = {size for shape in shapes for size in shape if isinstance(size, int) and size > _ROWS} - weighed
    channels = large & weighed
    yield unknown | dict.fromkeys(large, _ROWS) | _divided(channels)
    yield unknown | dict.fromkeys(rows, _ROWS) | _divided(channels)
    yield unknown | dict.fromkeys(rows, _ROWS) | _divided(channels, 1)
    yield unknown | _divided(large)
    yield unknown | dict.fromkeys(large, _SMALL)
    yield unknown


def _divided(sizes: Iterable[Any], least: int = _CHANNELS) -> dict[Any, int]:
    """Return the sizes divided by the largest common number that leaves none of them below `least`."""
    listed = sorted(sizes)
    if not listed:
        return {}
    common = math.gcd(*listed)
    by = max(each for each in range(1, common + 1) if common % each == 0 and listed[0] // each >= least)
    return {size: size // by for size in listed}


def _bytes(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Return bytes of all values, mostly small ones at some places of each axis and large ones at others.

    Averages of equally likely bytes would be equal, and most scales would turn all of them into the largest byte.
    """
    power = np.zeros(shape)
    for axis, size in enumerate(shape):
        power += rng.uniform(-2, 2, size).reshape(-1, *[1] * (len(shape) - axis - 1))
    return (256 * rng.random(shape) ** 2**power).astype(np.uint8)


def _tolerance(value: Array) -> float:
    """Return what an output may differ by, as a part of its largest element."""
    if value.dtype == np.float16:
        return HALF_TOLERANCE
    if value.dtype.kind == "f":
        return TOLERANCE
    return 1 / _scale(value) if value.dtype.itemsize == 1 and value.dtype.kind in "iu" else 0.0  # rounded either way


def _scale(value: Array) -> float:
    return float(np.abs(value.astype(np.float64)).max(initial=0.0)) or 1.0


def _write(folder: Path, suffix: str, data: bytes) -> File:
    sha256 = hashlib.sha256(data).hexdigest()
    file = File(f"canary-{sha256[:12]}.{suffix}", len(data), sha256)
    (folder / file.name).write_bytes(data)
    return file
