"""Engines that run a model in a process of their own: engines.py ENGINE MODEL THREADS.

Reads one request a line, {"do": NAME, ...arguments}, and answers each with a line, {"result": ...} or {"error": ...}.
The first request is `open`. Times are seconds of wall time, taken here. inference.py starts these processes.

ENGINE is lowbit (MODEL: a GGUF file), openvino or onnxruntime (MODEL: a folder that inference.py exported).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.pop(0)  # this folder: onnx.py here is not the package that engines import

import numpy as np

#: Tokens of the check before timing.
CHECK_TOKENS = 64
#: What rounding a group of 32 normal activations to 8 bits does to a product, relative, root mean square: the largest
#: of the group, 2.4 standard deviations, is 127 steps, and a step's rounding is off by 1 / sqrt(12) of it.
ROUNDING = 2.4 / 127 / 12**0.5
#: Sequences that a model is loaded for, and one for prompts.
MOST_BATCH = 64


def allowed_error(num_layers: int) -> float:
    """How far logits may be from exact ones: four times what the roundings of seven products a layer come to.

    Measured over the spread of the logits, where a wrong kernel is off by 1 or more.
    """
    return 4 * ROUNDING * (7 * num_layers + 1) ** 0.5


class Lowbit:
    """Our engine."""

    def __init__(self, path: str, threads: int) -> None:
        import lowbit
        import lowbit.evaluate.bench
        import lowbit.evaluate.work

        self._lowbit, self._work, self._bench = lowbit, lowbit.evaluate.work, lowbit.evaluate.bench
        self._path, self._threads = path, threads

    def open(self, compute: str = "auto", tokenizer: bool = False) -> None:
        self._model = self._lowbit.load(
            self._path, compute=compute, threads=self._threads, max_sequences=MOST_BATCH + 1
        )
        if tokenizer:
            _ = self._model.tokenizer
        self._runs = {1: self._bench.Runs(self._model, 1)}

    def prefill(self, tokens: int) -> float:
        return self._of(1).prefill(tokens)

    def decode(self, tokens: int, depth: int, batch: int) -> float:
        return self._of(batch).decode(tokens, depth)

    def _of(self, batch: int) -> Any:
        if batch not in self._runs:
            self._runs = {batch: self._bench.Runs(self._model, batch)}
        return self._runs[batch]

    def facts(self) -> dict[str, Any]:
        """What is recorded of the model, and this machine's limits."""
        weights = sum(int(np.prod(weight.shape)) for weight in self._model.weights.values())
        limits = self._lowbit.machine_limits(self._threads)
        return {"weights": weights, "limits": {name: getattr(limits, name) for name in limits.__dataclass_fields__}}

    def work(self, tokens: int, depth: int, batch: int, prefill: bool) -> dict[str, float]:
        """Bytes and multiply-adds of one of the timed runs: of a prompt, or of `tokens` steps (mean of the steps)."""
        if prefill:
            counts = self._work.weight_bytes(self._model), self._work.multiply_adds(self._model, tokens)
            return {"bytes": counts[0], "multiply_adds": counts[1]}
        lengths = range(depth + 1, depth + tokens + 1)
        return {
            "bytes": sum(self._work.step_bytes(self._model, [length] * batch) for length in lengths),
            "multiply_adds": sum(batch * self._work.multiply_adds(self._model, 1, start=n - 1) for n in lengths),
        }

    def check(self) -> dict[str, float]:
        """Compares with compute="f32". Raises an error if logits are too far off.

        On text: with random tokens, a trained model amplifies the roundings of some of them beyond any bound.
        """
        model = self._model
        text = (Path(self._lowbit.__file__).parent / "data" / "bard-valid.txt").read_text(encoding="utf-8")
        ids = model.tokenizer.encode(text[: CHECK_TOKENS * 16])[:CHECK_TOKENS]
        exact = self._lowbit.load(self._path, compute="f32", threads=self._threads).logits(ids)
        model.truncate(0)
        prefill = model.logits(ids)
        decode = np.concatenate([model.forward([token], [i], [0]) for i, token in enumerate(ids)])
        model.truncate(0)
        figures: dict[str, float] = {}
        for name, logits in (("prefill", prefill), ("decode", decode)):
            error = float(np.sqrt(np.square(logits - exact).mean() / exact.var(axis=-1).mean()))
            same = float((logits.argmax(-1) == exact.argmax(-1)).mean())
            if not error <= allowed_error(model.spec.num_layers):  # NaN included
                raise RuntimeError(f"{self._path}: {name}: error {error:.3g} and same top {same:.3g} against f32")
            figures |= {f"{name}_error": error, f"{name}_same_top": same}
        return figures


