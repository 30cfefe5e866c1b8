"""One model out of the stages of a bundle, as it was before it was cut."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from splitload.base.errors import BundleError, ModelError
from splitload.bundle.manifest import Manifest
from splitload.graphs.names import rename_uses
from splitload.graphs.observe import elem_type
from splitload.graphs.proto import external_entry, external_files, is_external


def join_portable(bundle: Path, manifest: Manifest, folder: Path) -> tuple[Path, str]:
    """Write a bundle's portable graph as one .onnx file, its weights linked beside it.

    Args:
        bundle: The bundle.
        manifest: What it says.
        folder: Where the file and the links go.

    Returns:
        The file, and its identity: a hash of the files it is made of, not what the manifest claims, since what is
        optimised from it is kept in the user's cache.

    Raises:
        BundleError: If the graph cannot be read, or its weights lie outside the bundle.
    """
    from google.protobuf.message import DecodeError

    stages = manifest.variants[-1].stages
    names = {file.name for stage in stages for file in (stage.graph, stage.weights) if file is not None}
    names.update(name for stage in stages for name in stage.shares)
    for name in names:
        file = (bundle / name).resolve()
        try:
            (folder / name).hardlink_to(file)
        except OSError:  # a file system without links
            shutil.copyfile(file, folder / name)
    path = folder / ".joined.onnx"  # no name that a bundle's file may have
    try:
        model = join_stages([folder / stage.graph.name for stage in stages], manifest)
        data = model.SerializeToString(deterministic=True)
        path.write_bytes(data)
        external_files(model, path)  # refuses weights outside the folder
    except (DecodeError, ModelError) as error:
        raise BundleError(f"the portable graph of '{bundle}' cannot be read: {error}") from error
    hashes = sorted((file.name, file.sha256) for file in manifest.files() if file.name in names)
    identity = hashlib.sha256(data + repr(hashes).encode()).hexdigest()
    return path, identity


def join_stages(paths: Iterable[Path], manifest: Manifest) -> Any:
    """Return the model that consecutive .onnx stages make together; their weights stay where they are.

    Args:
        paths: The stages' files, in order.
        manifest: Names the inputs and outputs of the model.
    """
    import onnx

    stages = [onnx.load_model(str(path), format="protobuf", load_external_data=False) for path in paths]
    model = onnx.ModelProto(ir_version=stages[0].ir_version, producer_name="splitload")
    model.opset_import.extend(stages[0].opset_import)
    model.functions.extend(stages[0].functions)
    model.graph.name = manifest.model.encode("utf-8", "replace").decode()  # JSON holds what is no text, too
    declared: dict[str, Any] = {}
    places: dict[tuple[Any, ...], str] = {}
    seen: set[str] = set()  # constants are repeated in every stage that needs them
    for stage in stages:
        _read_at_one_place(stage.graph, places)
        for value in (*stage.graph.input, *stage.graph.output):
            declared.setdefault(value.name, value)
        for node in stage.graph.node:
            if not seen.intersection(node.output):
                model.graph.node.append(node)
                seen.update(name for name in node.output if name)
        for tensor in stage.graph.initializer:
            if tensor.name not in seen:
                model.graph.initializer.append(tensor)
                seen.add(tensor.name)
        for sparse in stage.graph.sparse_initializer:
            if sparse.values.name not in seen:
                model.graph.sparse_initializer.append(sparse)
                seen.add(sparse.values.name)
    for values, specs in ((model.graph.input, manifest.inputs), (model.graph.output, manifest.outputs)):
        values.extend(
            declared.get(spec.name) or onnx.helper.make_tensor_value_info(spec.name, elem_type(spec.type), spec.shape)
            for spec in specs
        )
    return model


def _read_at_one_place(graph: Any, places: dict[tuple[Any, ...], str]) -> None:
    """Have the nodes of a stage call a weight that an earlier stage reads at the same place as that one does.

    Args:
        graph: The stage.
        places: Names of weights by their place; those of this stage are added.
    """
    names = {}
    for tensor in graph.initializer:
        if is_external(tensor):
            place = (*external_entry(tensor), tensor.data_type, *tensor.dims)
            if (known := places.setdefault(place, tensor.name)) != tensor.name:
                names[tensor.name] = known
    rename_uses(graph, names)
    kept = [tensor for tensor in graph.initializer if tensor.name not in names]
    del graph.initializer[:]
    graph.initializer.extend(kept)
