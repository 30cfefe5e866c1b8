"""The bundle of a torch module, version 2: its manifest, its checks, and how a stage's file is laid out.

A stage is one .safetensors file that anyone can read; no file is code, and none is a pickle. The manifest says where in
it each tensor begins, so that loading parses no other header. Tensors stand in the order of their first use, each on 64
bytes where the ones before allow it: sizes that 64 does not divide come last, wider elements first.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from splitload.base.errors import BundleError, OutputError
from splitload.base.fields import Reader, is_count
from splitload.base.pieces import PIECE_BYTES
from splitload.base.record import Record
from splitload.base.sealed import seal
from splitload.bundle.manifest import MANIFEST, File, to_json
from splitload.bundle.manifest import TORCH_FORMAT as FORMAT
from splitload.bundle.read import Verify, check_files, checked, read_json
from splitload.bundle.replace import check_place
from splitload.bundle.validate import MAX_STAGES, file_entry, own_hash

VERSION = 2  # what is written
READABLE = (1, 2)  # what is read, for ever; version 1 has no hash of the manifest itself
ALIGNMENT = 64  # bytes; what vector instructions and GPU kernels ask for at most
MAX_DIMENSIONS = 64  # torch's own limit
# What safetensors calls torch's types. Quantised, complex and sparse tensors have no place in it, or none here.
WORDS = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.int64: "I64", torch.int32: "I32",
    torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in WORDS}


class TensorEntry(Record):
    """A tensor of a stage.

    Attributes:
        names: Where it stands in the module, "layer1.0.weight" say; more than one where it is tied or shared.
        parameter: Whether it is a parameter; a buffer otherwise.
        dtype: torch's word, for example "bfloat16".
        shape: Its size; its elements are in C order.
        offset: Where it begins in the stage's file, in bytes.
    """

    names: tuple[str, ...]
    parameter: bool
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type as torch has it."""
        return _DTYPES[self.dtype]

    @property
    def size_bytes(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * self.torch_dtype.itemsize


class TorchStage(Record):
    """A stage: tensors that are loaded together.

    Attributes:
        name: The module that it begins with, for people.
        file: Its .safetensors file.
        tensors: In the order in which the file holds them.
    """

    name: str
    file: File
    tensors: tuple[TensorEntry, ...]


class TorchManifest(Record):
    """What `manifest.json` says.

    Attributes:
        module: Name of the module's class, for people.
        created_with: Versions of what made the bundle.
        stages: In the order of their first use.
    """

    module: str
    created_with: Mapping[str, str]
    stages: tuple[TorchStage, ...]

    def files(self) -> Iterator[File]:
        """Yield the file of every stage."""
        return (stage.file for stage in self.stages)


def check_target(target: Path) -> None:
    """Make sure that a torch bundle may be written at `target`: nothing is there, or one.

    Raises:
        OutputError: If something else is there, or its folder cannot be written to.
    """
    check_place(target, FORMAT)


def read_manifest(folder: Path, verify: Verify = "sizes") -> TorchManifest:
    """Read and check a bundle.

    Args:
        folder: The bundle.
        verify: "none" checks the manifest only, and that no file blocks who opens it; "sizes" that every file is there
            and as long as it should be, "hashes" every byte.

    Raises:
        BundleError: If anything is amiss.
    """
    cure = "'splitload.torch.save(module, example_inputs, bundle)' makes one"
    manifest = checked(folder, read_json(folder, cure, verify), validate)
    check_files(folder, manifest, verify)
    return manifest


def write_manifest(folder: Path, manifest: TorchManifest) -> None:
    """Write `manifest.json`, after checking that it can be read back."""
    text = json.dumps({"format": FORMAT, "version": VERSION, **to_json(manifest)}, indent=1)
    validate(json.loads(text))
    (folder / MANIFEST).write_text(seal(text), encoding="utf-8")


def validate(data: Any) -> TorchManifest:
    """Check parsed JSON against the whole format and return the manifest.

    Raises:
        BundleError: With the first thing that is wrong and where.
    """
    top = Reader(data, "manifest")
    if top.data.get("format") != FORMAT:
        raise BundleError(
            f"the manifest is not a torch bundle's: format is {top.data.get('format')!r}, expected '{FORMAT}'; "
            "splitload.ParallelLoader loads the other kind"
        )
    if not is_count(top.data.get("version")) or top.data["version"] not in READABLE:
        raise BundleError(
            f"the bundle has version {top.data.get('version')!r}, this splitload reads versions "
            f"{' and '.join(map(str, READABLE))}; make it again or update splitload"
        )
    top.only("format", "version", *own_hash(top), *TorchManifest._fields)
    manifest = TorchManifest(
        module=top.text("module"),
        created_with={key: str(value) for key, value in top.mapping("created_with").items()},
        stages=tuple(_stage(item) for item in top.items("stages", at_least=1, at_most=MAX_STAGES)),
    )
    known: set[str] = set()
    for stage in manifest.stages:
        for name in (name for tensor in stage.tensors for name in tensor.names):
            if name in known:
                raise BundleError(f"manifest.stages: '{name}' is there twice")
            known.add(name)
    return manifest


def _stage(reader: Reader) -> TorchStage:
    reader.only(*TorchStage._fields)
    file = file_entry(reader.child("file"))
    tensors = tuple(_tensor(item) for item in reader.items("tensors", at_least=1))
    end = 0
    for tensor in sorted(tensors, key=lambda each: (each.offset, each.size_bytes)):
        if tensor.offset < end:
            raise BundleError(f"{reader.where}: '{tensor.names[0]}' begins inside the tensor before it")
        end = tensor.offset + tensor.size_bytes
    if end > file.bytes:
        raise BundleError(f"{reader.where}: its tensors end at byte {end}, its file has {file.bytes}")
    return TorchStage(reader.text("name"), file, tensors)


def _tensor(reader: Reader) -> TensorEntry:
    reader.only(*TensorEntry._fields)
    names, shape = reader.sequence("names"), reader.sequence("shape")
    if not names or not all(isinstance(name, str) and name for name in names):
        raise BundleError(f"{reader.where}.names must be one or more names, it is {names!r}")
    if len(shape) > MAX_DIMENSIONS or not all(is_count(size) for size in shape):
        raise BundleError(f"{reader.where}.shape must be sizes, it is {shape!r:.200}")
    dtype = reader.choice("dtype", *_DTYPES)
    tensor = TensorEntry(tuple(names), reader.flag("parameter"), dtype, tuple(shape), reader.count("offset"))
    if tensor.offset % tensor.torch_dtype.itemsize:
        raise BundleError(f"{reader.where}.offset {tensor.offset} is not where a {dtype} can begin")
    return tensor


def write_stage(
    folder: Path, stem: str, tensors: Sequence[tuple[tuple[str, ...], torch.Tensor]]
) -> tuple[File, tuple[TensorEntry, ...]]:
    """Write the file of a stage, named with the start of its hash.

    Args:
        folder: Where to.
        stem: Start of its name.
        tensors: Each tensor and its names, in the order of their first use; the first name is the one in the file.

    Returns:
        The file, and its tensors in the order in which it holds them.

    Raises:
        OutputError: If it cannot be written.
    """
    laid = sorted(  # stable: what 64 divides stays in the order of use
        tensors,
        key=lambda each: (each[1].nbytes % ALIGNMENT != 0, -each[1].itemsize if each[1].nbytes % ALIGNMENT else 0),
    )
    header: dict[str, Any] = {}
    end = 0
    for (name, *_), tensor in laid:
        header[name] = {
            "dtype": WORDS[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.nbytes],
        }
        end += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    digest = hashlib.sha256()
    unnamed = folder / f"{stem}.safetensors"
    try:
        with unnamed.open("xb", PIECE_BYTES) as file:
            for data in chain[Any](
                [len(text).to_bytes(8, "little") + text], (as_bytes(tensor).cpu().numpy() for _, tensor in laid)
            ):
                file.write(data)
                digest.update(data)
            size = file.tell()
        sha256 = digest.hexdigest()
        named = unnamed.rename(folder / f"{stem}-{sha256[:12]}.safetensors")
    except OSError as error:
        raise OutputError(f"cannot write '{unnamed.name}': {error.strerror or error}") from error
    start = 8 + len(text)
    entries = tuple(
        TensorEntry(
            names,
            isinstance(tensor, torch.nn.Parameter),
            str(tensor.dtype).removeprefix("torch."),
            tuple(tensor.shape),
            start + header[names[0]]["data_offsets"][0],
        )
        for names, tensor in laid
    )
    return File(named.name, size, sha256), entries


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor's elements in C order as a row of bytes, on its device."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
