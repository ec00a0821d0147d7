"""`verify`: does a GGUF file hold what its source holds? Metadata, tensors, tokenizer and logits, in one verdict.

What is compared, and what fails:

- file: the file is opened anew; the source's metadata must be there, key by key, but for what options changed.
- tensors: names and shapes; values, decoded, against the source's. Floats that the format can hold must be equal;
  rounded ones within half a unit; for b bits a weight no row may be off by more than `8 * 2 ** -b` of the larger of its
  own and the tensor's root mean square, which is several times what any encoder loses, and 1 at most, which is a row
  of zeros. So exchanged, shifted and damaged rows fail; a wrong low bit of a code does not.
- tokenizer: `tokenizer_differences`, and chat templates. Any difference fails; a conversion that verifies without being
  asked writes the file all the same, with the verdict "differs", because GGUF cannot say all that tokenizer.json can.
- logits: of both networks on a built-in text, in float32. Equal tensors must give equal logits; otherwise all must be
  finite, and from 8 bits a weight on the mean divergence at most 1 nat. Below, the figures say what the format cost.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from lowbit import _core, gguf
from lowbit._core import Error, UnsupportedError
from lowbit.arch import OpenedCheckpoint, open_checkpoint
from lowbit.lora import Adapters
from lowbit.model import Model, load, load_opened
from lowbit.pipeline import CHUNK_WEIGHTS
from lowbit.progress import progress_bar
from lowbit.qtensor import QTensor, format_of
from lowbit.quoting import listed
from lowbit.recipes import FLOAT_FORMATS
from lowbit.tensor_source import TensorSource, num_elements, row_ranges
from lowbit.threads import num_threads
from lowbit.tokenizer import Tokenizer, read_tokenizer
from lowbit.tokenizer_differences import tokenizer_differences
from lowbit.verification_text import NUM_TOKENS, TEXT

__all__ = ["Check", "Verdict", "VerificationError", "verify"]

PREFIX = "lowbit.verify."
#: Keys that say what the file is, not what its source was.
_OWN_KEYS = ("general.file_type", "general.quantization_version")
#: The largest error of a weight that is rounded to half of its bits, in units of its size.
_ROUNDING = {"F32": 0.0, "F16": 2.0**-11, "BF16": 2.0**-8}
#: Equal weights give equal logits, whatever the order of sums in float32.
_LOGITS_TOLERANCE = 1e-5
#: With so many bits a weight predictions are close, below 0.001 nats, where settings that differ (rotary base, norms'
#: epsilon) cost more than one. At 4 bits an untrained network of 28 layers is at 0.94 already.
_MANY_BITS, _DIVERGENCE = 8.0, 1.0


class VerificationError(Error):
    """A file differs from its source. `verdict` says where."""

    def __init__(self, message: str, verdict: Verdict) -> None:
        super().__init__(message)
        self.verdict = verdict


@dataclass(frozen=True)
class Check:
    """One comparison. ok: None if it could not be made; `detail` says what was found, or why not."""

    name: str
    ok: bool | None
    detail: str
    figures: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Verdict:
    """What `verify` found."""

    path: str
    source: str
    checks: list[Check]

    @property
    def ok(self) -> bool:
        """Whether nothing differs that must not; checks that could not be made do not count."""
        return all(check.ok is not False for check in self.checks)

    @property
    def word(self) -> str:
        """ok, failed, or differs if it is the tokenizer alone, some of which GGUF cannot say."""
        wrong = {check.name for check in self.checks if check.ok is False}
        return "ok" if not wrong else "differs" if wrong == {"tokenizer"} else "failed"

    @property
    def failures(self) -> str:
        """The failed checks in one line."""
        return "; ".join(f"{check.name}: {check.detail}" for check in self.checks if check.ok is False)

    def error(self) -> VerificationError:
        """What a conversion raises that does not pass."""
        return VerificationError(f"{self.path}: not written, verification failed: {self.failures}", self)

    def metadata(self) -> dict[str, Any]:
        """The keys lowbit.verify.* for a file."""
        from lowbit import __version__

        keys: dict[str, Any] = {"verdict": self.word, "version": __version__}
        keys["text_sha256"] = hashlib.sha256(TEXT.encode()).hexdigest()
        for check in self.checks:
            keys |= {f"{check.name}.{name}": value for name, value in check.figures.items()}
            if check.ok is None:
                keys[f"{check.name}.not_run"] = check.detail[:200]
        return {PREFIX + key: value for key, value in keys.items()}


def verify(
    path: str | os.PathLike[str],
    source: str | os.PathLike[str],
    *,
    lora: Adapters = (),
    lora_scale: float | Sequence[float] = 1.0,
    threads: int | None = None,
    progress: bool = True,
) -> Verdict:
    """Compares a GGUF file with the Hugging Face folder or hub id that it was made of, and of LoRA adapters.

    Differences are in the verdict. Both networks are run in float32, from where the files are mapped; memory holds
    those weights of the source that change on the way. Raises FileError, FormatError or UnsupportedError if one of the
    two cannot be opened.
    """
    opened = open_checkpoint(source, lora, lora_scale)
    return compare_with(path, os.fspath(path), os.fspath(source), opened, threads=threads, progress=progress)


def compare_with(
    path: str | os.PathLike[str],
    shown: str,
    source: str,
    opened: OpenedCheckpoint,
    *,
    changed: Sequence[str] = (),
    threads: int | None = None,
    progress: bool = True,
) -> Verdict:
    """`verify` for a source that is open. shown: the file's name to be. changed: keys that options changed."""
    count = num_threads(threads)
    with gguf.open(path) as file, progress_bar("verify", unit="B", enabled=progress) as advance:
        checks = [_file(file, opened, changed), _tensors(file, opened, count, advance)]
        bits = 8 * sum(map(file.num_bytes, file.infos)) / sum(num_elements(info.shape) for info in file.infos.values())
    if checks[1].ok is False:  # no use in running what is not the same network
        return Verdict(shown, source, checks)
    try:
        result = read_tokenizer(path)
    except Error as error:
        checks.append(Check("tokenizer", False, f"the file's cannot be loaded: {error}"))
        return Verdict(shown, source, checks)
    checks.append(_tokenizer(opened, result))
    limit = 0.0 if checks[1].figures["worst_rmse"] == 0 else _DIVERGENCE if bits >= _MANY_BITS else math.inf
    checks.append(_logits(path, opened, result.encode(TEXT)[:NUM_TOKENS], limit, count))
    return Verdict(shown, source, checks)


