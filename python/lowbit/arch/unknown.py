"""The error for an unknown architecture: the nearest known one, and the differences from it.

The nearest architecture is the one whose tensor names match most of the file's; among equals, the one with the most
similar name.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from lowbit.arch.base import Architecture
from lowbit.arch.registry import architectures, hf_classes
from lowbit.base.errors import Error, UnsupportedError
from lowbit.base.quoting import quoted, shown
from lowbit.hf.config import Config

#: Keys of config.json that do not affect the network.
SILENT = re.compile(
    r"_.*|architectures|model_type|.*dtype|transformers_version|use_cache|initializer_.*|.*_token_id|.*(dropout|_pdrop)|"
    r"pretraining_tp|auto_map|name_or_path|return_dict.*|output_.*|tokenizer_class|.*_(tp|pp)_plan"
)
MAX_LISTED, MAX_NAME = 3, 60
WAY_OUT = "lowbit.arch.register and lowbit --arch FILE.py add an architecture (docs/add-an-arch.md)"


class _ReadKeys(dict[str, Any]):
    """A dict that records which keys were read."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)


def unknown_class(name: str, config: Config, tensors: Iterable[str]) -> UnsupportedError:
    """The error for an unknown class in config.json. tensors: the checkpoint's names."""
    names = list(tensors)
    candidates = []
    for arch in architectures().values():
        table = {hf: entry.required for hf, (entry, _) in arch.table(_layers(names)).items()}
        alike, nearest = max((_alike(name, hf_name), hf_name) for hf_name in arch.hf_names)
        found = _compared(arch, table, {arch.hf_name(n) for n in names}, _unread(arch, config), alike)
        candidates.append(found._replace(like=nearest if found.fits else ""))
    return _error(name, candidates, path=config.path, key="architectures")


def read_as(like: str, config: Config) -> list[str]:
    """A note on a checkpoint that is read as one of class `like`: the keys of config.json that are not used."""
    classes = config.values.get("architectures")
    if classes == [like]:
        return []
    name = shown(classes[0], MAX_NAME) if isinstance(classes, list) and classes else "a checkpoint without a class"
    unread = "; ".join(_unread(hf_classes()[like], config))
    return [f"{name} is read as {like}" + (f": {unread}" if unread else "")]


def unknown_name(name: str, tensors: Iterable[str]) -> UnsupportedError:
    """The error for an unknown general.architecture. tensors: the GGUF file's names."""
    names = set(tensors)
    candidates = []
    for arch in architectures().values():
        table = {gguf: entry.required for entry, gguf in arch.table(_layers(names)).values()}
        candidates.append(_compared(arch, table, names, [], _alike(name, arch.name)))
    return _error(name, candidates, "general.architecture: ", key="general.architecture")


class _Candidate(NamedTuple):
    """How well an architecture matches; greater is better."""

    agreement: tuple[
        int, int, float
    ]  #: matching minus missing tensors; minus differences in config.json; similarity of names
    name: str
    differences: list[str]
    fits: bool  #: no tensor is missing, and none is unknown
    like: str = ""  #: the class with the most similar name, for a checkpoint that fits


def _compared(
    arch: Architecture, table: Mapping[str, bool], names: set[str], others: list[str], alike: float
) -> _Candidate:
    """table: tensors' names, and whether they are required."""
    extra = [name for name in names if name not in table]
    missing = [name for name, required in table.items() if required and name not in names]
    matching = len(names) - len(extra)
    differences = [f"{matching} of {len(names)} tensors match"]
    differences += [f"extra: {_listed(extra)}"] if extra else []
    differences += [f"missing: {_listed(missing)}"] if missing else []
    return _Candidate(
        (matching - len(missing), -len(others), alike), arch.name, differences + others, not extra + missing
    )


def _error(name: str, candidates: list[_Candidate], where: str = "", **fields: Any) -> UnsupportedError:
    best = max(candidates)
    more = f"; like={best.like} (--like) reads the checkpoint as one of this class" if best.like else ""
    known, differences = ", ".join(architectures())[:200], "; ".join(best.differences)
    return UnsupportedError(
        f"{where}architecture {quoted(name, MAX_NAME)} is unknown; nearest: {best.name} ({differences}); "
        f"known: {known}; {WAY_OUT}{more}",
        found=name,
        **fields,
    )


def _alike(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a[:MAX_NAME], b).ratio()


def _layers(names: Iterable[str]) -> int:
    """Number of consecutive layers from 0 on in the names."""
    found = {int(match[1]) for name in names if (match := re.search(r"\.(\d{1,6})\.", name))}
    return next(i for i in itertools.count() if i not in found)


def _unread(arch: Architecture, config: Config) -> list[str]:
    """The architecture's error for this config.json, if any, and the keys of config.json that it does not use."""
    result: list[str] = []
    try:
        flat = arch.text_config(config)
        values = _ReadKeys(flat.values)
        recorded = Config(values, "config.json")
        recorded.boolean("tie_word_embeddings", False)
        for read in (arch.check, arch.metadata, arch.late_metadata):
            read(recorded)
        unread = [
            k for k, v in values.items() if k not in values.asked and v not in (None, False) and not SILENT.fullmatch(k)
        ]
        result += [f"config.json also has {_listed(unread)}"] if unread else []
    except Error as error:
        result.append(f"differs: {shown(error, 160)}")
    return result


def _listed(names: list[str]) -> str:
    """A few names; the names of all layers are merged into one."""
    kinds = sorted({re.sub(r"\.\d+(?=\.)", ".*", ascii(name)[1:-1]) for name in names})
    more = f" and {len(kinds) - MAX_LISTED} more" if len(kinds) > MAX_LISTED else ""
    return ", ".join(kind[:MAX_NAME] for kind in kinds[:MAX_LISTED]) + more