class OpenVino:
    """OpenVINO GenAI, with its defaults."""

    def __init__(self, path: str, threads: int) -> None:
        import openvino
        import openvino_genai

        self._openvino, self._genai, self._path, self._threads = openvino, openvino_genai, path, threads
        self._vocab = json.loads((Path(path) / "config.json").read_text())["vocab_size"]
        self._seed = 0

    def open(self) -> None:
        self._pipeline = self._genai.LLMPipeline(self._path, "CPU", INFERENCE_NUM_THREADS=self._threads)

    def prefill(self, tokens: int) -> float:
        return self._generate(1, tokens, 1).get_ttft().mean / 1e3

    def decode(self, tokens: int, depth: int, batch: int) -> float:
        metrics = self._generate(batch, max(depth, 1), tokens + 1)
        return (metrics.get_generate_duration().mean - metrics.get_ttft().mean) / 1e3

    def _generate(self, batch: int, prompt: int, new: int) -> Any:
        self._seed += 1  # another prompt each time, so that no cached one is used
        ids = np.random.default_rng(self._seed).integers(0, self._vocab, (batch, prompt))
        inputs = self._genai.TokenizedInputs(self._openvino.Tensor(ids), self._openvino.Tensor(np.ones_like(ids)))
        settings = self._genai.GenerationConfig()
        settings.max_new_tokens, settings.ignore_eos, settings.do_sample = new, True, False
        metrics = self._pipeline.generate(inputs, settings).perf_metrics
        if metrics.get_num_generated_tokens() != batch * new:
            raise RuntimeError(f"expected {batch * new} tokens, got {metrics.get_num_generated_tokens()}")
        return metrics


class OnnxRuntime:
    """ONNX Runtime GenAI."""

    def __init__(self, path: str, threads: int) -> None:
        import onnxruntime_genai

        self._genai, self._path, self._threads = onnxruntime_genai, path, threads
        self._vocab = json.loads((Path(path) / "genai_config.json").read_text())["model"]["vocab_size"]

    def open(self) -> None:
        config = self._genai.Config(self._path)
        threads = {"intra_op_num_threads": self._threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": threads}}}))
        self._model = self._genai.Model(config)

    def prefill(self, tokens: int) -> float:
        return self._generate(1, tokens, 0)[0]

    def decode(self, tokens: int, depth: int, batch: int) -> float:
        return self._generate(batch, max(depth, 1), tokens)[1]

    def _generate(self, batch: int, prompt: int, new: int) -> tuple[float, float]:
        """Seconds up to the first token, and for `new` others."""
        length = prompt + new + 2
        options = self._genai.GeneratorParams(self._model)
        options.set_search_options(max_length=length, min_length=length, do_sample=False, batch_size=batch)
        ids = np.random.default_rng(0).integers(0, self._vocab, (batch, prompt)).astype(np.int32)
        generator = self._genai.Generator(self._model, options)
        start = time.perf_counter()
        generator.append_tokens(ids)
        generator.generate_next_token()
        first = time.perf_counter()
        for _ in range(new):
            generator.generate_next_token()
        if generator.token_count() != prompt + new + 1:
            raise RuntimeError(f"expected {prompt + new + 1} tokens, got {generator.token_count()}")
        return first - start, time.perf_counter() - first


ENGINES: dict[str, Callable[[str, int], Any]] = {"lowbit": Lowbit, "openvino": OpenVino, "onnxruntime": OnnxRuntime}


def main() -> None:
    engine = ENGINES[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
    for line in sys.stdin:
        request = json.loads(line)
        try:
            start = time.perf_counter()
            result = getattr(engine, request.pop("do"))(**request)
            answer = {"result": time.perf_counter() - start if result is None else result}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        sys.__stdout__.write(json.dumps(answer) + "\n")
        sys.__stdout__.flush()


if __name__ == "__main__":
    main()
