"""LoRA adapters saved by PEFT, merged into a checkpoint's weights while the weights are read.

   W' = W + scale * B A                 (N, K) = (N, K) + (N, r) (r, K);  scale = alpha / r, or alpha / sqrt(r)
   W' = m / |W + scale * B A| * (...)   DoRA: m (N,), the norm of each row

Computed in float32, as peft's merge_and_unload does for float32 weights. The results are equal except for the order of
sums over r and, with DoRA, over rows. A merged weight is float32 and rounded once, to the file's format. (peft rounds
to the checkpoint's type after each adapter, and with half-precision adapters also rounds B A.)

Tied output and embeddings follow PEFT's merged model:

| the adapter has | result |
| --- | --- |
| output or embeddings in modules_to_save, without ensure_weight_tying | they are untied |
| a whole matrix that modules_to_save does not name (save_embedding_layers) | both change |
| low-rank factors of the embeddings | both change |

Adapters are folders or hub ids with adapter_config.json and adapter_model.safetensors. Everything in them is checked
against the checkpoint before weights are read. No part of an adapter is ignored silently.
"""

from __future__ import annotations

import copy
import errno
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lowbit.base import arguments
from lowbit.base.errors import FileError, FormatError, InputError, UnsupportedError
from lowbit.base.paths import AnyPath, is_dir, is_file
from lowbit.base.progress import ProgressLike
from lowbit.base.quoting import quoted
from lowbit.hf.checkpoint import Checkpoint, StoredTensor, read_json, read_safetensors
from lowbit.hf.config import MOST_FLOAT32, Config
from lowbit.hf.hub import resolve
from lowbit.tensors.source import read, row_ranges

Adapter = AnyPath
Adapters = Adapter | Sequence[Adapter]

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
#: Keys of adapter_config.json that change the formula, or the base weights.
UNSUPPORTED = (
    "use_qalora", "use_bdlora", "lora_bias", "layer_replication", "alora_invocation_tokens", "trainable_token_indices",
    "target_parameters", "arrow_config", "kasa_config", "monteclora_config", "megatron_config",
)  # fmt: skip
#: init_lora_weights that keep the base weights; PiSSA, OLoRA and others change them.
PLAIN_INITIALIZATIONS = (True, False, None, "gaussian", "orthogonal", "eva")
#: Patterns of module names that always match quickly.
SAFE_PATTERN = re.compile(r"(?:[\w.|^$-]|\\[.d]|\.\*|\\d\+){1,200}")
MOST_REPEATS = 3

#: The two names of one matrix in a tied checkpoint, in the form of `_plain_name`.
EMBEDDINGS, OUTPUT = "embed_tokens.weight", "lm_head.weight"
COMPARED_ELEMENTS = 1 << 22

_FACTORS = re.compile(r"(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(?:\.weight)?")


@dataclass
class Delta:
    """The change of one matrix by one adapter: scale * b a, with a (r, K) and b (N, r).

    For embeddings peft stores the transposed factors: a is (r, N), b is (K, r).
    """

    a: StoredTensor
    b: StoredTensor
    scale: np.float32
    magnitude: np.ndarray | None = None
    transposed: bool = False

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start..stop, float32. The factors are read each time; they are small compared with the rows."""
        if self.transposed:
            left = np.ascontiguousarray(read(self.a)[:, start:stop].T, np.float32)
            right = read(self.b).astype(np.float32).T
        else:
            left, right = self.b.rows(start, stop).astype(np.float32), read(self.a).astype(np.float32)
        product: np.ndarray = left @ right
        product *= self.scale
        return product


class MergedTensor(StoredTensor):
    """A matrix of a checkpoint plus the changes of adapters, float32."""

    def __init__(self, base: StoredTensor, deltas: Sequence[Delta]) -> None:
        super().__init__(base.file, base.name, base.dtype_name, base.shape, base.offset)
        self.shard = base.shard
        self.base = base
        self.deltas = deltas

    @classmethod
    def adding(cls, tensor: StoredTensor, delta: Delta) -> MergedTensor:
        """A tensor with one more change."""
        return cls(tensor.base, [*tensor.deltas, delta]) if isinstance(tensor, MergedTensor) else cls(tensor, [delta])

    @property
    def dtype(self) -> np.dtype:
        """float32."""
        return np.dtype(np.float32)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start..stop of the first axis, merged."""
        base: np.ndarray = self.base.rows(start, stop).astype(np.float32)
        merged: np.ndarray = base.copy()
        with np.errstate(all="ignore"):  # NaN and infinity are found when the tensor is encoded
            for delta in self.deltas:
                rows = delta.rows(start, stop)
                merged += rows
                if delta.magnitude is not None:
                    # The norm is that of the base's weights, even if other adapters have changed them.
                    rows += base
                    merged *= (delta.magnitude[start:stop] / np.linalg.norm(rows, axis=1))[:, None]
        return merged


