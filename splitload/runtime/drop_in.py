"""What `onnxruntime.InferenceSession` offers beside `run`: each works on a bundle, or says in one line what to do.

`docs/drop-in.md` lists all of it, and a test compares that with the names of the installed runtime.
"""

from __future__ import annotations

from splitload.base.errors import StageError, UsageError
from splitload.base.record import Record
from splitload.bundle.manifest import Manifest, Metadata
from splitload.runtime.feeds import check_given
from splitload.runtime.pool import report, started

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, NoReturn

    from splitload.runtime.binding import Binding
    from splitload.runtime.options import CallerOptions


class NodeArg(Record):
    """An input or output of the model, as `onnxruntime.NodeArg` describes it.

    Attributes:
        name: Its name.
        type: onnxruntime's word, for example "tensor(float)".
        shape: One entry a dimension, a name or None where it is open; empty where the rank is unknown.
    """

    name: str
    type: str
    shape: list[int | str | None]


class ModelMetadata(Record):
    """What the model says of itself, as `onnxruntime.ModelMetadata` describes it.

    Attributes:
        producer_name: What wrote the model.
        graph_name: Name of its graph.
        domain: Where it comes from, for example "org.example".
        description: For people.
        graph_description: For people.
        version: Its version; 2**63 - 1 where it has none.
        custom_metadata_map: Whatever else its maker wrote down, for example the names of classes.
    """

    producer_name: str
    graph_name: str
    domain: str
    description: str
    graph_description: str
    version: int
    custom_metadata_map: dict[str, str]


