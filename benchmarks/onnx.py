"""ONNX: quantizing models, ours and onnxruntime's tools in turn, each as a whole process.

`onnx.py --part weight-only --json OUT`: int4 weights of a float32 model of 1 GB with the shapes of a transformer,
random weights and external data. The peer is onnxruntime.quantization.MatMulNBitsQuantizer: onnx.load, process, save
with external data. Its default is compared with method "round", which gives the same bytes; its k_quant with method
"search". Blocks of 32, zero points. Before anything is timed, both results of a small model run and
are compared: the default's outputs must be equal, the other's error must not be above k_quant's.

`onnx.py --part export --json OUT`: `lowbit export onnx` of a checkpoint with the shapes of a released model and random
weights, to int4 in blocks of 32 without zero points, with `--method search` (the default) and `--method round`. The
peer is onnxruntime-genai's builder (`-p int4 -e cpu`), which rounds. Before anything is timed, both export bard, a
small trained model: the error of our logits must not be above the peer's, and our files must not be larger.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import checkpoint
import numpy as np
import numpy.typing as npt
from harness import Recorder, Sample, alternate, comparison, run_command

import lowbit
from lowbit.onnx import Graph, Model, Node, Tensor, Value, write

#: The peer's configuration -> our method.
METHODS = {"default": "round", "k_quant": "search"}

OURS = """
import sys, lowbit
source, target, method, threads = sys.argv[1:]
lowbit.onnx.quantize(source, target, mode="weight-only", bits=4, block_size=32, symmetric=False, method=method,
                     external_data=True, threads=int(threads))
