"""ParallelLoader: loads the stages of a bundle on a thread pool, and infers through those that are there."""

from __future__ import annotations

import _thread
import os
import time

from splitload.base.errors import StageError, UsageError
from splitload.base.machine import available_threads
from splitload.bundle.manifest import DEFAULT_TAIL, Manifest, Variant
from splitload.bundle.read import Verify
from splitload.runtime.capi.tensor import in_form
from splitload.runtime.drop_in import DropIn
from splitload.runtime.engine import check_engine, chosen, python_engine
from splitload.runtime.feeds import answered, checked
from splitload.runtime.forks import keep_for_good
from splitload.runtime.opening import LoadingParts, StageFiles, StageOpener, contents
from splitload.runtime.options import CallerOptions, check_arguments, waited_for
from splitload.runtime.ordered import OrderedLoading, enlist
from splitload.runtime.staged import Staged
from splitload.runtime.variants import choose, likely, remember, warn_once

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any, ClassVar, Literal

    from splitload.plan.schedule import Schedule  # importing it costs a loader 0.5 ms
    from splitload.runtime.background import Specializer
    from splitload.runtime.engine import Engine, EngineName


class ParallelLoader(DropIn):
    """A model that answers while it loads; a drop-in for `onnxruntime.InferenceSession`, see `docs/drop-in.md`.

    Returns at once. `threads` stages load at a time, in order; with fewer stages than threads all load at
    the same time, otherwise the rest wait their turn while loaded stages infer (Algorithm 2). They load on one pool of
    threads for all models of the process, which take turns there. `run` waits for each
    stage only when it gets there. May be called from many threads at any time. The first stage that fails cancels
    the rest, and its error is what every call raises. What is still open when the interpreter exits is closed then.
    A forked child that uses an inherited loader loads the bundle anew, at the first use, and nothing of the parent's.

    Args:
        bundle: The `NAME.splitload` folder.
        sess_options: An `onnxruntime.SessionOptions`; what it says of threads holds for every stage.
        providers: Execution providers, the processor among them; None for the processor.
        provider_options: Their options.
        threads: How many stages load at a time, at least 1; None takes the bundle's execution scheme, but no more than
            the process has processors.
        overlap: Whether inference may start before all stages are loaded; False waits for all.
        verify: What is checked first: "none", "sizes" or "hashes" of the files. The last reads every byte; with the
            others a weight that was changed in place goes unnoticed, unless `splitload verify` has been run.
        tail: Name of the personalized last stage to load; None for the one it was built with, which is loaded as well
            where the default one was not made yet.
        frozen_only: Whether to leave the last stage, which is trained, out: what it reads is the output then.
        upgrade: Whether stages whose entry says that it pays are made anew after the first answer, in the background
            with weights rearranged for speed, and swapped in one by one; a run under way may use some of both. Nothing
            of the old ones stays in memory. Without, a portable stage stays as it is first, up to twice as slow.
        on_progress: Called as `on_progress(stages_loaded, num_stages)` after each stage, from the thread that loaded
            it: one of the pool, perhaps two at once, or with a single stage the one that calls `run`. It must not wait
            for a model. If it raises, `threading.excepthook` reports that, loading goes on, and it is not called again;
            an interrupt of the main thread meanwhile ends `run`.
        specialize: "background" makes a native variant for this machine after the first answer, where only the portable
            one runs, for the next start that asks for it too; see `background.py`.
        engine: What loads and runs the stages: "library", onnxruntime's C library, for which neither its Python module
            nor numpy is imported; "python", that module; or "auto", the C library, unless the module is imported
            already, an argument is an object of the module's, the model has other things than tensors of numbers, or
            there is no C library. With "auto" stages are loaded anew by the module when `run_options`, an `io_binding`
            or `run_with_ort_values` come to be used.
        arrays: What `run` returns: "numpy" arrays, or "buffers", each a `Tensor`, without importing numpy.
        residency: How much of the model may be in memory at a time: "all"; "stage", the weights of one stage and those
            of the next; or a ceiling, such as "48MB" or a count of bytes, for weights, working memory and sessions,
            which callers share. None for what the bundle's execution scheme says, which is "all" unless it was made
            under a ceiling. Weights stay mapped then, are never rearranged, and leave memory when others need the room.
        library: Path of the C library; None for SPLITLOAD_ORT_LIBRARY, or the one that came with the module.

    Attributes:
        manifest: What the bundle says.
        tail: The personalized last stage, or None.
        variant: What runs here.
        why_portable: Why that is not a native variant, though the bundle has one, and what helps; else None. A
            `PortableWarning` says it too, once a bundle and process.
        threads: How many stages load at a time.
        why_engine: Why `engine` is what it is.

    Raises:
        BundleError: If the bundle is incomplete or damaged.
        MissingPackageError: If onnxruntime, or its Python module where that is needed, is not installed or older than
            splitload needs.
        UsageError: If `threads` is below 1, `engine`, `arrays` or `specialize` is another word, the bundle has no such
            `tail`, `frozen_only` is asked of a bundle that was built without trainable layers, `residency` is too low
            or cannot be kept here, a session's options ask for what a bundle cannot do, or `engine="library"` meets
            what the C library, perhaps the one that `library` names, cannot do.

    Warns:
        LibraryWarning: If the C library that is named, by `library` or the variable, cannot be used and the Python
            module is used instead, once a path and process.
        PortableWarning: See `why_portable`.
    """

    _parts: ClassVar[LoadingParts] = LoadingParts()  # a subclass may hand in others

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        sess_options: Any = None,
        providers: Sequence[Any] | None = None,
        provider_options: Sequence[Mapping[Any, Any]] | None = None,
        *,
        threads: int | None = None,
        overlap: bool = True,
        verify: Verify = "sizes",
        tail: str | None = DEFAULT_TAIL,
        frozen_only: bool = False,
        upgrade: bool = True,
        on_progress: Callable[[int, int], None] | None = None,
        enable_fallback: int = 1,
        read_config_from_model: int = 0,
        disabled_optimizers: Iterable[str] | None = None,
        specialize: Literal["background"] | None = None,
        engine: EngineName = "auto",
        arrays: Literal["numpy", "buffers"] = "numpy",
        residency: str | int | None = None,
        library: str | os.PathLike[str] | None = None,
    ) -> None:
        check_arguments(bundle, threads, specialize)
        check_engine(engine, arrays)
        self._start_s = time.perf_counter()
        self._folder = os.path.realpath(bundle)  # wherever the caller goes meanwhile
        self.manifest, self.tail = contents(bundle, verify, tail, frozen_only=frozen_only)
        self._files = StageFiles(self._folder, self.tail, self._parts)
        stored, guess = self.manifest, likely(self.manifest)
        # a native one made in the background may be in the cache, and is known by the runtime's version
        is_known = (specialize is None or guess.kind == "native") and residency is None and guess.residency is None
        if is_known:
            self._files.read(guess)
        try:
            self._caller = CallerOptions(
                sess_options, providers, provider_options, enable_fallback=enable_fallback,
                read_config_from_model=read_config_from_model, disabled_optimizers=disabled_optimizers,
            )  # fmt: skip
            self._engine, self.why_engine = chosen(engine, stored, self._caller, library)
            self.manifest = self._caller.fixed(stored)
            self._choose(stored, guess if is_known else None, specialize, residency)
        except BaseException:  # nobody will ask for what is being read
            self._files.stop()
            raise
        self._may_switch = engine == "auto"
        self._arrays = arrays
        self._overlap = overlap and self.variant.overlap
        self._is_upgraded = upgrade and self._caller.prepacks and self._ceiling is None
        self._on_progress = on_progress
        self._wanted = min(threads or min(self.variant.threads, available_threads()), len(self.variant.stages))
        self._switching = _thread.allocate_lock()
        self._former_engine: Engine | None = None
        self._former_loading: Callable[[], OrderedLoading | None] = lambda: None
        self._is_inherited = False  # by a forked child, which has not used it yet
        self.threads = 0
        self._staged = self._stage(self._engine, self._given_up())
        enlist(self)
        self._begin()

    def _choose(
        self, stored: Manifest, guess: Variant | None, specialize: str | None, residency: str | int | None
    ) -> None:
        """Choose the variant that runs here, and begin to read it unless it was guessed."""
        self.variant, self.why_portable = choose(self._folder, self.manifest, self._engine.version, self._engine.canary)
        self._specializer = self._find_specializer(stored) if specialize is not None else None
        self._ceiling, is_scarce = None, False
        if residency is not None or self.variant.residency is not None:
            from splitload.runtime.residency import wanted  # for whoever has a ceiling

            self._ceiling, is_scarce = wanted(residency, self.variant, specializes=specialize is not None)
        self._reads_ahead = not is_scarce
        if self.variant is not guess and self._reads_ahead:
            self._files.read(self.variant)
        if self.why_portable is not None:
            warn_once(self._folder, self.why_portable, stacklevel=4)
        self._outputs = [spec.name for spec in self.manifest.outputs]
        self._is_model = self._ceiling is None and self.manifest is stored and stored.is_one_stage(self.variant)

    def _find_specializer(self, manifest: Manifest) -> Specializer | None:
        """Take the native variant that an earlier run has made, or return what makes one where it is wanted."""
        from splitload.base.packages import named

        with named("specialize='background'"):
            from splitload.runtime.background import Specializer, cached
        if self.variant.kind == "native":
            return None
        if found := cached(manifest, self._engine.version):
            (self._files.folder, self.variant), self.why_portable = found, None
            return None
        return Specializer(self._folder, manifest, self.tail, self._caller, lambda: self._loading.inside())

    @property
    def engine(self) -> Literal["library", "python"]:
        """What the stages are loaded and run by: onnxruntime's C library, or its Python module."""
        return self._engine.name

    @property
    def residency(self) -> int | str:
        """How much of the model may be in memory at a time: "all", "stage" or a ceiling in bytes."""
        return "all" if self._ceiling is None else self._ceiling

    @property
    def _shares_memory(self) -> bool:
        """Whether working memory comes from the arena of all stages."""
        return len(self.variant.stages) > 1 or self._ceiling is not None

    @property
    def _loading(self) -> OrderedLoading:
        return self._staged.loading

    def _stage(self, engine: Engine, given_up: Sequence[Callable[[], None]]) -> Staged:
        """Return the stages, none of which is loaded, in an engine."""
        opener = StageOpener(
            self._files, engine, self._parts, share_memory=self._shares_memory, keep_mapped=self._ceiling is not None
        )
        residency, stages = None, self.variant.stages
        if self._ceiling is not None:
            from splitload.runtime.residency import Residency

            residency = Residency(self._ceiling, self.variant, [*map(self._files.mapped_by, stages)], engine)
        return Staged(
            self._folder, self.variant, engine, opener, self._parts, residency=residency,
            is_upgraded=self._is_upgraded, on_progress=self._on_progress, given_up=given_up,
        )  # fmt: skip

    def _given_up(self) -> list[Callable[[], None]]:
        """Return what has to know that nothing more will be loaded."""
        return [self._files.stop, *([] if self._specializer is None else [self._specializer.cancel])]

    def _begin(self) -> None:
        self._staged.begin(self._wanted, self._start_s)
        self.threads = self._loading.threads

    def _use_module(self, why: str) -> None:
        """Load the stages anew by the Python module, and no more of the former ones.

        Runs under way go on through the stages that they find loaded, else begin anew. Nothing here keeps the former
        stages: they go with the last run that uses them.

        Args:
            why: What is met that only the Python module knows.

        Raises:
            UsageError: If the C library was asked for.
            MissingPackageError: If the Python module is not installed.
            StageError: If the system has no thread left.
        """
        import weakref

        with self._switching:
            former = self._staged
            if former.engine.name == "python":
                return
            if not self._may_switch:
                raise UsageError(f"{why} needs engine='python' or 'auto', this loader was made with engine='library'")
            former.loading.check()
            engine = python_engine(self._caller, why)
            made, start_s = self._stage(engine, ()), time.perf_counter()
            left = weakref.ref(former.loading)
            try:
                made.begin(self._wanted, start_s)
                made.given_up.extend(former.given_up)
                why = f"{why} came to be used"
                # no interrupt comes between: either all of it is so or nothing
                self._former_engine, self._former_loading = former.engine, left
                self._engine, self.why_engine, self._start_s, self._staged = engine, why, start_s, made
            except BaseException:  # an interrupt, or no thread: nobody will ask for what was begun
                made.give_way()
                raise
            if former.loading.is_closed:  # by who did not know of this one
                made.loading.close()
            former.give_way()
            self.threads = made.loading.threads

    def _compute(
        self, output_names: Sequence[str] | None, feeds: Mapping[str, Any], run_options: Any, *, keep: bool = False
    ) -> list[Any]:
        """Run the stages that the named outputs need; see `run`, and `DropIn._compute`."""
        self._enter()
        if keep or run_options is not None:
            self._use_module("an OrtValue as an output" if keep else "an onnxruntime.RunOptions")
        wanted: Sequence[str]
        while True:
            staged = self._staged
            try:
                if self._is_model and staged.engine.name == "python":
                    wanted = output_names or self._outputs
                    answers = staged.run_whole(wanted, self.manifest, feeds, run_options, keep=keep)
                else:
                    output_names, values = checked(staged.engine, self.manifest, output_names, feeds)
                    wanted = output_names
                    if not self._overlap:
                        self.wait()
                    values = staged.run(wanted, values, run_options, keep=keep)
                    answers = answered(staged.engine, self.manifest, wanted, values, keep=keep)
                break
            except StageError:
                if not staged.has_given_way:
                    raise
        remember()
        staged.note_answer()
        if self._specializer is not None:
            self._specializer.answered(feeds, list(wanted), answers)
        return answers if keep else [in_form(answer, self._arrays) for answer in answers]

    def wait(self, until: str | float = "loaded", timeout: float | None = None) -> bool:
        """Wait until all stages are loaded ("loaded"), made anew for speed ("upgraded") or natively ("specialized").

        `wait(2.5)` is `wait("loaded", 2.5)`. Waiting for "upgraded" does not wait for a first `run`, it starts the
        upgrade itself; it returns at once when `upgrade` is off. Waiting for "specialized" waits for a first `run` too;
        it returns at once when there is nothing to make.

        Returns:
            Whether that was reached within `timeout` seconds (None: no limit).

        Raises:
            StageError: If a stage could not be loaded, or the loader is closed.
        """
        self._enter()
        until, timeout = waited_for(until, timeout)
        if until == "specialized":
            made = self._specializer is None or self._specializer.done.wait(timeout)
            self._loading.check()
            return made
        deadline_s = None if timeout is None else time.perf_counter() + timeout
        while True:
            staged = self._staged
            try:
                return staged.wait(deadline_s, upgraded=until == "upgraded")
            except StageError:
                if not staged.has_given_way:
                    raise

    @property
    def ready(self) -> bool:
        """Whether every stage is loaded."""
        return self._loading.is_ready

    @property
    def timeline(self) -> Schedule:
        """The loads so far and each stage's first inference, in seconds from the load call, as measured."""
        return self._staged.timeline

    def close(self) -> None:
        """Stop loading and let go of all stages; calls under way end with an error or their result."""
        remember()
        self._let_go()
        if self._shares_memory:
            for engine in (self._former_engine, self._engine):
                if engine is not None:
                    engine.empty_arena()

    def _let_go(self) -> None:
        staged = None
        while staged is not self._staged:  # another takes its place meanwhile
            staged = self._staged
            for loading in self._loadings():
                loading.close()

    def _loadings(self) -> list[OrderedLoading]:
        """Return the loading, and the former one while anybody uses it."""
        former = self._former_loading()
        return [self._loading] if former is None else [former, self._loading]

    def _inherit(self) -> None:
        """Become, in a forked child, a loader that loads anew once it is used; closed or failed ones stay so.

        Threads that load, and locks they hold, stayed with the parent. So did the threads of the sessions, for which
        the runtime would wait when it frees them: they are kept for good, and never run.
        """
        inherited = [*(value for each in self._loadings() for value in each.values), self._caller.stand_in_made]
        self._specializer = None  # the parent makes that variant
        self._staged, self._former_loading = self._staged.heir(self._given_up()), lambda: None
        self._switching = _thread.allocate_lock()
        self._is_inherited = True
        self.threads = 0
        keep_for_good(inherited)

    def _enter(self) -> None:
        """Raise if the loader failed or is closed; begin to load if it is a forked child's, and this its first use."""
        if self._is_inherited:
            with self._loading.lock:
                first, self._is_inherited = self._is_inherited, False
            if first and not self._loading.is_over():
                self._start_s = time.perf_counter()
                if self._reads_ahead:
                    self._files.read(self.variant)
                self._begin()
        self._loading.check()

    def __enter__(self) -> ParallelLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
