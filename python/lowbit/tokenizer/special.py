"""Special tokens, merges and the chat template of a Hugging Face folder, read as in the reference converter.

The post_processor in tokenizer.json defines the tokens around a text. tokenizer_config.json, then config.json define
the texts of roles. tokenizer.json's added_tokens define the ids of texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.base.errors import FormatError
from lowbit.base.paths import is_file
from lowbit.base.quoting import quoted, shown
from lowbit.hf.checkpoint import read_json
from lowbit.tokenizer.chat_files import template_keys

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
#: Names of id keys that differ from the role's. "seperator" is GGUF's spelling.
ID_NAMES = {"unk": "unknown", "sep": "seperator", "pad": "padding"}
#: Roles without a key in GGUF.
UNKEPT_ROLES = ("cls",)
#: Roles with a key in GGUF that says whether the token is added.
ADDED_ROLES = ("bos", "eos", "sep")
#: The largest id in a file.
_MAX_ID = (1 << 32) - 1

# Tokens that end a turn or a document. The files of chat models often name only some of them.
# fmt: off
_ENDS = frozenset((
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "[e~[",
    "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>",
    "<REPO>", "<reponame>", "<|file_sep|>",
))
# fmt: on


def id_key(role: str) -> str:
    """The key of a special token's id."""
    return f"tokenizer.ggml.{ID_NAMES.get(role, role)}_token_id"


def wrong_key(key: str, expected: str, found: object = None) -> FormatError:
    """The error for an unexpected value in a GGUF file's metadata."""
    return FormatError(f"{key}:", key=key, expected=expected, found=found)


def checked_special(key: str, value: Any, num_tokens: int) -> int | None:
    """The id in a file's key; None for an id without a token.

    Real files use the largest number (-1 as a signed one) for "none". Raises FormatError for an invalid id.
    """
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise wrong_key(key, "an integer", f"{type(value).__name__} {quoted(value, 40)}")
    if value < -1:
        raise wrong_key(key, f"an id below {num_tokens}", value)
    return int(value) if 0 <= value < num_tokens else None


def listed_ends(folder: Path, num_tokens: int, notes: list[str]) -> set[int]:
    """The ids of eos_token_id in config.json and generation_config.json. Ids without a token are noted instead."""
    found: set[int] = set()
    unknown: dict[str, list[str]] = {}
    for path in (folder / "config.json", folder / "generation_config.json"):
        value = read_json(path).get("eos_token_id") if is_file(path) else None
        for i in value if isinstance(value, list) else [] if value is None else [value]:
            if type(i) is int and 0 <= i < num_tokens:
                found.add(i)
            else:
                unknown.setdefault(shown(i, 40), []).append(path.name)
    for value, names in unknown.items():
        where = " and ".join(dict.fromkeys(names))
        notes.append(f"{where}: eos_token_id has {value}, but there are {num_tokens} tokens: ignored")
    return found


def known_ends(ids: Mapping[str, int]) -> set[int]:
    """Added tokens whose names end a text.

    Only added tokens count: byte-level vocabularies have merged pieces such as "</s>", which are text.
    """
    found = {text: i for text, i in ids.items() if text in _ENDS}
    # Harmony and Solar end messages with <|end|>, but turns with other tokens; Gemma 4 has an unused </s>.
    names = found.keys()
    if {"<|return|>", "<|call|>"} <= names or (names & {"<|call|>", "<|calls|>"} and "<|flush|>" in names):
        found.pop("<|end|>", None)
    if "<|tool_response>" in found:
        found.pop("</s>", None)
    return set(found.values())


