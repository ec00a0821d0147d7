"""`load` and `Model`: logits, text and chat from a GGUF file or a Hugging Face folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lowbit import _core, arch, gguf
from lowbit.arch.model_spec import ModelSpec
from lowbit.base import arguments
from lowbit.base.errors import ContextFullError, InputError
from lowbit.base.foreign import of_file
from lowbit.base.log import log_notes
from lowbit.base.paths import AnyPath, checked, is_file
from lowbit.base.progress import ProgressLike, steps
from lowbit.base.threads import num_threads
from lowbit.engine.memory import Weight, in_memory
from lowbit.engine.sequences import Sequences, num_shared
from lowbit.tensors import nonfinite, rows
from lowbit.tensors.qtensor import QTensor, bytes_of, format_of
from lowbit.tokenizer.stream import StopFilter

if TYPE_CHECKING:
    from lowbit.hf.lora import Adapters
    from lowbit.tokenizer.load import Tokenizer

#: Tokens of a prompt per call of the core; Ctrl-C is handled between calls.
PROMPT_PIECE = 512

#: The most sequences that a model can hold at once.
MOST_SEQUENCES = 1 << 16

#: The largest id, position and length of the core.
MOST_INT32 = (1 << 31) - 1

Prompt = str | Sequence[int]


def load(
    path: AnyPath,
    *,
    compute: str = "auto",
    threads: int | None = None,
    context: int | None = None,
    max_sequences: int = 8,
    mmap: bool = True,
    lora: Adapters = (),
    lora_scale: float | Sequence[float] = 1.0,
    like: str | None = None,
    progress: ProgressLike = None,
) -> Model:
    """Opens a GGUF file, or a Hugging Face folder or hub id, to run it.

    compute: arithmetic of matrix products: "auto", "int8", "int16", "bf16" or "f32", as in `lowbit.matmul`. Logits do
        not depend on other sequences in a batch, on how a prompt is cut, or on the number of threads, except those of
        float weights with "bf16" or "auto".
    threads: number of threads; None: LOWBIT_THREADS, else one per processor.
    context: tokens that a sequence can hold; None: the context that the model was trained on. More logs a warning.
        Memory is allocated as sequences grow.
    max_sequences: sequences that can be held at once, 1 to 65,536.
    mmap: False: weights are copied to memory, in large pages where the system has them. Loading takes longer, and
        the memory is the process's own. Decoding is up to 1.3 times as fast where a mapped file has small pages:
        docs/performance.md says when. Overwriting the file does not disturb such a model.
    lora, lora_scale, like: for checkpoints, as in `lowbit.convert`.
    progress: counts tensors, and bytes of a download; see `lowbit.ProgressLike`.

    With `mmap`, files stay mapped, and weights are used in place. Weights of a checkpoint that need conversion (fp8,
    LoRA, rotary reordering) are read into memory.

    To replace a file that a model uses, write a new file and rename it, as lowbit's writers do; the model keeps the old
    one. If the file is overwritten in place (`cp` onto it, `wget -O`) or truncated, the running call and later calls
    raise FileError; load the model again.

    Raises FileError, FormatError or UnsupportedError if the model cannot be opened, InputError for a wrong argument.

        model = lowbit.load("smol.gguf")
        print(model.generate("Once upon a time", max_tokens=32))
    """
    options: Any = {"compute": compute, "threads": threads, "context": context, "max_sequences": max_sequences}
    mmap = arguments.flag("mmap", mmap)
    where = checked(path)
    if is_file(where) or where.endswith(".gguf"):
        arguments.refuse_checkpoint_options(where, lora, like)
        file = gguf.open(where)
        tensors = {name: weight for name, weight in file.tensors.items() if _is_weight(weight)}
        with of_file(where), steps("load", "tensors", progress) as advance:
            spec = arch.spec(file.metadata, tensors)
            placed = tensors if mmap else in_memory(tensors, advance)
            model = Model(spec, placed, metadata=file.metadata, path=path, files=file, **options)
            advance(len(tensors), len(tensors))
            return model
    from lowbit.conversion.open import open_checkpoint
    from lowbit.hf.checkpoint import mapped

    opened = open_checkpoint(where, lora=lora, lora_scale=lora_scale, like=like, progress=progress)
    if like is not None:
        log_notes(opened.notes)
    weights: dict[str, Weight] = {}
    with steps("load", "tensors", progress) as advance:
        for source in opened.tensors:
            weights[source.name] = mapped(source)
            advance(len(weights), len(opened.tensors))
    spec = arch.spec(opened.metadata, weights)
    if not mmap:
        with steps("copy", "tensors", progress) as advance:
            weights = in_memory(weights, advance)
    return Model(spec, weights, metadata=opened.metadata, path=opened.folder, files=opened.folder, **options)


def _is_weight(weight: Weight) -> bool:
    return isinstance(weight, QTensor) or weight.dtype.name in ("float32", "float16", "bfloat16")


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `Model.tokens` among the arguments of a method that passes them to it."""
    return {name: given[name] for name in Model.tokens.__kwdefaults__ or ()}


