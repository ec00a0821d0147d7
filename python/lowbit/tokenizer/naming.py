"""Finds the name of a byte-level tokenizer's pre-tokenizer, for tokenizer.ggml.pre.

The reference identifies a tokenizer by the hash of one tokenized test string. Here the name follows from
tokenizer.json: from the chain of splits, and from other facts if several names have the same chain. An unknown chain is
not guessed: the file gets "default", like files that are older than the names, and `conversion/carried.py` adds the
chain itself.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lowbit.base.errors import UnsupportedError
from lowbit.base.quoting import shown

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = f"{_CONTRACTIONS}|{_LETTERS}|\\p{{N}}{{1,3}}|{_REST}"
QWEN2 = f"{_CONTRACTIONS}|{_LETTERS}|\\p{{N}}|{_REST}"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]*[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]+{_CONTRACTIONS}?|"
    rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]+[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]*{_CONTRACTIONS}?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
UNKNOWN = "default"
_BYTES = ("bytes", False)
_GPT2_BYTES = ("bytes", True)


class Facts:
    """Facts that distinguish tokenizers with the same chain."""

    def __init__(self, tokenizer: dict[str, Any]) -> None:
        self.starts_with_special = _starts_with_special(tokenizer.get("post_processor"))
        added = tokenizer.get("added_tokens") or []
        self.added = {token["content"] for token in added}
        self.second = next((token["content"] for token in added if token.get("id") == 1), None)


def _starts_with_special(processor: Any) -> bool:
    """Whether the post-processor adds a special token before a text."""
    if not processor:
        return False
    if processor.get("type") == "Sequence":
        return any(map(_starts_with_special, processor.get("processors") or []))
    single = processor.get("single") or [{}]
    return "SpecialToken" in single[0]


def _digits_then_gpt2(facts: Facts) -> str:
    """The name for SmolLM, StarCoder 2, Refact and Granite, whose splits are equal and reserved tokens differ."""
    if facts.second == "<|im_start|>":
        return "smollm"
    return "starcoder" if "<file_sep>" in facts.added or "<fim_prefix>" not in facts.added else "refact"


#: Chain of splits -> name. `_chain` computes the chain of a pre_tokenizer.
NAMES: dict[tuple[Any, ...], Callable[[Facts], str]] = {
    # Llama 3 starts a text with <|begin_of_text|>; derived tokenizers without this are "smaug-bpe".
    (("split", LLAMA3), _BYTES): lambda facts: "llama-bpe" if facts.starts_with_special else "smaug-bpe",
    (("split", QWEN2), _BYTES): lambda facts: "deepseek-r1-qwen" if facts.starts_with_special else "qwen2",
    (_GPT2_BYTES,): lambda facts: "gpt-2",
    (("split", GPT2), _BYTES): lambda facts: "gpt-2",
    (("digits", True), _GPT2_BYTES): _digits_then_gpt2,
    (("split", TEKKEN), _BYTES): lambda facts: "tekken",
    (("split", GPT4O), _BYTES): lambda facts: "gpt-4o",  # Phi 4 mini's
}


def _chain(pre_tokenizer: Any) -> tuple[Any, ...]:
    """A pre_tokenizer of tokenizer.json as a tuple of its steps."""
    if not isinstance(pre_tokenizer, dict):
        return ()
    kind = pre_tokenizer.get("type")
    if kind == "Sequence":
        steps = pre_tokenizer.get("pretokenizers")
        return tuple(step for item in (steps if isinstance(steps, list) else []) for step in _chain(item))
    if kind == "ByteLevel" and not pre_tokenizer.get("add_prefix_space"):
        return (("bytes", pre_tokenizer.get("use_regex", True) is True),)
    if kind == "Digits":
        return (("digits", pre_tokenizer.get("individual_digits") is True),)
    if kind == "Split" and pre_tokenizer.get("behavior") == "Isolated" and not pre_tokenizer.get("invert"):
        return (("split", _regex(pre_tokenizer)),)
    if kind == "Split" and pre_tokenizer.get("behavior") == "Removed" and pre_tokenizer.get("invert"):
        return (("split", _regex(pre_tokenizer)),)  # keeps only the matches; equivalent if they cover the whole text
    return ((str(kind), None),)


def _regex(split: dict[str, Any]) -> str | None:
    pattern = split.get("pattern")
    found = pattern.get("Regex") if isinstance(pattern, dict) else None
    return found if isinstance(found, str) else None


def pre_tokenizer_name(tokenizer: dict[str, Any], path: Path) -> str:
    """tokenizer.ggml.pre of a tokenizer.json, or UNKNOWN. Raises UnsupportedError if it is not byte-level."""
    chain = _chain(tokenizer.get("pre_tokenizer"))
    if not any(kind in ("bytes", "ByteLevel") for kind, _ in chain):
        steps = " then ".join(f"{kind} {shown(value, 60)}" for kind, value in chain) or "none"
        raise UnsupportedError(
            path=path, key="pre_tokenizer", expected="a pre_tokenizer that ends in ByteLevel", found=steps
        )
    return NAMES[chain](Facts(tokenizer)) if chain in NAMES else UNKNOWN