def _file(file: gguf.File, opened: OpenedCheckpoint, changed: Sequence[str]) -> Check:
    """The source's metadata, in the file as it is now, and nothing else about network and tokenizer."""
    left_out = {*_OWN_KEYS, *changed}
    expected = {key: value for key, value in opened.metadata.items() if key not in left_out}
    prefixes = (f"{opened.metadata['general.architecture']}.", "tokenizer.")
    found = file.metadata
    wrong = [key for key, value in expected.items() if key not in found or not _equal(value, found[key])]
    wrong += [key for key in found if key.startswith(prefixes) and key not in expected and key not in left_out]
    figures = {"keys": len(expected), "differences": len(wrong)}
    if wrong:
        return Check("file", False, f"not as the source's: {listed(wrong)}", figures)
    return Check("file", True, f"{len(found)} keys, {len(expected)} of them the source's", figures)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, (int, float)):
        with np.errstate(over="ignore"):
            return bool(np.float32(a) == np.float32(b))
    return bool(a == b if isinstance(a, (str, list)) and isinstance(b, (str, list)) else np.array_equal(a, b))


def _tensors(file: gguf.File, opened: OpenedCheckpoint, threads: int, advance: Callable[[int, int], None]) -> Check:
    """Names, shapes and values."""
    sources = {tensor.name: tensor for tensor in opened.tensors}
    if odd := sorted(sources.keys() ^ file.infos.keys()):
        return Check("tensors", False, f"only one of the two has {listed(odd)}")
    total, done, exact = sum(num_elements(source.shape) for source in sources.values()), 0, 0
    worst, worst_name, failed = 0.0, "", []
    for name, source in sources.items():
        _, shape, format = file.infos[name]
        if shape != source.shape:
            return Check("tensors", False, f"{name} has shape {list(shape)}, the source's has {list(source.shape)}")
        rmse, row = _errors(source, file.tensors[name], threads)
        exact += rmse == 0
        if not rmse <= worst:  # NaN counts
            worst, worst_name = rmse, name
        if not row <= row_limit(source, format):
            failed.append(
                f"{name} ({format}) is off by {row:.3g} in one row, expected at most {row_limit(source, format):.3g}"
            )
        done += num_elements(source.shape)
        advance(done, total)
    figures = {"checked": len(sources), "exact": exact, "worst": worst_name, "worst_rmse": worst}
    if failed:
        more = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
        return Check("tensors", False, failed[0] + more, figures)
    detail = f"{len(sources)} compared, {exact} exact"
    if worst_name:
        detail += f"; worst relative error {worst:.3g}, {worst_name} ({file.infos[worst_name].format})"
    return Check("tensors", True, detail, figures)