class _Replaced(StoredTensor):
    """A tensor of an adapter that replaces the checkpoint's."""

    def __init__(self, base: StoredTensor, own: StoredTensor) -> None:
        super().__init__(own.file, base.name, own.dtype_name, own.shape, own.offset)
        self.shard = base.shard


class Merged(NamedTuple):
    """The result of a merge: notes for the user, and the folders of all adapters."""

    notes: list[str]
    folders: list[Path]


def merge(
    checkpoint: Checkpoint,
    adapters: Adapters,
    scales: float | Sequence[float],
    hub_id: str | None = None,
    tied: bool = False,
    progress: ProgressLike = None,
) -> Merged:
    """Merges adapters into the checkpoint's tensors, one after another.

    hub_id: of the checkpoint. scales: factors of the adapters' changes, one number for all or one for each. tied:
    whether config.json ties output and embeddings. Raises InputError for wrong scales, FileError, FormatError and
    UnsupportedError for adapters that cannot be read or do not fit.
    """
    if not isinstance(adapters, (str, bytes, os.PathLike, Iterable)):
        raise arguments.wrong("lora", "a folder or hub id, or a list of them", adapters)
    paths = [adapters] if isinstance(adapters, (str, bytes, os.PathLike)) else list(adapters)
    given = scales if isinstance(scales, Sequence) else [scales]
    factors = [arguments.number("lora_scale", factor, -MOST_FLOAT32, MOST_FLOAT32) for factor in given]
    if not paths and any(factor != 1 for factor in factors):
        raise InputError("lora_scale has no effect without lora (--lora)")
    factors = factors if given is scales else factors * len(paths)
    if len(factors) != len(paths):
        raise InputError(
            "lora_scale:", expected=f"one number, or one for each of {len(paths)} adapters", found=len(factors)
        )
    merged = Merged([], [])
    for path, factor in zip(paths, factors, strict=True):
        folder, adapter_id = resolve(path, progress=progress)
        merged.folders.append(folder)
        step = _Merge(checkpoint, folder, factor, tied)
        step.run()
        tied = step.tied
        merged.notes.extend(step.notes)
        names = [hub_id or checkpoint.folder.name, str(checkpoint.config.get("_name_or_path", ""))]
        made_for = step.config.text("base_model_name_or_path", "")
        if made_for and _last_part(made_for) not in map(_last_part, names):
            merged.notes.append(f"the adapter {adapter_id or folder.name} was made for {made_for[:120]}")
    return merged


def _last_part(name: str) -> str:
    """The last part of a path or hub id."""
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1].lower()


