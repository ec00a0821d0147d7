"""`verify` compares a GGUF file with its source: metadata, tensors, tokenizer and logits, with one verdict.

Checks, and when they fail:

- file: the file is opened again. It must have the source's metadata, except keys that options changed.
- tensors: names, shapes and decoded values must match the source. Floats must equal the source's, rounded to the file's
  format directly or through another float format, as with the reference's two tools. In other formats, the error of a
  row is measured relative to the larger of its own and the tensor's root mean square. It must be below `8 * 2 ** -b`
  for b bits per weight, several times the loss of any encoder. It must also be below 1, the error of a row of zeros,
  and 0 if the format keeps the row exactly. So exchanged, shifted and damaged rows fail; a wrong low bit of a code does
  not.
- tokenizer: `tokenizer_differences`, chat templates, and the ids that end a text. Any difference fails. If verification
  was not requested explicitly, the conversion still writes the file, with the verdict "differs", because GGUF cannot
  represent everything in tokenizer.json.
- logits: of both networks on a built-in text, in float32. Equal tensors must give equal logits. Otherwise all must be
  finite, and from 8 bits per weight on the mean divergence must be at most 1 nat. Below 8 bits the figures show the
  loss.

Both networks run together and read their matrices in pieces (streamed.py). The tensors are compared in the same pass,
so each is read once, and memory does not grow with the model.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from lowbit import _core, gguf
from lowbit.arch import spec as spec_of
from lowbit.base.errors import Error, UnsupportedError
from lowbit.base.heap import trim_heap
from lowbit.base.paths import AnyPath, checked
from lowbit.base.progress import Advance, ProgressLike, steps
from lowbit.base.quoting import listed
from lowbit.base.threads import num_threads
from lowbit.base.version import __version__
from lowbit.conversion.carried import KnownTokenizer, record_of
from lowbit.conversion.open import OpenedCheckpoint, open_checkpoint
from lowbit.conversion.streamed import Network
from lowbit.conversion.tensor_pairs import TensorPair, tensor_pairs
from lowbit.gguf.source import gguf_tensors
from lowbit.hf.lora import Adapters
from lowbit.tensors import nonfinite
from lowbit.tensors.qtensor import format_of
from lowbit.tensors.source import num_elements, read
from lowbit.tokenizer.differences import TEXTS, TokenizerRecord, tokenizer_differences
from lowbit.tokenizer.sample_text import NUM_TOKENS, TEXT

__all__ = ["Check", "Verdict", "VerificationError", "verify"]

Logits = npt.NDArray[np.float32]

PREFIX = "lowbit.verify."
#: Keys that describe the file, not its source.
_OWN_KEYS = ("general.file_type", "general.quantization_version")
#: Equal weights give logits within this limit, for every order of sums in float32.
_LOGITS_TOLERANCE = 1e-5
#: From this many bits per weight on, quantization costs less than 0.001 nats, while wrong settings (rotary base,
#: epsilon of the norms) cost more than one. At 4 bits it alone cost 0.94 in an untrained network of 28 layers.
_MANY_BITS, _DIVERGENCE = 8.0, 1.0


class VerificationError(Error):
    """A file differs from its source. `verdict` says where."""

    def __init__(self, text: str = "", *, verdict: Verdict, **fields: Any) -> None:
        super().__init__(text, **fields)
        self.verdict = verdict


@dataclass(frozen=True)
class Check:
    """One check. ok: None if it was impossible. detail: the result, or why there is none. figures: numbers by name."""

    name: str
    ok: bool | None
    detail: str
    figures: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Verdict:
    """The result of `verify`: the checks "file", "tensors", "tokenizer" and "logits", as far as they were made."""

    path: str
    source: str
    checks: list[Check]

    @property
    def ok(self) -> bool:
        """True if no check failed. Checks that could not be made are ignored."""
        return all(check.ok is not False for check in self.checks)

    @property
    def word(self) -> str:
        """'ok', 'failed', or 'differs' if only the tokenizer differs, because GGUF cannot represent every tokenizer."""
        wrong = {check.name for check in self.checks if check.ok is False}
        return "ok" if not wrong else "differs" if wrong == {"tokenizer"} else "failed"

    @property
    def warnings(self) -> list[str]:
        """Warnings that are not differences: weights that are not finite in the source, either."""
        return [str(check.figures["not_finite"]) for check in self.checks if "not_finite" in check.figures]

    @property
    def failures(self) -> str:
        """The failed checks in one line."""
        return "; ".join(f"{check.name}: {check.detail}" for check in self.checks if check.ok is False)

    def error(self) -> VerificationError:
        """The error of a conversion that fails verification."""
        return VerificationError(f"not written, verification failed: {self.failures}", path=self.path, verdict=self)

    def metadata(self) -> dict[str, Any]:
        """The keys lowbit.verify.* for a file."""
        keys: dict[str, Any] = {"verdict": self.word, "version": __version__}
        keys["text_sha256"] = hashlib.sha256(TEXT.encode()).hexdigest()
        for check in self.checks:
            keys |= {f"{check.name}.{name}": value for name, value in check.figures.items()}
            if check.ok is None:
                keys[f"{check.name}.not_run"] = check.detail[:200]
        return {PREFIX + key: value for key, value in keys.items()}


def verify(
    path: AnyPath,
    source: AnyPath,
    *,
    lora: Adapters = (),
    lora_scale: float | Sequence[float] = 1.0,
    like: str | None = None,
    threads: int | None = None,
    progress: ProgressLike = None,
) -> Verdict:
    """Compares a GGUF file with its source: a Hugging Face folder or hub id, and LoRA adapters.

    Compares metadata, tensors, tokenizer and the logits of a built-in text, for which both networks run in float32.
    Weights are read in pieces, so models of any size take little memory.

    lora, lora_scale, like: those of the conversion.
    threads: number of threads; None: LOWBIT_THREADS, else one per processor.
    progress: see `lowbit.ProgressLike`.

    Returns a Verdict, also if the two differ. Raises FileError, FormatError or UnsupportedError if the file or the
    source cannot be opened.

        verdict = lowbit.verify("model-Q4_K_M.gguf", "org/model")
        assert verdict.ok, verdict.failures
    """
    path, source = checked(path), checked(source)
    with verifying(progress) as advance:
        opened = open_checkpoint(
            source, lora=lora, lora_scale=lora_scale, like=like, record_tokenizer=True, progress=progress
        )
        return compare_with(path, path, source, opened, advance, threads=threads)


@contextmanager
def verifying(progress: ProgressLike) -> Iterator[Advance]:
    """The progress of a verification. It starts at once, because opening the source takes some time."""
    with steps("verify", "weights", progress) as advance:
        advance(0, None)
        yield advance


def compare_with(
    path: str,
    shown: str,
    source: str,
    opened: OpenedCheckpoint,
    advance: Advance,
    *,
    known: KnownTokenizer | None = None,
    changed: Sequence[str] = (),
    threads: int | None = None,
) -> Verdict:
    """`verify` for an open source.

    shown: the file's final name. known: metadata with the results of its tokenizer, which is not loaded again if the
    file has the same. changed: keys that options changed.
    """
    count = num_threads(threads)
    trim_heap()
    check, metadata = _file(path, opened, changed)
    checks = [check]
    with gguf.open(path) as file:
        if wrong := _other_tensors(file, opened):
            return Verdict(shown, source, [*checks, Check("tensors", False, wrong)])
        bits = 8 * sum(map(file.num_bytes, file.infos)) / sum(num_elements(info.shape) for info in file.infos.values())
        tokenizer, ids = _tokenizer(metadata, opened, known)
        sources = {tensor.name: tensor for tensor in opened.tensors}
        merged = bool(opened.origin.adapters)
        pairs = tensor_pairs(sources, gguf_tensors(file), count, exact=opened.exact_formats, merged=merged)
        # The networks read most of the tensors, and these are compared in the same pass.
        networks = _Networks(file, metadata, opened, pairs, count, advance)
        logits = networks.logits(ids) if ids else None
        checks.append(_tensors(pairs, advance))
    if checks[1].ok is False:  # the logits of other weights mean nothing
        return Verdict(shown, source, checks)
    checks.append(tokenizer)
    if logits is not None:
        limit = 0.0 if checks[1].figures["worst_rmse"] == 0 else _DIVERGENCE if bits >= _MANY_BITS else math.inf
        checks.append(logits if isinstance(logits, Check) else _logits(*logits, limit, count))
    return Verdict(shown, source, checks)


def _file(path: str, opened: OpenedCheckpoint, changed: Sequence[str]) -> tuple[Check, Mapping[str, Any]]:
    """Checks that the file has the source's metadata, and no other keys on network, tokenizer and sampling.

    Also returns the file's metadata. Values equal to the source's are the same objects, so the vocabulary is in memory
    once.
    """
    left_out = {*_OWN_KEYS, *changed}
    expected = {key: value for key, value in opened.metadata.items() if key not in left_out}
    prefixes = (f"{opened.metadata['general.architecture']}.", "tokenizer.", "general.sampling.")
    with gguf.open(path) as file:
        found = dict(file.metadata)
    wrong = []
    for key, value in expected.items():
        if key in found and _equal(value, found[key]):
            found[key] = value
        else:
            wrong.append(key)
    wrong += [key for key in found if key.startswith(prefixes) and key not in expected and key not in left_out]
    figures = {"keys": len(expected), "differences": len(wrong)}
    if wrong:
        return Check("file", False, f"other than in the source: {listed(wrong)}", figures), found
    return Check("file", True, f"{len(found)} keys, {len(expected)} of them from the source", figures), found


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, (int, float)):
        with np.errstate(over="ignore"):
            return bool(np.float32(a) == np.float32(b))
    return bool(a == b if isinstance(a, (str, list)) and isinstance(b, (str, list)) else np.array_equal(a, b))


def _other_tensors(file: gguf.File, opened: OpenedCheckpoint) -> str | None:
    """The first difference in names and shapes."""
    sources = {tensor.name: tensor.shape for tensor in opened.tensors}
    if odd := sorted(sources.keys() ^ file.infos.keys()):
        return f"only one of the two has {listed(odd)}"
    for name, shape in sources.items():
        if file.infos[name].shape != shape:
            return f"{name}: expected shape {list(shape)}, found {list(file.infos[name].shape)}"
    return None


def _tensors(pairs: Mapping[str, TensorPair], advance: Advance) -> Check:
    """Compares the values that have not been compared yet."""
    total = sum(num_elements(pair.shape) for pair in pairs.values())
    done = sum(pair.num_compared for pair in pairs.values())
    worst, worst_name, exact = 0.0, "", 0
    failed: list[str] = []
    odd: list[str] = []
    for name, pair in pairs.items():
        before = pair.num_compared
        pair.complete()
        done += pair.num_compared - before
        advance(done, total)
        errors = pair.errors()
        exact += errors.rmse == 0
        if not errors.rmse <= worst:  # also true for NaN
            worst, worst_name = errors.rmse, name
        if errors.odd:
            odd.append(f"in {name} {errors.odd}")
        if errors.problem:
            failed.append(f"{name} ({pair.format}) {errors.problem}")
    figures = {"checked": len(pairs), "exact": exact, "worst": worst_name, "worst_rmse": worst}
    if failed:
        more = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
        return Check("tensors", False, failed[0] + more, figures)
    if odd:
        figures["not_finite"] = f"{odd[0]}, as in the source: {nonfinite.ADVICE}"
    detail = f"{len(pairs)} compared, {exact} exact"
    if worst_name:
        detail += f"; worst relative error {worst:.3g}, {worst_name} ({pairs[worst_name].format})"
    detail += f"; {figures['not_finite']}" if odd else ""
    return Check("tensors", True, detail, figures)


def _tokenizer(
    metadata: Mapping[str, Any], opened: OpenedCheckpoint, known: KnownTokenizer | None
) -> tuple[Check, list[int]]:
    """The check, and the tokens of the built-in text; no tokens if the file's tokenizer cannot be loaded."""
    source: TokenizerRecord | Error
    try:
        source = opened.tokenizer_record
    except Error as error:
        source = error
    texts = TEXTS if isinstance(source, Error) else source.texts
    try:
        is_known = known is not None and _is_same_tokenizer(metadata, known.metadata)
        result = known.record if known and is_known else record_of(metadata, texts)
    except Error as error:
        return Check("tokenizer", False, f"the file's tokenizer cannot be loaded: {error}"), []
    ids = result.ids[texts.index(TEXT)][:NUM_TOKENS]
    if isinstance(source, Error):
        return Check("tokenizer", None, f"not run: {source}"), ids
    return _compared_tokenizers(source, result, len(metadata["tokenizer.ggml.tokens"])), ids


