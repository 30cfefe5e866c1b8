"""Loads and runs one torch module, in a fresh process.

The module is a plain transformer of any size. Before the clock starts all imports are done, the device is awake, a tiny
module of the same kind has run, and the module stands without memory, as in every arm; then it is loaded and called.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from splitload.measure.job import LoadModule

VOCABULARY = 8192
COPY_BYTES = 256 << 20
STEADY_RUNS = 5


class Transformer(nn.Module):
    """Token numbers to logits of the last token, through layers of torch's own."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, width // 64, 4 * width, activation="gelu", batch_first=True)
            for _ in range(layers)
        )
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits of shape (1, VOCABULARY), for tokens of shape (1, any number)."""
        values = self.embedding(tokens)
        for layer in self.layers:
            values = layer(values)
        logits: torch.Tensor = self.head(values[:, -1])
        return logits


def answer(job: LoadModule, folder: Path) -> dict[str, Any]:
    """Do what a job says: write the files of all arms, measure the copy bandwidth, or load and run."""
    if job.arm == "prepare":
        return _prepare(job, folder)
    device = torch.device(job.device)
    if job.arm == "copy":
        return _copy(device)
    module = _empty(job.layers, job.width, job.dtype)
    tokens = torch.arange(job.tokens, device=device)[None]
    load = ARMS[job.arm](folder, device)
    with torch.device(device), torch.inference_mode():
        Transformer(1, 64).to(getattr(torch, job.dtype)).eval()(tokens).cpu()
    start = time.perf_counter()
    load(module)
    opened = time.perf_counter()
    with torch.inference_mode():
        output = module(tokens).float().cpu()
        first = time.perf_counter()
        steady = []
        for _ in range(STEADY_RUNS):
            before = time.perf_counter()
            module(tokens).cpu()
            steady.append(time.perf_counter() - before)
    return {
        "ttfo_s": first - start,
        "load_s": opened - start,
        "first_inference_s": first - opened,
        "steady_inference_s": statistics.median(steady),
        "output": output[0, :8].tolist(),
    }


def _empty(layers: int, width: int, dtype: str) -> nn.Module:
    with torch.device("meta"):
        return Transformer(layers, width).to(getattr(torch, dtype)).eval()


def _prepare(job: LoadModule, folder: Path) -> dict[str, Any]:
    """Write the same random weights for every arm; return their bytes, and what the device is called."""
    from safetensors.torch import save_model

    import splitload.torch

    torch.manual_seed(0)
    module = Transformer(job.layers, job.width).to(getattr(torch, job.dtype)).eval()
    torch.save(module.state_dict(), folder / "model.pt")
    save_model(module, str(folder / "model.safetensors"))
    splitload.torch.save(module, torch.arange(job.tokens)[None], folder / "model.splitload")
    return {
        "model_bytes": sum(each.nbytes for each in module.parameters()),
        "num_stages": len(list((folder / "model.splitload").glob("*.safetensors"))),
        "gpu": torch.cuda.get_device_name(job.device) if job.device != "cpu" else None,
    }


def _copy(device: torch.device) -> dict[str, Any]:
    """Return how many bytes a second memory takes, on a GPU from pinned memory: the best of several copies."""
    source = torch.zeros(COPY_BYTES, dtype=torch.uint8, pin_memory=device.type == "cuda")
    target = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device)
    best = float("inf")
    for _ in range(10):
        before = time.perf_counter()
        target.copy_(source, non_blocking=True)
        target[-1].item()  # which waits for the copy
        best = min(best, time.perf_counter() - before)
    return {"bytes_per_s": COPY_BYTES / best}


def _splitload(folder: Path, device: torch.device) -> Callable[[nn.Module], None]:
    import splitload.torch

    def load(module: nn.Module) -> None:
        splitload.torch.load(module, folder / "model.splitload", device=device)

    return load


def _torch(mmap: bool) -> Callable[[Path, torch.device], Callable[[nn.Module], None]]:
    def prepared(folder: Path, device: torch.device) -> Callable[[nn.Module], None]:
        def load(module: nn.Module) -> None:
            state = torch.load(folder / "model.pt", weights_only=True, map_location=device, mmap=mmap)
            module.load_state_dict(state, assign=True)

        return load

    return prepared


def _safetensors(folder: Path, device: torch.device) -> Callable[[nn.Module], None]:
    from safetensors.torch import load_file

    def load(module: nn.Module) -> None:
        state = load_file(folder / "model.safetensors", device=str(device))
        tied = {"head.weight", "embedding.weight"}  # of which the file holds one
        state |= {name: state[kept] for kept in tied & state.keys() for name in tied}
        module.load_state_dict(state, assign=True)

    return load


ARMS: dict[str, Callable[[Path, torch.device], Callable[[nn.Module], None]]] = {
    "splitload": _splitload,
    "torch.load": _torch(mmap=False),
    "torch.load-mmap": _torch(mmap=True),
    "safetensors": _safetensors,
}
