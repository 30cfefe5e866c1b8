"""The C library alone: neither numpy nor onnxruntime's wheel is installed, and a bundle runs all the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import runtime_models
from lean_device import alone, lean_place

from splitload import ParallelLoader

LOADER = """
import array, json
from splitload import ParallelLoader
x, z = (memoryview(array.array("f", numbers)) for numbers in json.loads(sys.argv[2]))
with ParallelLoader(sys.argv[1], arrays="buffers") as model:
    answers = model.run(None, {"x": x.cast("B").cast("f", (2, 16)), "z": z})
    model.wait("upgraded")
    print(json.dumps([model.engine, [[answer.dtype, answer.shape, answer.tolist()] for answer in answers]]))
"""
FAILURE = """
import array
from splitload import ParallelLoader
x, shape = array.array("f", range(4)), array.array("q", [3, 3])
with ParallelLoader(sys.argv[1], arrays="buffers") as model:
    for feeds in ({"x": x, "shape": shape}, {"x": array.array("f", [1]), "shape": shape}, {"q": x, "x": x, "shape": x}):
        try:
            model.run(None, feeds)
        except Exception as error:
            print(type(error).__name__, error)
"""
ARRAYS = """
from splitload import ParallelLoader
with ParallelLoader(sys.argv[1], engine=sys.argv[2]) as model:
    pass
"""
CALLS = """
import array, threading
from splitload import ParallelLoader
from splitload.base.errors import MissingPackageError
x, z = (memoryview(array.array("f", bytes(4 * size))) for size in (32, 16))
feeds, cuda = {"x": x.cast("B").cast("f", (2, 16)), "z": z}, ["CUDAExecutionProvider"]


def loader(**arguments):
    return ParallelLoader(sys.argv[1], **{"arrays": "buffers"} | arguments)


def missed(call):
    try:
        call()
    except MissingPackageError as error:
        text = str(error)
        assert "\\n" not in text and "pip install " in text, text
        return text
    raise AssertionError("nothing was missed")


with loader() as model:
    for call in (
        lambda: loader(arrays="numpy").run(None, feeds),
        lambda: model.run(None, {"x": [[1.0] * 16], "z": z}),
        model.io_binding,
        lambda: model.run(None, feeds, object()),
        lambda: model.run_with_ort_values(None, feeds),
        lambda: model.create_ortvalue_from_shape_and_type([1], 1, "cpu"),
        lambda: model.set_providers(cuda),
        model.get_session_options,
        model.get_provider_options,
        model.get_input_memory_infos,
        lambda: model.set_ep_dynamic_options({}),
        lambda: loader(providers=cuda),
        lambda: loader(specialize="background"),
        lambda: __import__("splitload").InferenceSession(sys.argv[1]),
    ):
        print(missed(call))
    done = threading.Event()
    loader(arrays="numpy").run_async(None, feeds, lambda *told: (print(told[2]), done.set()), None)
    assert done.wait(30)
    assert model.run(["y"], feeds)[0].shape == (2, 16)
    for names, given, kind in (
        (None, {**feeds, "x": z}, RuntimeError),
        (None, {**feeds, "x": 3}, RuntimeError),
        (None, {**feeds, "x": None}, RuntimeError),
        (None, {**feeds, "q": z}, RuntimeError),
        (["q"], feeds, RuntimeError),
        (None, {1: z}, ValueError),
        (None, {**feeds, 1: z}, TypeError),
        ([3], feeds, TypeError),
    ):
        try:
            model.run(names, given)
        except Exception as error:
            assert type(error) is kind, (names, given, error)
        else:
            raise AssertionError(names, given)