class DropIn:
    """The part of `ParallelLoader` that clients of `onnxruntime.InferenceSession` know."""

    manifest: Manifest
    _caller: CallerOptions
    _folder: str

    def _module(self, what: str) -> Any:
        """Return the Python module, which is imported for what is said in its objects."""
        from splitload.runtime.stock import python_module

        return python_module(what)

    def _compute(
        self, output_names: Sequence[str] | None, feeds: Mapping[str, Any], run_options: Any, *, keep: bool = False
    ) -> list[Any]:
        """Return the outputs; with `keep` as OrtValues, which all feeds are then."""
        raise NotImplementedError

    def run(
        self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any], run_options: Any = None
    ) -> list[Any]:
        """Compute the named outputs, as `onnxruntime.InferenceSession.run` does and with its errors.

        Stages that none of the outputs needs are neither waited for nor run.

        Args:
            output_names: Names of outputs; None or empty for all.
            input_feed: A value for each input, by name.
            run_options: An `onnxruntime.RunOptions`, handed to every stage.

        Returns:
            One value for each output name: a numpy array, or a list or dict where the model gives one.

        Raises:
            ValueError: If a required input is missing.
            TypeError: If names are no strings.
            RuntimeError: If a value is of a kind that no input takes.
            onnxruntime's InvalidArgument: If a name is unknown, or a tensor of another type or shape than the model's.
            StageError: If a stage could not be loaded, or the loader is closed.
        """
        return self._compute(output_names, input_feed, run_options)

    def run_with_ort_values(
        self, output_names: Sequence[str] | None, input_dict_ort_values: Mapping[str, Any], run_options: Any = None
    ) -> list[Any]:
        """Compute the named outputs as OrtValues, of inputs that are such; nothing is copied. See `run`."""
        ort = self._module("run_with_ort_values")
        for name, value in input_dict_ort_values.items():
            if not isinstance(value, ort.OrtValue):
                raise TypeError(f"input '{name}' must be an OrtValue, it is {type(value).__name__}; `run` takes arrays")
        return self._compute(output_names, input_dict_ort_values, run_options, keep=True)

    def run_async(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Any],
        callback: Callable[[list[Any], Any, str], None],
        user_data: Any,
        run_options: Any = None,
    ) -> None:
        """Compute the named outputs on a thread of its own, then call `callback(outputs, user_data, error)` there.

        `error` is "" where it went well, otherwise the message, and there are no outputs. What the callback raises goes
        to `threading.excepthook`. The interpreter does not exit before the callback has returned.

        Raises:
            ValueError: If a required input is missing.
            StageError: If the system has no thread left.
        """
        check_given(self.manifest, input_feed.keys())

        def work() -> None:
            results: list[Any] = []
            message = ""
            try:
                results = self._compute(output_names, input_feed, run_options)
            except Exception as error:  # onnxruntime has no common root for its errors
                message = str(error) or type(error).__name__
            try:
                callback(results, user_data, message)
            except BaseException as error:  # nobody else would hear of it
                report(error)

        import threading

        if not started(threading.Thread(target=work, name="splitload-run-async")):
            raise StageError("the system has no thread left for run_async; call run")

    def io_binding(self) -> Binding:
        """Return an object to bind inputs and outputs to, with the methods of `onnxruntime.IOBinding`.

        Raises:
            MissingPackageError: If the Python module cannot be imported.
        """
        from splitload.runtime.binding import Binding

        return Binding(self._module("io_binding"), self)

    def run_with_iobinding(self, iobinding: Any, run_options: Any = None) -> None:
        """Compute the outputs bound in `io_binding()`, see `run`; bound memory is written, others are in `get_outputs`.

        Raises:
            UsageError: If it is not a binding of this loader, no output is bound, or bound memory does not fit.
        """
        from splitload.runtime.binding import Binding

        if not isinstance(iobinding, Binding) or iobinding.owner is not self:
            raise UsageError("run_with_iobinding takes what io_binding() of this loader returned")
        names = iobinding.output_names
        if not names:
            raise UsageError("no output is bound; bind_output(NAME) says which are wanted")
        iobinding.fill(self._compute(names, iobinding.feeds(), run_options, keep=True))

    def get_inputs(self) -> list[NodeArg]:
        """Return the model's inputs; needs no stage."""
        return [NodeArg(spec.name, spec.type, list(spec.shape or ())) for spec in self.manifest.inputs]

    def get_outputs(self) -> list[NodeArg]:
        """Return the model's outputs; needs no stage."""
        return [NodeArg(spec.name, spec.type, list(spec.shape or ())) for spec in self.manifest.outputs]

    def get_overridable_initializers(self) -> list[NodeArg]:
        """Return an empty list: what inputs have as a default is built into a bundle, and they are no inputs of it."""
        return []

    def get_modelmeta(self) -> ModelMetadata:
        """Return what the source model says of itself; needs no stage. Bundles that keep none give empty fields."""
        kept = self.manifest.metadata or Metadata()
        return ModelMetadata(**{**kept._asdict(), "custom_metadata_map": dict(kept.custom_metadata_map)})

    def get_session_options(self) -> Any:
        """Return a copy of the caller's `onnxruntime.SessionOptions`, or the runtime's defaults."""
        return self._caller.copy() or self._module("get_session_options").SessionOptions()

    def get_providers(self) -> list[str]:
        """Return the execution providers, as a stock session lists them."""
        return list(self._caller.providers)

    def get_provider_options(self) -> Any:
        """Return the execution providers' options, by name."""
        return self._caller.stand_in.get_provider_options()

    def set_providers(self, providers: Any = None, provider_options: Any = None) -> None:
        """Check that the processor is asked for, on which a bundle runs in any case.

        Raises:
            UsageError: If it is not.
        """
        from splitload.runtime.options import checked_providers

        self._caller.providers = checked_providers(providers, provider_options)

    def enable_fallback(self) -> None:
        """Do nothing: from the processor there is nothing to fall back to."""

    def disable_fallback(self) -> None:
        """Do nothing, see `enable_fallback`."""

    def get_input_memory_infos(self) -> list[Any]:
        """Return where each input lies, the processor's memory."""
        return list(self._caller.stand_in.get_input_memory_infos()) * len(self.manifest.inputs)

    def get_output_memory_infos(self) -> list[Any]:
        """Return where each output lies, the processor's memory."""
        return list(self._caller.stand_in.get_output_memory_infos()) * len(self.manifest.outputs)

    def get_input_epdevices(self) -> list[Any]:
        """Return the device that reads each input, the processor."""
        return list(self._caller.stand_in.get_input_epdevices()) * len(self.manifest.inputs)

    def create_ortvalue_from_shape_and_type(
        self, shape: Sequence[int], element_type: Any, device_type: str, device_id: int = 0, vendor_id: int = -1
    ) -> Any:
        """Return an `onnxruntime.OrtValue` in the processor's memory, of any content.

        Raises:
            UsageError: If it is to lie elsewhere.
        """
        from splitload.runtime.binding import check_device

        check_device(device_type)
        ort = self._module("create_ortvalue_from_shape_and_type")
        return ort.OrtValue.ortvalue_from_shape_and_type(shape, element_type, "cpu")

    def end_profiling(self) -> str:
        """Return "", as a stock session does that was not told to profile; `timeline` has what is measured anyway."""
        return ""

    def get_profiling_start_time_ns(self) -> int:
        """Return 0, as a stock session does that was not told to profile."""
        return 0

    def set_ep_dynamic_options(self, options: Mapping[str, str]) -> None:
        """Hand options to the processor's provider, which knows none; see `onnxruntime.InferenceSession`."""
        self._caller.stand_in.set_ep_dynamic_options(options)

    def get_tuning_results(self) -> Any:
        """Return what the provider has tuned: nothing, on the processor."""
        return self._caller.stand_in.get_tuning_results()

    def set_tuning_results(self, results: Any, *, error_on_invalid: bool = False) -> None:
        """Hand tuned parameters to the provider; the processor's takes none, see `onnxruntime.InferenceSession`."""
        self._caller.stand_in.set_tuning_results(results, error_on_invalid=error_on_invalid)

    def release_captured_graph(self, graph_annotation_id: int = 0) -> None:
        """Do nothing: the processor's provider captures no graphs."""

    def get_provider_graph_assignment_info(self) -> NoReturn:
        """Raise `UsageError`: the nodes of a bundle are not those of the model."""
        raise UsageError(
            "a bundle's nodes are not the model's, all run on the processor; ask a stock session on the model"
        )

    def run_with_ortvaluevector(self, *_: Any, **__: Any) -> NoReturn:
        """Raise `UsageError`: `run_with_ort_values` does the same."""
        raise UsageError("run_with_ortvaluevector is not there on a bundle; run_with_ort_values does the same by name")

    @property
    def _sess(self) -> NoReturn:
        """What `onnxruntime.IOBinding(session)` asks for: the runtime's object, of which a bundle has several."""
        raise AttributeError(
            "a bundle has no single session of the runtime; bind with io_binding() of this one, or splitload.IOBinding"
        )