class _Merge:
    """The merge of one adapter."""

    def __init__(self, checkpoint: Checkpoint, folder: Path, factor: float, tied: bool) -> None:
        self.checkpoint = checkpoint
        self.folder = folder
        self.factor = factor
        self.tied = tied
        self.weights = folder / WEIGHTS
        self.config = Config(_read_config(folder), str(folder / CONFIG))
        _check(self.config)
        self.notes: list[str] = []
        if is_file(folder / PICKLE):
            self.notes.append(f"the adapter {folder.name} is read from {WEIGHTS}; ignored: {PICKLE}")
        self.seen: set[str] = set()
        self.names: dict[str, str] = {}
        for name in checkpoint.tensors:
            self.names.setdefault(_plain_name(name), name)

    def run(self) -> None:
        stored = read_safetensors(self.weights)
        if not stored:
            raise FormatError("there are no tensors", path=self.weights)
        parts: dict[str, dict[str, StoredTensor]] = {}
        whole: dict[str, StoredTensor] = {}
        for name, tensor in stored.items():
            if match := _FACTORS.fullmatch(name):
                parts.setdefault(match[1], {})[match[2]] = tensor
            elif re.search(r"\.(lora|token_adapter|trainable_tokens)_?\w*\.|lora_", name):
                raise tensor.error(UnsupportedError, " is not a tensor of a LoRA adapter")
            elif (plain := re.sub(r"\.modules_to_save(\.default)?\.", ".", name)) == name or plain not in stored:
                whole[plain] = tensor
        if {EMBEDDINGS, OUTPUT} & {*map(_base_name, whole), *(_plain_name(f"{module}.weight") for module in parts)}:
            self._tie()
        self._replace_all(whole)
        for module, factors in parts.items():
            self._add(module, factors)

    @property
    def _is_shared(self) -> bool:
        """Whether output and embeddings are one tensor of the checkpoint."""
        return self.tied and (EMBEDDINGS in self.names) != (OUTPUT in self.names)

    def _tie(self) -> None:
        """Replaces equal tensors by one, as transformers does for a checkpoint whose config.json ties them."""
        if self.tied and {EMBEDDINGS, OUTPUT} <= self.names.keys():
            first, second = (self.checkpoint.tensors[self.names[name]] for name in (EMBEDDINGS, OUTPUT))
            if _are_equal(first, second):
                del self.checkpoint.tensors[self.names.pop(OUTPUT)]

    def _untie(self) -> None:
        """Gives embeddings and output separate tensors."""
        there, absent = (EMBEDDINGS, OUTPUT) if EMBEDDINGS in self.names else (OUTPUT, EMBEDDINGS)
        tensor = copy.copy(self.checkpoint.tensors[self.names[there]])
        tensor.name = absent if absent == OUTPUT else f"model.{absent}"
        self.checkpoint.tensors[tensor.name] = tensor
        self.names[absent] = tensor.name
        self.tied = False

    def _replace_all(self, whole: dict[str, StoredTensor]) -> None:
        """Uses the whole tensors of an adapter: modules_to_save, trained biases, and base weights saved with it."""
        saved: dict[str, StoredTensor] = {}  # tensors that untie the two
        if self._is_shared and not self.config.boolean("ensure_weight_tying", False):
            saved = {name: tensor for name, tensor in whole.items() if self._is_saved(_plain_name(name))}
            for key in filter(self._is_saved, (EMBEDDINGS, OUTPUT)):
                if key not in map(_plain_name, saved):
                    raise FormatError(
                        f"tensor {key!r} is missing, but modules_to_save in {CONFIG} names it",
                        path=self.weights,
                        tensor=key,
                    )
        # If one tensor has two names, torch loads the output's last.
        for name in sorted(whole.keys() - saved.keys(), key=lambda name: (_base_name(name) == OUTPUT, name)):
            self._replace(_base_name(name), whole[name])
        if saved:
            self._untie()
        for name, tensor in saved.items():
            self._replace(_plain_name(name), tensor)

    def _is_saved(self, plain: str) -> bool:
        """Whether modules_to_save names the embeddings' or the output's tensor: PEFT compares the ends of names."""
        names = self.config.values.get("modules_to_save") or []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise self.config.wrong("modules_to_save", names, "a list of names")
        modules = {EMBEDDINGS: "base_model.model.model.embed_tokens", OUTPUT: "base_model.model.lm_head"}
        return any(modules[plain].endswith(name) for name in names) if plain in modules else False

    def _target(self, plain: str, tensor: StoredTensor) -> str:
        """The checkpoint's name for an adapter's tensor."""
        found = self.names.get(plain)
        if found is None and self._is_shared and plain in (EMBEDDINGS, OUTPUT):
            found = self.names.get(EMBEDDINGS, self.names.get(OUTPUT))
        if found is None:
            raise tensor.error(FormatError, f": the checkpoint has no tensor {plain!r}")
        return found

    def _replace(self, plain: str, tensor: StoredTensor) -> None:
        target = self._target(plain, tensor)
        base = self.checkpoint.tensors[target]
        _ = base.dtype  # raises UnsupportedError for other types
        resized = tensor.shape[1:] == base.shape[1:] and plain in (EMBEDDINGS, OUTPUT)
        hint = ": first add the tokens to the base, with resize_token_embeddings" if resized else ""
        self._expect(tensor, base.shape, f"the checkpoint's {target!r}{hint}")
        self.checkpoint.tensors[target] = _Replaced(base, tensor)

    def _add(self, module: str, factors: dict[str, StoredTensor]) -> None:
        is_embedding = any("embedding" in kind for kind in factors)
        names = ("lora_embedding_A", "lora_embedding_B") if is_embedding else ("lora_A", "lora_B")
        if missing := [name for name in names if name not in factors]:
            raise FormatError(f"module {module!r} has no {missing[0]}", path=self.weights, tensor=module)
        a, b = (factors.pop(name) for name in names)
        magnitude = factors.pop("lora_magnitude_vector", None)
        if factors or (magnitude is not None) != self.config.boolean("use_dora", False):
            raise FormatError(
                f"module {module!r} does not match use_dora in {CONFIG}", path=self.weights, tensor=module
            )
        if is_embedding and magnitude is not None:
            raise UnsupportedError(
                f"module {module!r} is an embedding with DoRA, which lowbit does not support",
                path=self.weights,
                tensor=module,
            )
        plain = _plain_name(f"{module}.weight")
        target = self._target(plain, a)
        if self._is_shared and plain == OUTPUT:
            raise a.error(
                UnsupportedError,
                " changes the output, and would also change the embeddings that are tied to it: use a base model saved "
                "with a separate lm_head and tie_word_embeddings false",
            )
        if self._is_shared and plain == EMBEDDINGS:
            self.notes.append(
                f"the adapter {self.folder.name} changes the embeddings and the output tied to them, as PEFT's "
                "merge_and_unload does; without merging, it changes only the embeddings"
            )
        base = self.checkpoint.tensors[target]
        _ = base.dtype  # raises UnsupportedError for other types
        if target in self.seen:
            raise a.error(FormatError, f" is for {target!r}, which another tensor also changes")
        self.seen.add(target)
        if len(base.shape) != 2:
            raise a.error(FormatError, f" is for {target!r}, which is not a matrix")
        rows, columns = base.shape[::-1] if is_embedding else base.shape
        rank = int(self._pattern_value("rank_pattern", module, self.config.integer("r")))
        self._expect(a, (rank, columns), f"rank {rank} and the checkpoint's {target!r} {list(base.shape)}")
        self._expect(b, (rows, rank), f"rank {rank} and the checkpoint's {target!r} {list(base.shape)}")
        alpha = self._pattern_value("alpha_pattern", module, self.config.number("lora_alpha"))
        scale = alpha / (math.sqrt(rank) if self.config.boolean("use_rslora", False) else rank)
        delta = Delta(a, b, np.float32(self.factor * scale), transposed=is_embedding)
        if magnitude is not None:
            self._expect(magnitude, (base.shape[0],), f"the rows of {target!r}")
            delta.magnitude = read(magnitude).astype(np.float32)
        self.checkpoint.tensors[target] = MergedTensor.adding(base, delta)

    def _expect(self, tensor: StoredTensor, shape: tuple[int, ...], reason: str) -> None:
        _ = tensor.dtype  # raises UnsupportedError for other types
        if tensor.shape != shape:
            raise tensor.error(
                FormatError,
                f" has shape {list(tensor.shape)}",
                expected=f"{list(shape)} from {reason}",
                found=list(tensor.shape),
            )

    def _pattern_value(self, key: str, module: str, default: float) -> float:
        """A number for a module: the value of the first pattern that matches its name, else `default`."""
        module = module.removeprefix("base_model.model.")
        patterns = self.config.values.get(key) or {}
        if not isinstance(patterns, dict):
            raise self.config.wrong(key, patterns, "an object")
        for pattern in patterns:
            if not SAFE_PATTERN.fullmatch(pattern) or len(re.findall(r"[*+]", pattern)) > MOST_REPEATS:
                raise self.config.error(
                    UnsupportedError,
                    key,
                    f"has the pattern {quoted(pattern, 80)}",
                    expected="a simple regular expression",
                    found=pattern,
                )
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                values = Config(patterns, self.config.path, key)
                return values.integer(pattern) if key == "rank_pattern" else values.number(pattern)
        return default