"""
COMMAND = "from splitload.cli import main; sys.exit(main())"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with splitload and the C library, and nothing else."""
    return lean_place(tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def without_numpy(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with splitload and onnxruntime, and nothing else."""
    folder = tmp_path_factory.mktemp("without")
    shutil.copytree(place, folder, symlinks=True, dirs_exist_ok=True)
    package = Path(onnxruntime.__file__).parent
    (folder / "packages" / "onnxruntime").symlink_to(package, target_is_directory=True)
    return folder


def test_nothing_else_is_there(place: Path) -> None:
    code = "import importlib.util as u; print([u.find_spec(name) for name in ('numpy', 'onnxruntime', 'onnx')])"
    assert alone(place, code).stdout == "[None, None, None]\n"


@pytest.mark.parametrize("kind", ["portable", "native"])
def test_a_bundle_runs(place: Path, chain_bundle: Path, native_bundle: Path, kind: str) -> None:
    bundle = chain_bundle if kind == "portable" else native_bundle
    feeds = runtime_models.feeds()
    given = json.dumps([value.ravel().tolist() for value in feeds.values()])
    done = alone(place, LOADER, bundle, given)
    assert (done.returncode, done.stderr) == (0, "")
    engine, answers = json.loads(done.stdout)
    with ParallelLoader(bundle, engine="library", upgrade=False) as model:
        expected = model.run(None, feeds)
    assert engine == "library"
    assert [(dtype, shape) for dtype, shape, _ in answers] == [("float32", [*each.shape]) for each in expected]
    for (_, _, numbers), each in zip(answers, expected, strict=True):
        assert np.array_equal(np.array(numbers, "f"), each)


def test_the_command_runs_it_too(place: Path, chain_bundle: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", runtime_models.feeds(rows=5)["x"])
    done = alone(place, COMMAND, "run", chain_bundle, "--input", f"x={tmp_path / 'x.npy'}", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert (told["engine"], told["outputs"]["y"]) == ("library", {"type": "float32", "shape": [5, 16]})
    for words in (["inspect", chain_bundle], ["verify", chain_bundle], ["inspect", "--runtime"]):
        done = alone(place, COMMAND, *words)
        assert (done.returncode, done.stderr) == (0, "")
    assert "Python module: not installed\n" in done.stdout


def test_what_numpy_is_needed_for_names_it(place: Path, chain_bundle: Path, tmp_path: Path) -> None:
    cure = "needs the package 'numpy', which is not installed: pip install numpy\n"
    done = alone(place, COMMAND, "run", chain_bundle, "-o", tmp_path / "outputs")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"splitload: 'splitload run -o' {cure}")
    np.save(tmp_path / "x.npy", np.asfortranarray(runtime_models.feeds()["x"]))
    done = alone(place, COMMAND, "run", chain_bundle, "--input", f"x={tmp_path / 'x.npy'}")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"splitload: 'splitload run' {cure}")


@pytest.mark.parametrize("where", ["place", "without_numpy"])
def test_calls_that_need_a_package_say_which_in_one_line(
    chain_bundle: Path, where: str, request: pytest.FixtureRequest
) -> None:
    done = alone(request.getfixturevalue(where), CALLS, chain_bundle)
    assert (done.returncode, done.stderr) == (0, "")
    first, listed, *others, background, session, told = done.stdout.splitlines()
    assert first == told
    cure = "needs the package 'numpy', which is not installed: pip install numpy"
    assert first == f'an array as an output {cure}, or take ParallelLoader(…, arrays="buffers")'
    assert listed.startswith(f"a list as an input {cure}, or take ")
    assert background == f"specialize='background' {cure}"
    for line in (*others, session):
        assert line.startswith("onnxruntime's Python module is needed (")
        assert line.endswith(" and cannot be imported (No module named 'numpy'): 'pip install onnxruntime'")


def test_what_the_module_is_needed_for_names_it(place: Path, chain_bundle: Path) -> None:
    done = alone(place, ARRAYS, chain_bundle, "python")
    assert "MissingPackageError: onnxruntime's Python module is needed (it is asked for) and cannot be" in done.stderr
    done = alone(place, COMMAND, "run", chain_bundle, named=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "onnxruntime is not installed, and SPLITLOAD_ORT_LIBRARY names no library" in done.stderr
    assert "'pip install onnxruntime'" in done.stderr


def test_errors_of_the_runtime_have_its_text(place: Path, tmp_path: Path) -> None:
    onnx.save(runtime_models.shapeless(), tmp_path / "shapeless.onnx")
    bundle = runtime_models.bundle(tmp_path / "shapeless.onnx", tmp_path / "shapeless.splitload", num_stages=1)
    done = alone(place, FAILURE, bundle)
    assert (done.returncode, done.stderr) == (0, "")
    x, shape = np.arange(4, dtype="f"), np.array([3, 3])
    expected = []
    with ParallelLoader(bundle, engine="library") as model:
        for feeds in ({"x": x, "shape": shape}, {"x": x[1:2], "shape": shape}, {"q": x, "x": x, "shape": x}):
            with pytest.raises(Exception) as caught:
                model.run(None, feeds)
            assert type(caught.value).__module__.startswith("onnxruntime.")
            expected.append(f"RuntimeError {caught.value}\n")
    assert done.stdout == "".join(expected)