class _Roles:
    """The text of each role, and which tokens are added to a text, while the post_processor is read."""

    def __init__(self, tokenizer_config: dict[str, Any]) -> None:
        self.config = dict(tokenizer_config)
        self.roles: tuple[str, ...] = ROLES
        self.added: dict[str, bool] = {}
        for missing, instead in (("bos", "cls"), ("eos", "sep")):
            if self.config and not self.text(missing) and self.text(instead):
                self.config[f"{missing}_token"] = self.text(instead)
        # The texts for the post_processor: without a tokenizer_config.json it defines them itself.
        self.bos, self.eos = self.text("bos"), self.text("eos")
        self.cls, self.sep = self.text("cls"), self.text("sep")

    def text(self, role: str) -> Any:
        """The role's entry in tokenizer_config.json: a string or an object."""
        return self.config.get(f"{role}_token")

    def process(self, processor: dict[str, Any]) -> None:
        """One step of the post_processor."""
        kind = processor.get("type")
        if kind == "ByteLevel":
            self.added.setdefault("bos", False)
            self.added.setdefault("eos", False)
        elif kind == "RobertaProcessing":
            self.added |= {"bos": True, "eos": True, "sep": True}
            for role, default in (("cls", self.bos), ("sep", self.eos)):
                if not getattr(self, role) and self.config:
                    pair = processor.get(role) or [default]
                    setattr(self, role, pair[0])
                    self.config[f"{role}_token"] = pair[0]
        elif kind == "TemplateProcessing":
            single, pair = processor.get("single") or [], processor.get("pair") or []
            first = _special(single[0]) if len(single) > 1 else None
            last = _special(single[-1]) if len(single) > 1 else None
            if first:
                self._starts_with(first)
            if last:
                self._ends_with(last)
            self._separated(pair, first, last)

    def _starts_with(self, first: str) -> None:
        if not self.config:
            self.bos = first
        elif first not in (self.bos, self.cls):
            if not self.bos:
                self.config["bos_token"] = self.bos = first
            if not self.cls:
                self.config["cls_token"] = self.cls = first
        self.added["bos"] = first in (self.bos, self.cls)

    def _ends_with(self, last: str) -> None:
        if not self.config:
            self.eos = last
        elif last != self.eos:
            # The template's last token ends texts; the named one then ends turns or messages.
            for role in ("eot", "eom"):
                if role not in self.roles:
                    self.roles = (*self.roles, role)
                    self.config[f"{role}_token"] = self.eos
                    break
            self.config["eos_token"] = self.eos = last
        self.added["eos"] = True

    def _separated(self, pair: list[Any], first: str | None, last: str | None) -> None:
        """Whether a separator is between texts A and B: "A [sep] [eos] B" inside the tokens around one text."""
        if not pair:
            return
        start = 1 if first and _special(pair[0]) == first else 0
        stop = len(pair) - 1 if last and _special(pair[-1]) == last else len(pair)
        pair = pair[start:stop]
        if not pair or _sequence(pair[0]) != "A" or _sequence(pair[-1]) != "B" or len(pair) < 3:
            return
        middle = pair[1:-1]
        texts = (self.sep, self.eos)
        added = (_special(middle[0]) in texts and not last) or (len(middle) == 2 and _special(middle[1]) in texts)
        self.added["sep"] = added
        if added and not self.sep and self.config:
            self.config["sep_token"] = self.eos


def _special(step: Any) -> str | None:
    """The special token of a template's step."""
    token = step.get("SpecialToken") if isinstance(step, dict) else None
    return token.get("id") if isinstance(token, dict) else None


def _sequence(step: Any) -> str | None:
    """The text ("A" or "B") of a template's step."""
    sequence = step.get("Sequence") if isinstance(step, dict) else None
    return sequence.get("id") if isinstance(sequence, dict) else None


def tokenizer_merges(tokenizer: dict[str, Any], folder: Path) -> list[str]:
    """Merges as "left right". In the pair form, parts may have spaces, which the byte-level alphabet replaces."""
    merges = tokenizer["model"].get("merges") or []
    try:
        return [
            merge if isinstance(merge, str) else "{} {}".format(*(part.replace(" ", "\u0120") for part in merge))
            for merge in merges
        ]
    except (AttributeError, IndexError, TypeError):
        raise FormatError(
            path=folder / "tokenizer.json", expected="a string or a pair of strings for each merge"
        ) from None


def special_tokens(
    folder: Path,
    config: dict[str, Any],
    tokenizer: dict[str, Any],
    tokenizer_config: dict[str, Any],
    with_merges: bool,
    num_tokens: int | None,
) -> dict[str, Any]:
    """Merges, ids of special tokens, which of them are added, and the chat template.

    config: config.json. tokenizer, tokenizer_config: as read by lowbit.tokenizer.tokenizer_json. num_tokens: larger ids
    are dropped; None keeps all.
    """
    roles = _Roles(tokenizer_config)
    processor = tokenizer.get("post_processor")
    if processor:
        for step in processor.get("processors", [processor]) or []:
            roles.process(step)
    added_tokens = tokenizer.get("added_tokens") or []
    ids: dict[str, int] = {}

    def assign(role: str, token_id: Any) -> None:
        if type(token_id) is int and 0 <= token_id <= (_MAX_ID if num_tokens is None else num_tokens - 1):
            ids.setdefault(role, token_id)

    template: dict[str, Any] = {}
    if roles.config:
        template = template_keys(folder, tokenizer_config)
        for role in roles.roles:
            if isinstance(flag := roles.config.get(f"add_{role}_token"), bool):
                roles.added.setdefault(role, flag)
            entry = roles.text(role)
            text = entry.get("content") if isinstance(entry, dict) else entry
            if isinstance(text, str):
                assign(role, next((token.get("id") for token in added_tokens if token.get("content") == text), None))
    for role in roles.roles:
        assign(role, config.get(f"{role}_token_id"))
    result: dict[str, Any] = {}
    if with_merges and (merges := tokenizer_merges(tokenizer, folder)):
        result["tokenizer.ggml.merges"] = merges
    result |= {id_key(role): token_id for role, token_id in ids.items() if role not in UNKEPT_ROLES}
    result |= {f"tokenizer.ggml.add_{role}_token": added for role, added in roles.added.items() if role in ADDED_ROLES}
    return result | template
