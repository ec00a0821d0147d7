"""Checks whether a converted file tokenizes like its source, and finds the keys that it needs for that."""

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
    """Whether GGUF has no name for the pre-tokenizer. The file then needs the tokenizer's own definition."""
    return metadata.get("tokenizer.ggml.model") == "gpt2" and metadata.get("tokenizer.ggml.pre") == UNKNOWN


class Carried(NamedTuple):
    """Keys for the end of a file. record: results of the tokenizer with these keys; None if it cannot be loaded."""

    keys: dict[str, Any]
    record: TokenizerRecord | None


class KnownTokenizer(NamedTuple):
    """Metadata, and the results of the tokenizer that it describes."""

    metadata: Mapping[str, Any]
    record: TokenizerRecord


def carried_tokenizer(opened: OpenedCheckpoint, metadata: Mapping[str, Any], notes: list[str]) -> Carried:
    """Keys with which the tokenizer in `metadata` gives the checkpoint's ids; no keys if it already does.

    The tokenizers are compared by `tokenizer_differences`. `notes` gets a sentence on programs that ignore the keys.
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
    """`keys`, the definition, and merges if scores do not imply them. bare: the differences without these keys."""
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
        f"{DEFINITION_KEY} holds the parts of the tokenizer that have no GGUF key; programs that ignore it tokenize "
        f"{len(bare.differences)} of {bare.num_texts} test texts differently, for example {bare.differences[0]}"
    )
    if left.differences:
        notes.append(
            f"{len(left.differences)} of {left.num_texts} test texts are tokenized differently from the source, for "
            f"example {left.differences[0]}"
        )
    return Carried({**keys, **carried}, found)


def _definition(folder: Path) -> dict[str, Any]:
    """The folder's tokenizer.json, or its equivalent."""
    backend: dict[str, Any] = json.loads(read_tokenizer(folder).backend.to_str())
    tokenizer = rebuilt_definition(folder, tokenizer_config(folder)) or tokenizer_json(folder)
    return {**tokenizer, "added_tokens": backend["added_tokens"]} if tokenizer else backend


def record_of(metadata: Mapping[str, Any], texts: Iterable[str]) -> TokenizerRecord:
    """The results of the tokenizer in `metadata` for the texts. Raises the errors of `lowbit.load_tokenizer`."""
    found = record(from_metadata(metadata), texts, added=False)
    trim_heap()
    return found


def _merges(tokenizer: dict[str, Any]) -> list[str]:
    """The merges of a BPE model, for a file with scores; [] if a token has a space, so that they cannot be written."""
    merges = tokenizer["model"].get("merges") or []
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    return [] if any(len(pair) != 2 or " " in "".join(pair) for pair in pairs) else [" ".join(pair) for pair in pairs]