"""
PEER = """
import logging, sys
import onnx
from onnxruntime.quantization import matmul_nbits_quantizer as q
logging.disable(logging.INFO)
source, target, method = sys.argv[1:]
config = {"default": lambda: q.DefaultWeightOnlyQuantConfig(block_size=32), "k_quant": q.KQuantWeightOnlyQuantConfig}
quantizer = q.MatMulNBitsQuantizer(onnx.load(source), block_size=32, is_symmetric=False, algo_config=config[method]())
quantizer.process()
quantizer.model.save_model_to_file(target, True)
"""


def make(path: Path, layers: int, width: int, inner: int) -> int:
    """Writes a model of linear layers with random weights. Returns the bytes of the weights."""
    rng = np.random.default_rng(0)
    shapes = [("q", width, width), ("k", width, width), ("v", width, width), ("o", width, width)]
    shapes += [("up", width, inner), ("down", inner, width)]
    nodes, tensors = [], {}
    value = "x"
    for layer in range(layers):
        for name, rows, columns in shapes:
            weight, product = f"{name}{layer}", f"{name}{layer}_y"
            tensors[weight] = Tensor(weight, np.dtype(np.float32), (rows, columns), _Random(rng, rows, columns))
            nodes.append(Node.of("MatMul", [value, weight], [product], name=f"/layers.{layer}/{name}/MatMul"))
            value = product
    inputs, outputs = (Value.of(name, np.float32, ["n", width]) for name in ("x", value))
    graph = Graph("transformer", tuple(nodes), tensors, (inputs,), (outputs,))
    write(path, Model(graph, {"": 21}, 10), external_data=True)
    return sum(tensor.nbytes for tensor in tensors.values())


class _Random:
    """Normally distributed weights, made when they are written."""

    def __init__(self, rng: np.random.Generator, inputs: int, outputs: int) -> None:
        self._rng, self._shape = rng, (inputs, outputs)

    def __call__(self) -> npt.NDArray[np.uint8]:
        scale = np.float32(self._shape[0] ** -0.5)
        return (self._rng.standard_normal(self._shape, np.float32) * scale).reshape(-1).view(np.uint8)


def ours(source: Path, target: Path, method: str, threads: int) -> Sample:
    return run_command([sys.executable, "-c", OURS, str(source), str(target), METHODS[method], str(threads)])[0]


def peer(source: Path, target: Path, method: str) -> Sample:
    for path in (target, Path(f"{target}.data")):  # onnx.save appends to a file with external data
        path.unlink(missing_ok=True)
    return run_command([sys.executable, "-c", PEER, str(source), str(target), method])[0]


def output(model: Path, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    import onnxruntime

    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def check(folder: Path, method: str, threads: int) -> dict[str, float]:
    """Relative errors of the outputs of a small model. Ends the program if ours is not as it should be."""
    source, own, theirs = (folder / f"{name}.onnx" for name in ("small", "small-own", "small-peer"))
    make(source, 1, 256, 512)
    command = OURS.replace('"weight-only", ', '"weight-only", accuracy_level=0, ')
    run_command([sys.executable, "-c", command, str(source), str(own), METHODS[method], str(threads)])
    peer(source, theirs, method)
    x = np.random.default_rng(1).standard_normal((16, 256)).astype(np.float32)
    expected, found, other = (output(model, x) for model in (source, own, theirs))
    size = np.linalg.norm(expected)
    errors = {
        "error": float(np.linalg.norm(found - expected) / size),
        "peer_error": float(np.linalg.norm(other - expected) / size),
    }
    if method == "default" and not np.array_equal(found, other):
        sys.exit("method round and the peer's default give different outputs")
    if errors["error"] > errors["peer_error"]:
        sys.exit(f"our error {errors['error']:.4g} is above the peer's, {errors['peer_error']:.4g}")
    return errors


def weight_only(options: argparse.Namespace, recorder: Recorder, folder: Path) -> None:
    source = folder / "model.onnx"
    nbytes = make(source, options.layers, 2048, 8192)
    for method in METHODS:
        errors = check(folder, method, options.threads)
        own, theirs = folder / "own.onnx", folder / "peer.onnx"
        runs = (partial(ours, source, own, method, options.threads), partial(peer, source, theirs, method))
        samples = alternate(*runs, pairs=options.pairs if method == "default" else 1, warmups=0)
        sizes = {"bytes": size_of(own), "peer_bytes": size_of(theirs)}
        name = f"weight-only int4 {METHODS[method]}, {method}"
        facts = {"operation": "weight-only", "peer_tool": f"MatMulNBitsQuantizer {method}", **errors, **sizes}
        entry = comparison(name, nbytes, "B", *samples, **facts)
        ratios = ", ".join(f"{key} {entry[key]['median']:.1f}" for key in ("speedup", "cpu_ratio", "rss_ratio"))
        recorder.add(entry, f"{name}: {ratios}")


def size_of(model: Path) -> int:
    return sum(path.stat().st_size for path in model.parent.glob(f"{model.name}*"))


# --- language models

BARD = Path(lowbit.__file__).parent / "data" / "bard"
TEXT = BARD.with_name("bard-valid.txt")


def export(source: Path, target: Path, method: str, threads: int) -> Sample:
    shutil.rmtree(target, ignore_errors=True)
    command = ["export", "onnx", source, target, "--format", "int4", "--method", method, "--threads", threads]
    return run_command([sys.executable, "-m", "lowbit", *map(str, command)])[0]


def build(source: Path, target: Path) -> Sample:
    shutil.rmtree(target, ignore_errors=True)
    command = ["-i", source, "-o", target, "-p", "int4", "-e", "cpu", "-c", target.with_name("cache")]
    return run_command([sys.executable, "-m", "onnxruntime_genai.models.builder", *map(str, command)])[0]


def check_export(folder: Path, method: str, threads: int) -> dict[str, float]:
    """Relative errors of the logits of bard. Ends the program if our model is larger or has a larger error."""
    import onnxruntime

    model = lowbit.load(BARD, compute="f32")
    ids = model.tokenizer.encode(TEXT.read_text()[:1500])
    expected, spec = model.logits(ids), model.spec
    feeds = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}
    for layer in range(spec.num_layers):
        for part in ("key", "value"):
            shape = (1, spec.num_kv_heads, 0, spec.head_dim)
            feeds[f"past_key_values.{layer}.{part}"] = np.zeros(shape, np.float32)
    own, theirs = folder / "small-own", folder / "small-peer"
    export(BARD, own, method, threads)
    build(BARD, theirs)
    errors = []
    for target in (own, theirs):
        session = onnxruntime.InferenceSession(target / "model.onnx", providers=["CPUExecutionProvider"])
        found = session.run(["logits"], feeds)[0][0]
        errors.append(float(np.linalg.norm(found - expected) / np.linalg.norm(expected)))
    if errors[0] > 1.01 * errors[1]:  # other orders of sums
        sys.exit(f"our error {errors[0]:.4g} is above the peer's, {errors[1]:.4g}")
    sizes = [size_of(target / "model.onnx") for target in (own, theirs)]
    if sizes[0] > sizes[1]:
        sys.exit(f"our model has {sizes[0]} bytes, the peer's {sizes[1]}")
    return {"error": errors[0], "peer_error": errors[1]}


def exports(options: argparse.Namespace, recorder: Recorder, folder: Path) -> None:
    source, own, theirs = (folder / name for name in ("checkpoint", "own", "peer"))
    checkpoint.write(options.model, source)
    nbytes = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    for method in ("search", "round"):
        errors = check_export(folder, method, options.threads)
        runs = (partial(export, source, own, method, options.threads), partial(build, source, theirs))
        samples = alternate(*runs, pairs=options.pairs, warmups=0)
        sizes = {"bytes": size_of(own / "model.onnx"), "peer_bytes": size_of(theirs / "model.onnx")}
        facts = {"operation": "export", "peer_tool": "builder", **errors, **sizes}
        name = f"export {options.model} int4 {method}"
        entry = comparison(name, nbytes, "B", *samples, **facts)
        ratios = ", ".join(f"{key} {entry[key]['median']:.1f}" for key in ("speedup", "cpu_ratio", "rss_ratio"))
        recorder.add(entry, f"{name}: {ratios}, {sizes}, {errors}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=["weight-only", "export"], default="weight-only")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write facts, samples and ratios to OUT")
    parser.add_argument("--pairs", type=int, default=3, metavar="N", help="timed pairs; k_quant has one [default: 3]")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="our threads [default: 2]")
    parser.add_argument("--layers", type=int, default=5, metavar="N", help="of 200 MB [default: 5]")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="where files are written [default: temporary]")
    parser.add_argument(
        "--model",
        choices=checkpoint.MODELS,
        default="Qwen3-0.6B",
        metavar="MODEL",
        help="to export [default: Qwen3-0.6B]",
    )
    options = parser.parse_args()
    if options.scratch and not options.scratch.is_dir():
        parser.error(f"--scratch {options.scratch}: there is no such folder")
    run, peer, library = {
        "weight-only": (weight_only, "onnxruntime", "onnx"),
        "export": (exports, "onnxruntime-genai", "transformers"),
    }[options.part]
    recorder = Recorder(
        "onnx", options, {"name": peer, "version": version(peer), "build": f"{library} {version(library)}"}
    )
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        run(options, recorder, Path(folder))
    recorder.finish()


if __name__ == "__main__":
    main()
