"""Whether a converted file tokenizes as its source does, and what it has to carry so that it does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lowbit._core import Error
from lowbit.arch import OpenedCheckpoint
from lowbit.heap import trim_heap
from lowbit.pretokenizer import UNKNOWN
from lowbit.tokenizer import from_metadata, read_tokenizer
from lowbit.tokenizer_definition import DEFINITION_KEY, EOS_IDS_KEY, MERGES_KEY, definition
from lowbit.tokenizer_differences import TokenizerRecord, TokenizerReport, tokenizer_differences
from lowbit.tokenizer_files import rebuilt_definition
from lowbit.tokenizer_json import tokenizer_config, tokenizer_json


def is_unnamed(metadata: Mapping[str, Any]) -> bool:
    """Whether no name fits how the tokenizer cuts words, so that without its own definition the file is wrong."""
    return metadata.get("tokenizer.ggml.model") == "gpt2" and metadata.get("tokenizer.ggml.pre") == UNKNOWN


def carried_tokenizer(opened: OpenedCheckpoint, metadata: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """Keys for the end of a file, with which `metadata`'s tokenizer gives the ids of the checkpoint's; {} if it does.

    What `tokenizer_differences` finds decides. `notes` is told what other programs will do otherwise.
    """
    try:
        source = opened.tokenizer_record
        bare = from_metadata(metadata)
    except Error as error:
        notes.append(f"the tokenizer was not compared with its source: {error}")
        return {}
    ends = {i for i in source.eos_ids if i < len(metadata["tokenizer.ggml.tokens"])}
    carried: dict[str, Any] = {EOS_IDS_KEY: np.array(sorted(ends), np.uint32)} if ends - bare.eos_ids else {}
    report = tokenizer_differences(source, bare)
    del bare
    trim_heap()
    return carried | (_carried_definition(opened.folder, source, report, metadata, notes) if report.differences else {})


def _carried_definition(
    folder: Path, source: TokenizerRecord, bare: TokenizerReport, metadata: Mapping[str, Any], notes: list[str]
) -> dict[str, Any]:
    """The definition, and merges where scores do not give them. bare: what differs without."""
    tokenizer = _definition(folder)
    with_frame = any(not difference.text for difference in bare.differences)
    carried: dict[str, Any] = {DEFINITION_KEY: definition(tokenizer, metadata, with_frame)}
    left = _differences(source, {**metadata, **carried})
    if left.differences and "tokenizer.ggml.merges" not in metadata and (merges := _merges(tokenizer)):
        carried[MERGES_KEY] = merges
        left = _differences(source, {**metadata, **carried})
    notes.append(
        f"{DEFINITION_KEY} keeps what GGUF has no key for; programs that ignore it tokenize "
        f"{len(bare.differences)} of {bare.num_texts} test texts otherwise, as {bare.differences[0]}"
    )
    if left.differences:
        notes.append(
            f"{len(left.differences)} of {left.num_texts} test texts are tokenized otherwise than by the source, as "
            f"{left.differences[0]}"
        )
    return carried


def _definition(folder: Path) -> dict[str, Any]:
    """The folder's tokenizer.json, or what stands for it."""
    if not (folder / "tokenizer.json").is_file():
        found: dict[str, Any] = json.loads(read_tokenizer(folder).backend.to_str())
        return found
    return rebuilt_definition(folder, tokenizer_config(folder)) or tokenizer_json(folder)


def _differences(source: TokenizerRecord, metadata: Mapping[str, Any]) -> TokenizerReport:
    found = tokenizer_differences(source, from_metadata(metadata))
    trim_heap()
    return found


def _merges(tokenizer: dict[str, Any]) -> list[str]:
    """The merges of a BPE model whose file has scores instead, or [] where they cannot be written with a blank."""
    merges = tokenizer["model"].get("merges") or []
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    return [] if any(len(pair) != 2 or " " in "".join(pair) for pair in pairs) else [" ".join(pair) for pair in pairs]