class Model:
    """A network with its weights, made by `load`.

    Several threads can call it; calls that compute run one after another. If a process forks while another thread
    computes, calls in the child raise InputError: load the model again there.

    Attributes: `spec` (description of the network), `metadata` (GGUF keys), `weights` (by GGUF name), `tokenizer`,
    `path`, `compute`, `threads`, `context` (tokens per sequence), `nbytes` (bytes of the weights).
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: Mapping[str, Weight],
        *,
        metadata: Mapping[str, Any],
        path: AnyPath,
        files: gguf.File | AnyPath,
        compute: str,
        threads: int | None,
        context: int | None,
        max_sequences: int,
    ) -> None:
        max_sequences = arguments.integer("max_sequences", max_sequences, 1, MOST_SEQUENCES)
        self.context = 0
        self.spec = spec
        self.metadata = metadata
        self.path = path
        self.compute = arguments.text("compute", compute)
        self.threads = num_threads(threads)
        self.weights = weights
        self._files = files
        self._tokenizer: Tokenizer | None = None
        self._sequences = Sequences(max_sequences)
        tensors = {name: (format_of(w), list(w.shape), bytes_of(w)) for name, w in weights.items()}
        self._core = _core.Model(spec, tensors, compute, self.threads, 1, max_sequences)
        self.make_room(spec.context_length if context is None else context)

    def __repr__(self) -> str:
        return f"Model({os.fspath(self.path)!r}, {self.spec.architecture}, {self.nbytes / 1e6:.1f} MB of weights)"

    def make_room(self, context: int) -> None:
        """Lets every sequence hold at least `context` tokens.

        Logs a warning if the model was trained on fewer tokens. Raises InputError for an invalid number.
        """
        context = arguments.integer("context", context, 1, MOST_INT32)
        if context <= self.context:
            return
        self._core.raise_max_length(context)
        self.context = context
        if context > self.spec.context_length:
            trained = f"the {self.spec.context_length} tokens that the model was trained on"
            log_notes([f"context {context} is beyond {trained}: expect worse predictions there"])

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return sum(weight.nbytes for weight in self.weights.values())

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the model's files, loaded at first use. Raises the errors of `lowbit.load_tokenizer`."""
        if self._tokenizer is None:
            from lowbit.tokenizer.load import load_tokenizer

            self._tokenizer = load_tokenizer(self._files)
        return self._tokenizer

    def logits(self, ids: Sequence[int] | npt.NDArray[np.integer[Any]], *, start: int = 0) -> npt.NDArray[np.float32]:
        """Logits after each token of `ids` from index `start` on: float32 (len(ids) - start, vocabulary).

        ids: a list or an integer array (tokens,). No token is added, so BOS must be among them if the model needs it.

        Raises InputError for an id outside the vocabulary, ContextFullError for more ids than `context`.

            model.logits(model.tokenizer.encode("Once upon a time"))[-1].argmax()
        """
        tokens = _as_ids(ids)
        start = arguments.integer("start", start, 0)
        with self._sequences.take(()) as (sequence, held):
            self._rewind(sequence, held, 0)
            pieces = [self._feed(sequence, held, piece, len(tokens), wanted_from=start) for piece in _pieces(tokens)]
            self._rewind(sequence, held, 0)
        return np.concatenate(pieces) if pieces else np.empty((0, self.spec.vocab_size), np.float32)

    def tokens(
        self,
        prompt: Prompt,
        *,
        max_tokens: int | None = 64,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        ignore_eos: bool = False,
    ) -> Iterator[int]:
        """Yields the token ids that follow `prompt` (text or ids), up to a token that ends the text.

        max_tokens: most tokens to generate; None: as many as fit into the context.
        temperature: 0 takes the most likely token; above 0 samples from softmax(logits / temperature).
        top_k: sample only from the k most likely tokens; 0: from all.
        top_p: sample only from the fewest tokens with a total probability of p.
        min_p: sample only from tokens with at least p times the highest probability.
        repetition_penalty: above 1, tokens that occurred before become less likely (Keskar et al. 2019).
        seed: the same seed gives the same tokens; None: a new seed for each call.
        ignore_eos: continue after tokens that end a text.

        Raises InputError for an empty prompt or an option out of range, ContextFullError if prompt and max_tokens
        together do not fit into the context.
        """
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else _as_ids(prompt)
        if not ids:
            raise InputError("the prompt has no tokens")
        if max_tokens is not None:
            max_tokens = arguments.integer("max_tokens", max_tokens, 0)
        room = self.context - len(ids)
        if room < (max_tokens or 1):
            raise ContextFullError(
                f"context full: a prompt of {len(ids)} tokens and {max_tokens or 1} more do not fit into {self.context}"
            )
        sampler = _core.Sampler(
            temperature=arguments.number("temperature", temperature),
            top_k=arguments.integer("top_k", top_k, 0, (1 << 63) - 1),
            top_p=arguments.number("top_p", top_p),
            min_p=arguments.number("min_p", min_p),
            repetition_penalty=arguments.number("repetition_penalty", repetition_penalty),
            seed=arguments.seed(seed),
        )
        ends = frozenset() if ignore_eos else frozenset(self.tokenizer.eos_ids)
        return self._generate(ids, room if max_tokens is None else max_tokens, sampler, ends)

    def _generate(self, ids: list[int], num: int, sampler: _core.Sampler, ends: frozenset[int]) -> Iterator[int]:
        with self._sequences.take(ids) as (sequence, held):
            # The last token of the prompt is always computed, because its logits are needed, and always alone: in a
            # batch it could be rounded differently, and the same call with a filled cache would give another text.
            self._read(sequence, held, ids[:-1], len(ids))
            sampler.accept(ids)
            token = ids[-1]
            for _ in range(num):
                token = self._step(sequence, held, token, sampler)
                if token in ends:
                    return
                yield token

    def stream(
        self,
        prompt: Prompt,
        *,
        max_tokens: int | None = 64,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        ignore_eos: bool = False,
        stop: str | Iterable[str] | None = None,
    ) -> Iterator[str]:
        """Yields the text that follows `prompt` while it is generated, in pieces of whole characters.

        stop: a text or several; generation ends before the first of them. Other options and errors are those of
            `tokens`.

            for piece in model.stream("Once upon a time"):
                print(piece, end="", flush=True)
        """
        options = _options(locals())
        return self._text(self.tokens(prompt, **options), stop, continuation=True)

    def _text(self, ids: Iterator[int], stop: str | Iterable[str] | None, continuation: bool) -> Iterator[str]:
        text = self.tokenizer.stream(continuation=continuation)
        stops = StopFilter(() if stop is None else stop)
        for token in ids:
            if piece := stops.push(text.push(token)):
                yield piece
            if stops.stopped:
                return
        if piece := stops.push(text.flush()) + stops.flush():
            yield piece

    def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int | None = 64,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        ignore_eos: bool = False,
        stop: str | Iterable[str] | None = None,
    ) -> str:
        """The text that follows `prompt` as one string. Options and errors are those of `stream`."""
        options = _options(locals())
        return "".join(self.stream(prompt, stop=stop, **options))

    def stream_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int | None = None,
        temperature: float = 0.7,
        top_k: int = 0,
        top_p: float = 0.95,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        ignore_eos: bool = False,
        stop: str | Iterable[str] | None = None,
    ) -> Iterator[str]:
        """Yields the answer to `messages`, formatted with the model's chat template.

        messages: [{"role": "user", "content": "..."}, ...].
        Options and errors are those of `stream`. The defaults are those of `lowbit chat`: as many tokens as fit into
        the context, temperature 0.7, top_p 0.95. Raises UnsupportedError if the model has no chat template.
        """
        options = _options(locals())
        prompt = self.tokenizer.encode_chat(messages)
        return self._text(self.tokens(prompt, **options), stop, continuation=False)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int | None = None,
        temperature: float = 0.7,
        top_k: int = 0,
        top_p: float = 0.95,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        ignore_eos: bool = False,
        stop: str | Iterable[str] | None = None,
    ) -> str:
        """The answer to `messages` as one string. Options and errors are those of `stream_chat`.

        model.chat([{"role": "user", "content": "What is 2 + 2?"}])
        """
        options = _options(locals())
        return "".join(self.stream_chat(messages, stop=stop, **options))

    def forward(
        self,
        tokens: npt.ArrayLike,
        positions: npt.ArrayLike,
        sequences: npt.ArrayLike,
        *,
        wants_logits: npt.ArrayLike | None = None,
        expected_length: int = 0,
        out: npt.NDArray[np.float32] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Computes one step of several sequences: the lower level of `logits` and `tokens`.

        tokens, positions, sequences: integer arrays (tokens,). Positions must continue the sequence's cache, which
            `truncate` shortens. At most max_sequences sequences are held at once.
        wants_logits: bool array (tokens,): which tokens' logits to return; None: all.
        expected_length: expected length of the sequences that start here. It matters for LongRoPE
            (`spec.original_context` > 0), where a sequence keeps the rotary table, for short or for long sequences,
            that it started with. A sequence that started short raises InputError when it gets long: truncate it to 0
            and feed it again.
        out: array to write the logits to, which is then returned. Steps of several sequences have megabytes of logits,
            and new memory takes time.

        Returns float32 (tokens with wanted logits, vocabulary). The other methods also use sequence ids from 0 on, so
        do not mix them with `forward` on one model. Raises InputError for wrong arrays, ContextFullError for positions
        beyond the context.
        """
        ids = _as_int32("tokens", tokens)
        wants = (
            np.ones(ids.shape, bool) if wants_logits is None else arguments.array("wants_logits", wants_logits, bool)
        )
        positions, sequences = _as_int32("positions", positions), _as_int32("sequences", sequences)
        expected_length = arguments.integer("expected_length", expected_length, 0, MOST_INT32)
        if out is not None:
            rows.output(out, np.dtype(np.float32), (int(wants.sum()), self.spec.vocab_size), {})
        return self._core.forward(ids, positions, sequences, wants, expected_length, out)

    def stage_times(
        self, ids: Sequence[int] | npt.NDArray[np.integer[Any]], *, start: int = 0
    ) -> list[tuple[str, int | None, float]]:
        """Computes the tokens of `ids` from index `start` on in one step, after the others, and times its stages.

        Returns a stage's name, its layer (None for the embedding and the logits) and seconds, in their order, once for
        each 512 tokens. The logits are those of the last token. Raises InputError for ids outside the vocabulary, no
        ids after `start`, or a model with an observer; ContextFullError for more ids than `context`.
        """
        tokens = _as_ids(ids)
        if not tokens:
            raise InputError("ids:", expected="at least one token")
        start = arguments.integer("start", start, 0, len(tokens) - 1)
        with self._sequences.take(tokens) as (sequence, held):
            self._read(sequence, held, tokens[:start], len(tokens))
            positions = np.arange(start, len(tokens), dtype=np.int32)
            where = positions, np.full(len(positions), sequence, np.int32), positions == len(tokens) - 1
            _, times = self._core.forward_profiled(np.array(tokens[start:], np.int32), *where, len(tokens))
            held.extend(tokens[start:])
        return times

    def truncate(self, sequence: int, length: int = 0) -> None:
        """Keeps only the first `length` tokens of a sequence of `forward`."""
        sequence = arguments.integer("sequence", sequence, -MOST_INT32 - 1, MOST_INT32)
        self._core.truncate(sequence, arguments.integer("length", length, 0, MOST_INT32))

    def observe(self, callback: Callable[[str, npt.NDArray[np.float32]], None] | None) -> None:
        """Calls `callback(name, x)` before each matrix product from now on; None ends this.

        name: the weight's name, for example "blk.0.ffn_down.weight". x: a copy of the product's input, float32
        (tokens, columns). An exception in the callback ends the call that computes. A callback that calls the model
        gets an InputError.
        """
        if callback is not None and not callable(callback):
            raise arguments.wrong("callback", "a function or None", callback)
        self._core.set_observer(callback)

    def _read(self, sequence: int, held: list[int], ids: list[int], length: int) -> None:
        """Makes `ids` the first tokens of a sequence of `length`. Computes those that are not in the cache, or all if
        the cache was computed with a rotary table for another length."""
        keep = 0 if self._core.is_long(sequence) != self.spec.is_long(length) else num_shared(held, ids)
        self._rewind(sequence, held, keep)
        for piece in _pieces(ids[keep:]):
            self._feed(sequence, held, piece, length, wanted_from=length)

    def _step(self, sequence: int, held: list[int], token: int, sampler: _core.Sampler) -> int:
        """Feeds one token to a sequence and returns the next."""
        length = len(held) + 1
        if self.spec.is_long(length) != self.spec.is_long(length - 1):
            self._read(sequence, held, list(held), length)
        following = self._core.step(sampler, token, length - 1, sequence)
        held.append(token)
        if following is None:
            raise nonfinite.error(f"none of the {self.spec.vocab_size} logits is a finite number", self.weights)
        return following

    def _rewind(self, sequence: int, held: list[int], length: int) -> None:
        # In this order: Ctrl-C between the two then leaves more tokens in the cache than in `held`, which is harmless.
        del held[length:]
        self._core.truncate(sequence, length)

    def _feed(
        self, sequence: int, held: list[int], ids: list[int], length: int, wanted_from: int
    ) -> npt.NDArray[np.float32]:
        """Feeds tokens of a sequence of `length` and returns the logits of the positions from `wanted_from` on."""
        positions = np.arange(len(held), len(held) + len(ids), dtype=np.int32)
        sequences = np.full(len(ids), sequence, np.int32)
        wants = positions >= wanted_from
        logits = self._core.forward(np.array(ids, np.int32), positions, sequences, wants, length)
        held.extend(ids)
        return logits


def _pieces(ids: list[int]) -> Iterator[list[int]]:
    return (ids[i : i + PROMPT_PIECE] for i in range(0, len(ids), PROMPT_PIECE))


def _as_int32(name: str, values: npt.ArrayLike) -> npt.NDArray[np.int32]:
    array = arguments.array(name, values)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise InputError(f"{name}:", expected="integers in one dimension", found=f"{array.dtype} {array.shape}")
    bounds = np.iinfo(np.int32)
    if array.size and (array.min() < bounds.min or array.max() > bounds.max):
        raise InputError(f"{name}:", expected=f"{bounds.min} to {bounds.max}", found=f"{array.min()} to {array.max()}")
    return array.astype(np.int32)


def _as_ids(ids: Sequence[int] | npt.NDArray[np.integer[Any]]) -> list[int]:
    return [int(i) for i in _as_int32("ids", ids)]