def _is_same_tokenizer(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether the tokenizer keys of two files are equal."""
    prefixes = ("tokenizer.", "lowbit.tokenizer.", "general.name")
    keys = [key for key in (*a, *b) if key.startswith(prefixes)]
    return all(key in a and key in b and (a[key] is b[key] or _equal(a[key], b[key])) for key in keys)


def _compared_tokenizers(source: TokenizerRecord, result: TokenizerRecord, num_tokens: int) -> Check:
    report = tokenizer_differences(source, result)
    figures = {"texts": report.num_texts, "differences": len(report.differences) + len(report.tokens)}
    if not report.equal:
        first = report.differences[0] if report.differences else f"special token {report.tokens[0]}"
        return Check(
            "tokenizer", False, f"{figures['differences']} of {report.num_texts} texts differ: {first}", figures
        )
    if source.chat_templates != result.chat_templates:
        return Check("tokenizer", False, "the chat templates differ", figures)
    if missing := {token for token in source.eos_ids if token < num_tokens} ^ result.eos_ids:
        return Check(
            "tokenizer", False, f"only one of the two ends a text at tokens {listed(sorted(missing))}", figures
        )
    templates = "chat template equal" if source.chat_templates else "no chat template"
    return Check("tokenizer", True, f"{report.num_texts} texts equal; {templates}", figures)


class _Networks:
    """The source's network and the file's. They run in one pass if only their matrices differ."""

    def __init__(
        self,
        file: gguf.File,
        metadata: Mapping[str, Any],
        opened: OpenedCheckpoint,
        pairs: Mapping[str, TensorPair],
        threads: int,
        advance: Advance,
    ) -> None:
        self._file = file
        self._metadata = metadata
        self._opened = opened
        self._pairs = pairs
        self._threads = threads
        self._advance = advance
        self._total = sum(num_elements(pair.shape) for pair in pairs.values())
        self._num_compared = 0
        self._piece: tuple[tuple[str, int, int], npt.NDArray[Any]] = ("", 0, 0), np.empty(0)

    def logits(self, ids: list[int]) -> tuple[Logits, Logits] | Check:
        """Logits of both, (tokens, vocabulary) each; or a check with the reason why there are none."""
        vectors = {tensor.name: tensor for tensor in self._opened.tensors if len(tensor.shape) == 1}
        try:
            source = self._network(self._opened.metadata, {name: read(tensor) for name, tensor in vectors.items()})
        except UnsupportedError as error:
            return Check("logits", None, f"not run: {error}")
        try:
            result = self._network(self._metadata, {name: self._file.tensors[name] for name in vectors})
            ids = ids[: min(source.spec.context_length, result.spec.context_length)]
            if source.equals(result):
                expected, found = source.logits(ids, self._both, 2, self._threads)
            else:
                (expected,) = source.logits(ids, self._of_source, 1, self._threads)
                (found,) = result.logits(ids, self._of_file, 1, self._threads)
        except Error as error:
            return Check("logits", False, f"the source runs, but the file does not: {error}")
        return expected, found

    def _network(self, metadata: Mapping[str, Any], vectors: Mapping[str, Any]) -> Network:
        matrices = {name: pair.shape for name, pair in self._pairs.items() if name not in vectors}
        return Network(spec_of(metadata, vectors), vectors, matrices)

    def _of_source(self, name: str, first: int, num: int, _: int = 0) -> tuple[str, npt.NDArray[Any]]:
        rows = self._pairs[name].source_rows(first, first + num)
        self._piece = (name, first, num), rows
        return format_of(rows), rows

    def _of_file(self, name: str, first: int, num: int, _: int = 0) -> tuple[str, npt.NDArray[Any]]:
        return self._pairs[name].format, self._pairs[name].file_rows(first, first + num)

    def _both(self, name: str, first: int, num: int, sequence: int) -> tuple[str, npt.NDArray[Any]]:
        """Rows of the source for sequence 0, then the same rows of the file for sequence 1, which are compared.

        Embeddings are requested token by token, first all of sequence 0, and are compared later.
        """
        if sequence == 0:
            return self._of_source(name, first, num)
        format, data = self._of_file(name, first, num)
        piece, rows = self._piece
        if piece == (name, first, num):
            self._pairs[name].compare(first, rows, data)
            self._num_compared += rows.size
            self._advance(self._num_compared, self._total)
        return format, data


def _logits(expected: Logits, found: Logits, limit: float, threads: int) -> Check:
    """limit: the largest mean divergence in nats; 0: equal weights, which must give equal logits."""
    if not np.isfinite(expected).all():
        return Check("logits", None, "not run: the source's logits are not finite")
    if not np.isfinite(found).all():
        return Check("logits", False, "the file's logits are not finite", {"tokens": len(expected)})
    largest = float(np.abs(found - expected).max() / max(np.ptp(expected), np.finfo(np.float32).tiny))
    divergences, same_top = _core.kl_divergence(expected, found, threads)
    divergence, top1 = float(divergences.mean()), float(same_top.mean())
    figures = {"tokens": len(expected), "max_difference": largest, "top1": top1, "kl": divergence}
    detail = (
        f"{len(expected)} tokens: largest difference {100 * largest:.2g} % of the range, same top token "
        f"{100 * top1:.3g} %, divergence {divergence:.2g} nats"
    )
    return Check("logits", divergence <= limit if limit else largest <= _LOGITS_TOLERANCE, detail, figures)
