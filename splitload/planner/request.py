"""What `splitload train` and `splitload.from_torch` ask for: each setting once, with its default and its help."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from splitload.base import words
from splitload.base.errors import UsageError
from splitload.base.sizes import read_residency
from splitload.devices.pairing import paired
from splitload.plan.ceiling import most_of_a_weight
from splitload.plan.graph import DEFAULT_MAX_BLOCKS
from splitload.plan.objectives import DEFAULT_OBJECTIVE, OBJECTIVES
from splitload.planner.agents import AGENTS, DEFAULT_AGENT, LEARNERS, SEEDED


@dataclass(frozen=True, slots=True)
class Setting:
    """How a setting is given on a command line.

    Attributes:
        flags: Its options; none for the model, which stands alone.
        help: What it is, as argparse takes it.
        metavar: What stands for its value in the help; None for its name.
        read: Returns the value that a word says, or raises ValueError.
    """

    flags: tuple[str, ...]
    help: str
    metavar: str | None
    read: Callable[[str], Any]

    @property
    def name(self) -> str:
        """What messages call it."""
        return "/".join(self.flags) or str(self.metavar)


def _setting(
    *flags: str, text: str, default: Any = MISSING, metavar: str | None = None, read: Callable[[str], Any] = str
) -> Any:
    """Return the field of a setting."""
    return field(default=default, metadata={"setting": Setting(flags, text, metavar, read)})


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRequest:
    """Everything that a search and a build need.

    What a setting is and may be is said by its `Setting`, see `SETTINGS`; the other fields are arrays and places.

    Attributes:
        cache: The user's cache folder.
        feeds: Values of inputs, by their names; what is missing is made up.
        feed_words: The words of `--input` that the feeds were read from, for the command that goes on after an
            interrupt.

    Raises:
        UsageError: If a setting is not what it may be, or two do not fit each other.
    """

    model: str = _setting(
        text=".onnx file, zoo:NAME or package.module:factory", default="zoo:mobilenet_v1", metavar="MODEL"
    )
    max_blocks: int = _setting(
        "--max-blocks",
        text="divide the model into at most this many blocks (default: %(default)s)",
        default=DEFAULT_MAX_BLOCKS,
        metavar="N",
        read=words.at_least_one,
    )
    device: str = _setting(
        "--device",
        text="host, a simulated device's name (see 'splitload devices'), the address of a device on which 'splitload "
        "serve' runs, or a file",
    )
    page_cache: Literal["warm", "cold"] = _setting(
        "--page-cache",
        text="warm, or cold: what a process loads is evicted from the page cache before it begins, as after a restart "
        "of the device (default: %(default)s)",
        default="warm",
        metavar="STATE",
        read=words.one_of("state", ("warm", "cold")),
    )
    output: str | None = _setting(
        "-o", "--output", text="where the bundle goes (default: NAME.splitload)", default=None, metavar="BUNDLE"
    )
    agent: str = _setting(
        "--agent",
        text=f"who searches: {', '.join(AGENTS)}; best: q-learning, and the best plan known is taken, whoever found it "
        "(default: %(default)s)",
        default=DEFAULT_AGENT,
        metavar="AGENT",
        read=words.one_of("agent", tuple(AGENTS)),
    )
    objective: str = _setting(
        "--objective",
        text=f"{'; '.join(f'{name}: {each.wish}' for name, each in OBJECTIVES.items())} (default: %(default)s)",
        default=DEFAULT_OBJECTIVE,
        metavar="OBJECTIVE",
        read=words.one_of("objective", tuple(OBJECTIVES)),
    )
    episodes: int | None = _setting(
        "--episodes",
        text="most episodes in all (default: agent's rule)",
        default=None,
        metavar="N",
        read=words.at_least_one,
    )
    seed: int = _setting("--seed", text="seed of the search (default: %(default)s)", default=0, read=words.count)
    seeds: int = _setting(
        "--seeds",
        text="search with N seeds from --seed on, and take the best plan (default: %(default)s)",
        default=1,
        metavar="N",
        read=words.at_least_one,
    )
    jobs: int | None = _setting(
        "--jobs",
        text="searches at a time (default: one for each available thread)",
        default=None,
        metavar="J",
        read=words.at_least_one,
    )
    cluster: str | None = _setting(
        "--cluster",
        text="search on the workers of this Dask cluster, which is trusted",
        default=None,
        metavar="tcp://HOST:PORT",
    )
    max_stages: int | None = _setting(
        "--max-stages",
        text="the most stages (default: 8, or 16 where so many promise a twentieth)",
        default=None,
        metavar="K",
        read=words.at_least_one,
    )
    residency: Literal["stage"] | int | None = _setting(
        "--residency",
        text="how much may be in memory at a time: all, stage (the weights of one) or a ceiling for everything such as "
        "48MB; plans fit under it, and weights are mapped from their file (default: all)",
        default=None,
        metavar="SIZE",
        read=read_residency,
    )
    crowd: str | None = _setting(
        "--crowd",
        text="plan for the crowd of workers in this file, for --objective latency or throughput; --device is what "
        "their speeds are of",
        default=None,
        metavar="CROWD.toml",
    )
    budget: int | None = _setting(
        "--budget",
        text="search with at most N measured stage loads, in place of a profile of every block (where a device "
        "measures); what is measured of the plan that was found comes on top",
        default=None,
        metavar="N",
        read=words.at_least_one,
    )
    trainable: str | None = _setting(
        "--trainable",
        text="layers that stay together in the last stage: a count of last layers, or a pattern of their names",
        default=None,
        metavar="SPEC",
    )
    new_head: int | None = _setting(
        "--new-head",
        text="replace the last linear layer by a fresh one of so many classes, to be trained on the device; without "
        "--trainable it alone is trainable",
        default=None,
        metavar="CLASSES",
        read=words.at_least_one,
    )
    split_points: tuple[int, ...] | None = _setting(
        "--split-points",
        text="build this plan instead of searching: the ends of all stages but the last, in blocks",
        default=None,
        metavar="P,P,...",
        read=words.split_points,
    )
    checkpoint: str | None = _setting(
        "--checkpoint",
        text="keep the search in FILE, Q-table and all, and go on with what it holds; by default an interrupted search "
        "is kept in the cache, for the same command to resume. With several seeds none is kept",
        default=None,
        metavar="FILE",
    )
    curve: str | None = _setting(
        "--curve",
        text="write the learning curve: each episode's return, and the best value so far",
        default=None,
        metavar="FILE.csv",
    )
    cache: Path
    feeds: Mapping[str, Any] = field(default_factory=dict, compare=False)
    feed_words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for each in fields(self):
            if (setting := each.metadata.get("setting")) is not None:
                object.__setattr__(self, each.name, _read(setting, getattr(self, each.name), each.default))
        object.__setattr__(self, "device", paired(self.device, self.cache))
        _check(self)

    @property
    def target(self) -> Path:
        """Where the bundle goes."""
        return Path(self.output or f"{_stem(self.model)}.splitload")

    @property
    def ceiling_bytes(self) -> int | None:
        """The most that may be in memory at a time; None where no size limits it."""
        return self.residency if isinstance(self.residency, int) else None

    @property
    def max_weight_bytes(self) -> int | None:
        """The most bytes of one weight, see `most_of_a_weight`; None where no size limits memory."""
        return most_of_a_weight(self.residency)

    @property
    def limits_memory(self) -> bool:
        """Whether not all of the model may be in memory at a time."""
        return self.residency is not None or self.crowd is not None

    @property
    def trained(self) -> str | None:
        """The layers that are trained; of a fresh last layer that alone, unless others are named."""
        return "1" if self.trainable is None and self.new_head is not None else self.trainable


SETTINGS: Mapping[str, Setting] = {
    each.name: each.metadata["setting"] for each in fields(TrainRequest) if "setting" in each.metadata
}
DEFAULTS: Mapping[str, Any] = {
    each.name: each.default for each in fields(TrainRequest) if each.name in SETTINGS and each.default is not MISSING
}


def _read(setting: Setting, value: Any, default: Any) -> Any:
    """Return a setting's value, as the word that says it on a command line would be read.

    Raises:
        UsageError: If no such value can be given.
    """
    see = "(see 'splitload train --help')"
    if value is None and default is not None:
        raise UsageError(f"the following arguments are required: {setting.name} {see}")
    if value is None:
        return None
    numbers = value if isinstance(value, list | tuple) else [value]
    if not (isinstance(value, str) or all(isinstance(number, int | float) for number in numbers)):
        raise UsageError(f"argument {setting.name}: it takes text or numbers, not {value!r} {see}")
    try:
        return setting.read(value if isinstance(value, str) else ",".join(map(str, numbers)))
    except ValueError as error:
        raise UsageError(f"argument {setting.name}: {error} {see}") from error


def _check(request: TrainRequest) -> None:
    """Raise `UsageError` where settings do not fit each other."""
    if request.output == "":
        raise UsageError("-o needs a name, for example -o model.splitload")
    if request.trained is not None and request.max_stages == 1:
        raise UsageError("--trainable needs two stages, one frozen and one trained; give --max-stages 2 or more")
    _check_seeds(request)
    _check_crowd(request)
    if request.budget is not None:
        for what, given in (
            ("--split-points", request.split_points is not None),
            ("--seeds", request.seeds > 1),
            ("--checkpoint", request.checkpoint is not None),
            ("--curve", request.curve is not None),
        ):
            if given:
                raise UsageError(f"--budget searches anew after each measurement: leave out {what} or --budget")
    for what, file in (("checkpoint", request.checkpoint), ("curve", request.curve)):
        if file is not None:
            _check_file(request, what, file)
    files = [Path(file).absolute() for file in (request.checkpoint, request.curve) if file is not None]
    if len(set(files)) < len(files):
        raise UsageError(f"--curve and --checkpoint are both '{request.curve}'; give one of them another name")


def _check_crowd(request: TrainRequest) -> None:
    """Raise `UsageError` where `--crowd` and the rest do not fit each other."""
    of_crowd = [name for name, each in OBJECTIVES.items() if each.of_crowd]
    if request.crowd is None:
        if request.objective in of_crowd:
            raise UsageError(f"--objective {request.objective} is of a crowd: give --crowd CROWD.toml as well")
        return
    if request.objective not in of_crowd:
        raise UsageError(f"--crowd needs --objective {' or '.join(of_crowd)}, not '{request.objective}'")
    for what, given, why in (
        ("--residency", request.residency is not None, "says how much memory there is"),
        ("--budget", request.budget is not None, "is not planned for by measured loads"),
        ("--trainable", request.trainable is not None, "trains nothing"),
        ("--new-head", request.new_head is not None, "trains nothing"),
    ):
        if given:
            raise UsageError(f"a crowd {why}: leave out {what} or --crowd")


def _check_seeds(request: TrainRequest) -> None:
    """Raise `UsageError` where `--seeds`, `--jobs` and `--cluster` do not fit each other or the rest."""
    if request.seeds == 1:
        if request.jobs is not None or request.cluster is not None:
            raise UsageError("--jobs and --cluster share out the searches of several seeds: give --seeds as well")
        return
    if request.split_points is not None:
        raise UsageError("--seeds searches, and --split-points gives a plan: leave one of them out")
    if request.agent not in SEEDED:
        raise UsageError(f"--seeds: '{request.agent}' finds the same for every seed; others do for {', '.join(SEEDED)}")
    if request.cluster is not None and request.jobs is not None:
        raise UsageError("give --jobs or --cluster, not both: a cluster runs as many searches as it can")


def _check_file(request: TrainRequest, what: str, file: str) -> None:
    """Raise `UsageError` where a search writes no such file, or not there."""
    if file == "":
        raise UsageError(f"--{what} needs a name")
    if request.split_points is not None:
        raise UsageError(f"--{what} is of a search, and with --split-points there is none")
    if request.agent not in LEARNERS:
        learners = " or ".join(LEARNERS)
        raise UsageError(f"--{what} is of an agent that learns, {learners}; {request.agent} does not")
    if request.seeds > 1:
        raise UsageError(f"--{what} is of one search, and --seeds makes {request.seeds}: leave one of them out")
    if Path(file).absolute() == request.target.absolute():
        raise UsageError(f"--{what} '{file}' is where the bundle goes; give it another name")


def _stem(model: str) -> str:
    """Return a file name for a MODEL word."""
    if model.startswith("zoo:"):
        return model.removeprefix("zoo:")
    path = Path(model)
    return path.stem if path.suffix == ".onnx" else re.sub(r"[^A-Za-z0-9._-]", "-", model.rpartition(":")[2])