def row_limit(source: TensorSource, format: str) -> float:
    """How far a row may be off, relative to the root mean square that `_errors` takes."""
    if format in FLOAT_FORMATS:
        return 0.0 if gguf.DTYPES[format] == source.dtype else _ROUNDING[format]
    return min(1.0 + 1e-6, float(8 * 2.0 ** -_core.get_format(format).bits_per_weight))


def _errors(source: TensorSource, tensor: QTensor | npt.NDArray[Any], threads: int) -> tuple[float, float]:
    """Relative root mean square error of a tensor and of its worst row; a row's is relative to the larger of its own
    and the tensor's root mean square, so that rows of next to nothing may vanish."""
    format = format_of(tensor)
    if not isinstance(tensor, QTensor):
        tensor = QTensor(np.ascontiguousarray(tensor).view(np.uint8), format)
    parts = []
    for start, stop in _chunks(source.shape):
        rows = source.rows(start, stop)
        data = np.ascontiguousarray(tensor.data if tensor.ndim == 1 else tensor.data[start:stop])
        parts.append(
            _core.compare_rows(rows.reshape(-1, rows.shape[-1]), data.reshape(-1, data.shape[-1]), format, threads)
        )
    sums = np.concatenate(parts) if parts else np.zeros((0, 3))
    squared, signal = sums[:, 0], sums[:, 1]
    if not squared.any():
        return 0.0, 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        whole = np.sqrt(squared.sum() / signal.sum())
        row = np.sqrt(squared / np.maximum(signal, signal.mean())).max()
    return float(whole), float(row)


def _chunks(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    if len(shape) == 1:
        yield 0, shape[0]
        return
    yield from row_ranges(0, shape[0], num_elements(shape[1:]), CHUNK_WEIGHTS)


def _tokenizer(opened: OpenedCheckpoint, result: Tokenizer) -> Check:
    try:
        source = opened.tokenizer_record
    except Error as error:
        return Check("tokenizer", None, f"not run: {error}")
    report = tokenizer_differences(source, result)
    figures = {"texts": report.num_texts, "differences": len(report.differences) + len(report.tokens)}
    if not report.equal:
        first = report.differences[0] if report.differences else f"special token {report.tokens[0]}"
        return Check(
            "tokenizer", False, f"{figures['differences']} of {report.num_texts} texts differ: {first}", figures
        )
    if source.chat_templates != result.chat_templates:
        return Check("tokenizer", False, "the chat templates differ", figures)
    templates = "chat template equal" if source.chat_templates else "no chat template"
    return Check("tokenizer", True, f"{report.num_texts} texts, none differs; {templates}", figures)


def _logits(
    path: str | os.PathLike[str], opened: OpenedCheckpoint, ids: list[int], limit: float, threads: int
) -> Check:
    """limit: the largest mean divergence in nats; 0: of equal weights, which must give equal logits."""
    try:
        expected = _run(load_opened(opened, compute="f32", threads=threads), ids)
    except UnsupportedError as error:
        return Check("logits", None, f"not run: {error}")
    try:
        found = _run(load(path, compute="f32", threads=threads), ids)
    except Error as error:
        return Check("logits", False, f"the file does not run, which its source does: {error}")
    if not np.isfinite(expected).all():
        return Check("logits", None, "not run: those of the source are not finite")
    if not np.isfinite(found).all():
        return Check("logits", False, "those of the file are not finite", {"tokens": len(expected)})
    largest = float(np.abs(found - expected).max() / max(np.ptp(expected), np.finfo(np.float32).tiny))
    divergences, same_top = _core.kl_divergence(expected, found, threads)
    divergence, top1 = float(divergences.mean()), float(same_top.mean())
    figures = {"tokens": len(expected), "max_difference": largest, "top1": top1, "kl": divergence}
    detail = (
        f"{len(expected)} tokens: largest difference {100 * largest:.2g} % of the range, same first choice "
        f"{100 * top1:.3g} %, divergence {divergence:.2g}"
    )
    return Check("logits", divergence <= limit if limit else largest <= _LOGITS_TOLERANCE, detail, figures)


def _run(model: Model, ids: list[int]) -> npt.NDArray[np.float32]:
    return model.logits(ids[: model.context])