def _read_config(folder: Path) -> dict[str, object]:
    if not is_dir(folder):
        raise FileError("no such folder", path=folder, errno=errno.ENOENT, expected=f"an adapter with {CONFIG}")
    if not is_file(folder / CONFIG):
        raise FileError(f"no {CONFIG}: the folder is not a PEFT adapter", path=folder, errno=errno.ENOENT)
    if not is_file(folder / WEIGHTS):
        if is_file(folder / PICKLE):
            raise UnsupportedError(
                f"{PICKLE} is a pickle, and loading a pickle can run code: lowbit reads only safetensors; if you trust "
                "the file, convert it with PeftModel.from_pretrained(base, d).save_pretrained(d)",
                path=folder,
            )
        raise FileError(f"no {WEIGHTS}", path=folder, errno=errno.ENOENT)
    return read_json(folder / CONFIG)


def _check(config: Config) -> None:
    """Raises UnsupportedError for anything but plain LoRA or DoRA."""
    if (kind := config.text("peft_type", "LORA")) != "LORA":
        raise config.error(UnsupportedError, "peft_type", quoted(kind, 40), expected="LORA", found=kind)
    for key in UNSUPPORTED:
        if config.values.get(key):
            raise config.error(UnsupportedError, key, "is set, and lowbit cannot merge such adapters")
    initialization = config.values.get("init_lora_weights")
    if initialization not in PLAIN_INITIALIZATIONS:
        raise config.error(
            UnsupportedError,
            "init_lora_weights",
            f"is {quoted(initialization, 40)}, which changes the base weights: save the adapter with "
            "path_initial_model_for_weight_conversion",
        )


def _base_name(name: str) -> str:
    """The plain name, also for base weights saved in an adapter."""
    return _plain_name(re.sub(r"\.(base_layer|original_module)\.", ".", name))


def _are_equal(first: StoredTensor, second: StoredTensor) -> bool:
    """Whether two tensors hold the same values."""
    return first.shape == second.shape and all(
        np.array_equal(first.rows(start, stop), second.rows(start, stop))
        for start, stop in row_ranges(0, first.shape[0], math.prod(first.shape[1:]), COMPARED_ELEMENTS)
    )


def _plain_name(name: str) -> str:
    """A name without the prefixes of peft and of wrapper classes."""
    return re.sub(r"^(?:base_model\.model\.)?(?:model\.|language_model\.)*", "", name)
