"""Ids as lowbit says that onnxruntime-genai gives them, against onnxruntime-genai."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from genai_tokenizers import genai_tokenizer
from tiny_checkpoint import byte_level_tokenizer, write_tokenizer
from tokenizers import Tokenizer

import lowbit
from lowbit.export.genai_differences import GenaiDifference, tokenizer_differences
from lowbit.export.genai_tokenizer import GenaiTokenizer
from lowbit.tokenizer.differences import TEXTS
from lowbit.tokenizer.load import read_tokenizer
from lowbit.tokenizer.naming import GPT2, GPT4O, LLAMA3, QWEN2, TEKKEN

pytestmark = pytest.mark.oracle

BARD = Path(lowbit.__file__).parent / "data" / "bard"
SPECIAL = ["<|a|>", "<|b|>"]
#: Merges that show where a text is split.
MORE = ["12", "123", "00", "..", "--", "AB", "ab", "\u0120\u0120", "\u010a\u010a", "d!"]
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}


def definition(**changes: Any) -> dict[str, Any]:
    """A tokenizer.json with the given parts."""
    tokenizer = byte_level_tokenizer(QWEN2, SPECIAL, changes.pop("bos", None))
    model, added = tokenizer["model"], tokenizer["added_tokens"]
    start = len(model["vocab"])
    model["vocab"] |= {word: start + i for i, word in enumerate(MORE)}
    model["merges"] += [["12", word[2:]] if len(word) == 3 else [word[0], word[1]] for word in MORE]
    for i, token in enumerate(added):
        token["id"] = start + len(MORE) + i
    if processor := next((p for p in tokenizer["post_processor"].get("processors", []) if "special_tokens" in p), None):
        for token in processor["special_tokens"].values():
            token["ids"] = [start + len(MORE)]
    added[0] |= changes.pop("flags", {})
    return tokenizer | changes


def split(regex: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}


def steps(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [*parts]}}


AT_ALL = {**BYTES, "use_regex": False}
EQUAL: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "llama3": steps(split(LLAMA3), AT_ALL),
    "tekken": steps(split(TEKKEN), AT_ALL),
    "gpt-4o": steps(split(GPT4O), AT_ALL),
    "gpt-2": {"pre_tokenizer": BYTES},
    "gpt-2 split": steps(split(GPT2), AT_ALL),
    "normalizer without effect": {"normalizer": {"type": "Replace", "pattern": {"String": "\u2603"}, "content": ""}},
    "rstrip": {"flags": {"rstrip": True}},
}
DIFFERENT: dict[str, tuple[str, dict[str, Any]]] = {
    "NFC": ("normalizer", {"normalizer": {"type": "NFC"}}),
    "NFKC": ("normalizer", {"normalizer": {"type": "NFKC"}}),
    "Lowercase": ("normalizer", {"normalizer": {"type": "Lowercase"}}),
    "Prepend": ("normalizer", {"normalizer": {"type": "Prepend", "prepend": "a"}}),
    "Digits": ("pre_tokenizer", steps(DIGITS, BYTES)),
    "Digits alone": ("pre_tokenizer", steps(DIGITS, split(GPT2), AT_ALL)),
    "add_prefix_space": ("pre_tokenizer", {"pre_tokenizer": {**BYTES, "add_prefix_space": True}}),
    "use_regex": ("pre_tokenizer", {"pre_tokenizer": AT_ALL}),
    "Whitespace": ("pre_tokenizer", steps({"type": "Whitespace"}, AT_ALL)),
    "Punctuation": ("pre_tokenizer", steps({"type": "Punctuation", "behavior": "Isolated"}, AT_ALL)),
    "Removed": ("pre_tokenizer", steps(split(QWEN2, "Removed"), AT_ALL)),
    "Contiguous": ("pre_tokenizer", steps(split(QWEN2, "Contiguous"), AT_ALL)),
    "String": ("pre_tokenizer", steps({**split(""), "pattern": {"String": "a"}}, split(QWEN2), AT_ALL)),
    "frame": ("frame", {"bos": "<|a|>"}),
    "lstrip": ("added", {"flags": {"lstrip": True}}),
    "single_word": ("added", {"flags": {"single_word": True}}),
}
#: Expressions for which genai has no code of its own: it refuses them, fails at a text, or gives other ids.
REGEXES = [r"\d{1,3}(?=(?:\d{3})*\b)", r"\p{Han}+", r"[a-z]+", r"\s+$"]


def ids(tokenizer: Any, text: str) -> list[int]:
    return [int(i) for i in tokenizer.encode(text)]


def warned(folder: Path, tokenizer: dict[str, Any]) -> list[GenaiDifference]:
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return tokenizer_differences(read_tokenizer(folder), "PreTrainedTokenizerFast")


@pytest.mark.parametrize("name", EQUAL)
def test_no_difference(tmp_path: Path, name: str) -> None:
    tokenizer = definition(**EQUAL[name])
    assert warned(tmp_path, tokenizer) == []
    genai, ours = genai_tokenizer(tmp_path, tokenizer, {}), read_tokenizer(tmp_path)
    for text in (*TEXTS, "a <|a|>\n b<|b|>  c"):
        if "\0" not in text:  # genai's texts end there
            assert ids(genai, text) == ours.encode(text)


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_difference(tmp_path: Path, name: str) -> None:
    rule, changes = DIFFERENT[name]
    tokenizer = definition(**changes)
    (difference,) = warned(tmp_path, tokenizer)
    assert difference.rule == rule
    assert difference.expected != difference.found
    genai = genai_tokenizer(tmp_path, tokenizer, {})
    assert ids(genai, difference.probe) == difference.found
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(difference.probe).ids == difference.expected


@pytest.mark.parametrize("name", DIFFERENT)
def test_ids_of_genai(tmp_path: Path, name: str) -> None:
    tokenizer = definition(**DIFFERENT[name][1])
    genai, ours = genai_tokenizer(tmp_path, tokenizer, {}), GenaiTokenizer(Tokenizer.from_str(json.dumps(tokenizer)))
    for text in (*TEXTS, "a <|a|>\n b<|b|>  c x<|a|>"):
        if "\0" not in text:
            assert ids(genai, text) == ours.encode(text)


@pytest.mark.parametrize("regex", REGEXES)
def test_a_regular_expression_without_code(tmp_path: Path, regex: str) -> None:
    tokenizer = definition(**steps(split(regex), split(QWEN2), AT_ALL))
    assert [difference.rule for difference in warned(tmp_path, tokenizer)] == ["regex"]
    assert not agrees(tmp_path, tokenizer)


def agrees(folder: Path, tokenizer: dict[str, Any]) -> bool:
    ours = read_tokenizer(folder)
    try:
        genai = genai_tokenizer(folder, tokenizer, {})
        return all(ids(genai, text) == ours.encode(text) for text in TEXTS if "\0" not in text)
    except RuntimeError:
        return False


def test_a_type_that_genai_refuses(tmp_path: Path) -> None:
    tokenizer = definition(pre_tokenizer={"type": "FixedLength", "length": 2})
    assert [difference.rule for difference in warned(tmp_path, tokenizer)] == ["pre_tokenizer"]
    with pytest.raises(RuntimeError):
        genai_tokenizer(tmp_path, tokenizer, {})


def test_a_vocabulary_that_genai_does_not_know(tmp_path: Path) -> None:
    """genai takes WordPiece for BPE and reads merges that are not there, so this one is not given to it."""
    model = {"type": "WordPiece", "vocab": {"a": 0, "[UNK]": 1}, "unk_token": "[UNK]",
             "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}  # fmt: skip
    tokenizer = definition() | {"model": model, "added_tokens": [], "post_processor": None}
    assert [difference.rule for difference in warned(tmp_path, tokenizer)] == ["model"]


def test_sentencepiece(tmp_path: Path) -> None:
    """A tokenizer.model whose tokenizer removes a space from the start of a decoded text."""
    write_tokenizer(tmp_path, "spm")
    ours = read_tokenizer(tmp_path)
    tokenizer = json.loads(ours.backend.to_str())
    genai = genai_tokenizer(tmp_path, tokenizer, {})
    found = {difference.rule: difference for difference in tokenizer_differences(ours, "LlamaTokenizer")}
    assert {"decode", "frame", "pre_tokenizer"} == found.keys()
    assert genai.decode(found["decode"].probe) == found["decode"].found == " a"
    assert ours.decode(found["decode"].probe) == found["decode"].expected == "a"
    assert ids(genai, found["pre_tokenizer"].probe) == found["pre_tokenizer"].found
    whole = GenaiTokenizer(ours.backend)
    for text in (text for text in TEXTS if "\0" not in text):
        assert ids(genai, text) == whole.encode(text)


def test_the_message_shows_both_ids(tmp_path: Path) -> None:
    (difference,) = warned(tmp_path, definition(normalizer={"type": "Lowercase"}))
    assert isinstance(difference.found, list)
    assert isinstance(difference.expected, list)
    assert f"are {difference.found[:8]} instead of {difference.expected[:8]}" in str(difference)
    assert "Lowercase" in str(difference)
    assert "'Hello World'" in str(difference)


def test_a_real_vocabulary() -> None:
    assert tokenizer_differences(lowbit.load_tokenizer(BARD), "Qwen2Tokenizer") == []
