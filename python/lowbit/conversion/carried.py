"""Whether a converted file tokenizes as its source does, and what it has to carry so that it does."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lowbit.base.errors import Error
from lowbit.base.heap import trim_heap
from lowbit.conversion.open import OpenedCheckpoint
from lowbit.tokenizer.definition import DEFINITION_KEY, EOS_IDS_KEY, MERGES_KEY, definition
from lowbit.tokenizer.differences import TokenizerRecord, TokenizerReport, record, tokenizer_differences
from lowbit.tokenizer.files import rebuilt_definition
from lowbit.tokenizer.load import from_metadata, read_tokenizer
from lowbit.tokenizer.naming import UNKNOWN
from lowbit.tokenizer.tokenizer_json import tokenizer_config, tokenizer_json


def is_unnamed(metadata: Mapping[str, Any]) -> bool:
    """Whether no name fits how the tokenizer cuts words, so that without its own definition the file is wrong."""
    return metadata.get("tokenizer.ggml.model") == "gpt2" and metadata.get("tokenizer.ggml.pre") == UNKNOWN


class Carried(NamedTuple):
    """Keys for the end of a file. record: what the file's tokenizer does then, None if it cannot be loaded."""

    keys: dict[str, Any]
    record: TokenizerRecord | None


class KnownTokenizer(NamedTuple):
    """Metadata, and what its tokenizer does."""

    metadata: Mapping[str, Any]
    record: TokenizerRecord


def carried_tokenizer(opened: OpenedCheckpoint, metadata: Mapping[str, Any], notes: list[str]) -> Carried:
    """Keys with which `metadata`'s tokenizer gives the ids of the checkpoint's; none if it does already.

    What `tokenizer_differences` finds decides. `notes` is told what other programs will do otherwise.
    """
    try:
        source = opened.tokenizer_record
        found = record_of(metadata, source.texts)
    except Error as error:
        notes.append(f"the tokenizer was not compared with its source: {error}")
        return Carried({}, None)
    ends = {i for i in source.eos_ids if i < len(metadata["tokenizer.ggml.tokens"])}
    keys: dict[str, Any] = {EOS_IDS_KEY: np.array(sorted(ends), np.uint32)} if ends - found.eos_ids else {}
    found = replace(found, eos_ids=found.eos_ids | ends)
    report = tokenizer_differences(source, found)
    if not report.differences:
        return Carried(keys, found)
    return _carried_definition(opened.folder, source, report, {**metadata, **keys}, keys, notes)


def _carried_definition(
    folder: Path,
    source: TokenizerRecord,
    bare: TokenizerReport,
    metadata: Mapping[str, Any],
    keys: Mapping[str, Any],
    notes: list[str],
) -> Carried:
    """`keys`, the definition, and merges where scores do not give them. bare: what differs without."""
    tokenizer = _definition(folder)
    with_frame = any(not difference.text for difference in bare.differences)
    carried: dict[str, Any] = {DEFINITION_KEY: definition(tokenizer, metadata, with_frame)}
    found = record_of({**metadata, **carried}, source.texts)
    left = tokenizer_differences(source, found)
    if left.differences and "tokenizer.ggml.merges" not in metadata and (merges := _merges(tokenizer)):
        carried[MERGES_KEY] = merges
        found = record_of({**metadata, **carried}, source.texts)
        left = tokenizer_differences(source, found)
    notes.append(
        f"{DEFINITION_KEY} keeps what GGUF has no key for; programs that ignore it tokenize "
        f"{len(bare.differences)} of {bare.num_texts} test texts otherwise, as {bare.differences[0]}"
    )
    if left.differences:
        notes.append(
            f"{len(left.differences)} of {left.num_texts} test texts are tokenized otherwise than by the source, as "
            f"{left.differences[0]}"
        )
    return Carried({**keys, **carried}, found)


def _definition(folder: Path) -> dict[str, Any]:
    """The folder's tokenizer.json, or what stands for it."""
    backend: dict[str, Any] = json.loads(read_tokenizer(folder).backend.to_str())
    tokenizer = rebuilt_definition(folder, tokenizer_config(folder)) or tokenizer_json(folder)
    return {**tokenizer, "added_tokens": backend["added_tokens"]} if tokenizer else backend


def record_of(metadata: Mapping[str, Any], texts: Iterable[str]) -> TokenizerRecord:
    """What the tokenizer that metadata describes makes of texts. Raises as `lowbit.load_tokenizer` does."""
    found = record(from_metadata(metadata), texts, added=False)
    trim_heap()
    return found


def _merges(tokenizer: dict[str, Any]) -> list[str]:
    """The merges of a BPE model whose file has scores instead, or [] where they cannot be written with a blank."""
    merges = tokenizer["model"].get("merges") or []
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    return [] if any(len(pair) != 2 or " " in "".join(pair) for pair in pairs) else [" ".join(pair) for pair in pairs]
