"""The programs of the study of whole processes: what a user would write to get a first answer in each way.

Each is the text of a file that a fresh process runs. The programs of whole processes import what the load call needs
first, and read their inputs after it, as a program does that wants to answer soon; numpy is imported where it is first
needed. Those of the time to first output import everything and read their inputs before the clock starts. What an
import has begun on another thread counts as far as it is not done by then; a third program sleeps 0.2 s first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from splitload.base.errors import UsageError
from splitload.measure.__main__ import STEADY_RUNS, STEADY_S, UNMEASURED_RUNS
from splitload.runtime.capi.elements import BY_TYPE

NUMBERS = 1000  # of the first output that are printed

WHOLE = """\
import time
{first}
{load}
{later}
feeds = {feeds}
outputs = {run}
answered_s = time.monotonic()
with open("/proc/self/status") as status:
    peak_kib = next(line.split()[1] for line in status if line.startswith("VmHWM:"))
print(answered_s, peak_kib)
print(*map(float, {numbers}[:{count}]))
"""

FIRST_OUTPUT = """\
import time
{later}
feeds = {feeds}
{ahead}
{first}
{until}
start_s = time.perf_counter()
{load}
outputs = {run}
ttfo_s = time.perf_counter() - start_s
{settle}
for _ in range({unmeasured}):
    {run}
steady_s, began_s = [], time.perf_counter()
while len(steady_s) < {steady_runs} and time.perf_counter() - began_s < {steady_s}:
    start_s = time.perf_counter()
    {run}
    steady_s.append(time.perf_counter() - start_s)
print(ttfo_s, *steady_s)
print(*map(float, {numbers}[:{count}]))
"""

# What starts quickly, and what it starts beside; the loader's import is all that a user of it knows of.
START = """\
import time
start_s = time.perf_counter()
import splitload
import_s = time.perf_counter() - start_s
import sys
heavy = [name for name in ("numpy", "onnxruntime") if name in sys.modules]
start_s = time.perf_counter()
from splitload import ParallelLoader
print(import_s, time.perf_counter() - start_s, *heavy)
"""

# Importing onnxruntime sets it up; importing the loader begins to, on a thread of its own, in some 20 ms.
_UNTIL_SETTLED = "time.sleep(0.2)"
_NUMPY, _RUNTIME, _LOADER = "import numpy as np", "import onnxruntime as ort", "from splitload import ParallelLoader"
_STOCK = 'session = ort.InferenceSession({path}, providers=["CPUExecutionProvider"])'
_TUNED = """\
ort.set_global_thread_pool_sizes(0, 1)
options = ort.SessionOptions()
options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
options.use_per_session_threads = False
options.add_session_config_entry("session.disable_prepacking", "1")
session = ort.InferenceSession({path}, options, providers=["CPUExecutionProvider"])"""


@dataclass(frozen=True, slots=True)
class Way:
    """How a program of an arm is written.

    Attributes:
        first: What is imported before the load call.
        load: The load call, which has `path`.
        later: What the inputs need, imported after the load call of a whole process.
        ahead: What else is imported before the clock of the time to first output starts.
        run: The call that answers.
        settle: What is called before the steady inferences; the arms of splitload have something to wait for.
        arrays: "numpy" or "buffers", the form of what goes in and comes out.
    """

    first: str
    load: str
    later: str = ""
    ahead: str = ""
    run: str = "session.run(None, feeds)"
    settle: str = ""
    arrays: str = "numpy"

    def whole(self, path: Path, inputs: Mapping[str, Input]) -> str:
        """Return the program whose whole process counts; it prints the moment of the first output, and memory."""
        return WHOLE.format(**self._common(path, inputs))

    def first_output(self, path: Path, inputs: Mapping[str, Input]) -> str:
        """Return the program that prints the time to first output, and the seconds of later inferences."""
        return FIRST_OUTPUT.format(
            ahead=self.ahead, until="", settle=self.settle, unmeasured=UNMEASURED_RUNS, steady_runs=STEADY_RUNS,
            steady_s=STEADY_S, **self._common(path, inputs),
        )  # fmt: skip

    def settled_first_output(self, path: Path, inputs: Mapping[str, Input]) -> str | None:
        """Return the program whose clock starts once what the imports began is done; None where they begin nothing."""
        if not self.settle:
            return None
        return FIRST_OUTPUT.format(
            ahead=self.ahead, until=_UNTIL_SETTLED, settle="", unmeasured=0, steady_runs=0, steady_s=0,
            **self._common(path, inputs),
        )  # fmt: skip

    def _common(self, path: Path, inputs: Mapping[str, Input]) -> dict[str, str | int]:
        is_numpy = self.arrays == "numpy"
        feeds = (f"{name!r}: {given.array() if is_numpy else given.view()}" for name, given in inputs.items())
        return {
            "first": self.first,
            "later": self.later,
            "load": self.load.format(path=repr(str(path))),
            "feeds": f"{{{', '.join(feeds)}}}",
            "run": self.run,
            "numbers": "outputs[0].ravel()" if is_numpy else "outputs[0].numbers()",
            "count": NUMBERS,
        }


@dataclass(frozen=True, slots=True)
class Input:
    """An input of the model, in two files.

    Attributes:
        type: onnxruntime's word, for example "tensor(float)".
        shape: Its sizes.
        npy: What `numpy.save` wrote.
        raw: Its bytes alone.
    """

    type: str
    shape: Sequence[int]
    npy: Path
    raw: Path

    def array(self) -> str:
        """Return the expression that reads it with numpy."""
        return f"np.load({str(self.npy)!r})"

    def view(self) -> str:
        """Return the expression that reads it without numpy.

        Raises:
            UsageError: If Python has no buffers of its type.
        """
        element = BY_TYPE.get(self.type)
        if element is None or element.format in ("", "e"):
            raise UsageError(f"an input is a {self.type}, of which Python makes no buffer without numpy")
        return f"memoryview(open({str(self.raw)!r}, 'rb').read()).cast({element.format!r}, {list(self.shape)})"


def _loader(arrays: str, ahead: str = "") -> Way:
    """Return the way of a loader."""
    given = "" if arrays == "numpy" else f", arrays={arrays!r}"
    return Way(
        _LOADER,
        f"model = ParallelLoader({{path}}{given})",
        _NUMPY if arrays == "numpy" else "",
        ahead,
        "model.run(None, feeds)",
        "model.wait('upgraded')",
        arrays,
    )


WAYS = {
    "stock": Way(_RUNTIME, _STOCK, _NUMPY),  # which imports numpy itself
    "tuned": Way(_RUNTIME, _TUNED, _NUMPY),
    "before": _loader("numpy", "import onnxruntime"),  # as it used that module, and set it up beside its own imports
    "splitload": _loader("numpy"),
    "splitload-buffers": _loader("buffers"),
}
