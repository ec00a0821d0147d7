"""Tokenizer keys of GGUF files: kinds of tokenizers, special tokens, names of pre-tokenizers, hostile files."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from stored import stored
from tiny_checkpoint import (
    TEMPLATE,
    byte_level_tokenizer,
    edit_json,
    sentencepiece_model,
    sentencepiece_pieces,
    write_json,
    write_tokenizer,
)
from tokenizer_cases import normalized_llama, tokenizer_metadata

import lowbit
from lowbit.tokenizer import gguf
from lowbit.tokenizer.naming import GPT2, LLAMA3, QWEN2, pre_tokenizer_name
from lowbit.tokenizer.sentencepiece import read_model
from lowbit.tokenizer.special import special_tokens
from lowbit.tokenizer.to_gguf import looks_special

P = "tokenizer.ggml."


def test_byte_level(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "qwen2")
    keys = tokenizer_metadata(tmp_path, {"bos_token_id": 3, "pad_token_id": None}, "qwen3", 280)
    assert list(keys) == [
        P + "model", P + "pre", P + "tokens", P + "token_type", P + "merges", P + "eos_token_id",
        P + "padding_token_id", P + "bos_token_id", P + "add_bos_token", P + "add_eos_token", "tokenizer.chat_template",
    ]  # fmt: skip
    assert keys[P + "pre"] == "qwen2"
    assert len(keys[P + "tokens"]) == 280
    assert keys[P + "tokens"][272:278] == [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<tool>",
        "[PAD276]",
        "[PAD277]",
    ]
    assert keys[P + "token_type"].dtype == np.int32
    assert keys[P + "token_type"][270:278].tolist() == [1, 1, 3, 3, 3, 4, 5, 5]
    assert keys[P + "merges"][0] == "t h"
    assert (keys[P + "eos_token_id"], keys[P + "padding_token_id"], keys[P + "bos_token_id"]) == (274, 272, 3)
    assert keys[P + "add_bos_token"] is False


def test_bos_is_added_where_the_template_says_so(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "llama-bpe")
    keys = tokenizer_metadata(tmp_path, {}, "llama", 288)
    assert (keys[P + "pre"], keys[P + "bos_token_id"], keys[P + "add_bos_token"]) == ("llama-bpe", 272, True)
    assert keys[P + "add_sep_token"] is False


def test_smollm_does_not_start_with_bos(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "llama-bpe")
    assert tokenizer_metadata(tmp_path, {}, "llama", 49152)[P + "add_bos_token"] is False


def test_sentencepiece(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "spm")
    keys = tokenizer_metadata(tmp_path, {"eos_token_id": 2}, "llama", 276)
    assert next(iter(keys)) == P + "add_space_prefix"
    assert (keys[P + "model"], keys[P + "pre"]) == ("llama", "default")
    assert keys[P + "tokens"][:4] == ["<unk>", "<s>", "</s>", "<0x00>"]
    assert keys[P + "tokens"][-4:] == ["\u2581and", "<|assistant|>", "[PAD274]", "[PAD275]"]
    assert keys[P + "token_type"][[0, 1, 3, 260, 273, 275]].tolist() == [3, 3, 6, 1, 4, 5]
    assert keys[P + "scores"].dtype == np.float32
    assert keys[P + "scores"][[0, 3, 260, 273, 275]].tolist() == [-1000.0, 0.0, -1.0, -1000.0, -10000.0]
    assert keys[P + "eos_token_id"] == 2
    assert keys[P + "add_bos_token"] is True


def test_byte_fallback_without_scores(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer(LLAMA3, ["<s>", "</s>"], None)
    tokenizer["model"]["vocab"] = {"<unk>": 0, "<0x00>": 1, "a": 2, "b": 3}
    tokenizer["model"]["byte_fallback"] = True
    tokenizer["decoder"] = {"type": "Sequence", "decoders": []}
    tokenizer["added_tokens"] = [{"id": 4, "content": "<s>"}, {"id": 5, "content": "<x>"}]
    write_json(tmp_path / "tokenizer.json", tokenizer)
    keys = tokenizer_metadata(tmp_path, {}, "llama", 8)
    assert keys[P + "tokens"] == ["<unk>", "<0x00>", "a", "b", "<s>", "<x>"]
    assert keys[P + "token_type"].tolist() == [3, 6, 1, 1, 3, 4]
    assert set(keys[P + "scores"].tolist()) == {-1000.0}


SPECIAL = stored("special_tokens")


@pytest.mark.parametrize("group", range(8))
def test_special_tokens_as_the_reference_reads_them(tmp_path: Path, group: int) -> None:
    """data/special_tokens.json.xz: [tokenizer.json, tokenizer_config.json, config.json, keys] (make_reference.py)."""
    assert len(SPECIAL) == 400
    for tokenizer, tokenizer_config, config, expected in SPECIAL[group::8]:
        found = special_tokens(tmp_path, config, tokenizer, tokenizer_config, True, 5)
        assert list(found.items()) == list(expected.items()), (tokenizer, tokenizer_config, config)


def test_steps_that_are_none(tmp_path: Path) -> None:
    """A post_processor that the tokenizers library would not load."""
    steps = [{"type": 5}, {}, {"type": "ByteLevel"}]
    found = special_tokens(tmp_path, {}, {"post_processor": {"processors": steps}}, {"bos_token": "a"}, False, 5)
    assert found == {P + "add_bos_token": False, P + "add_eos_token": False}
    assert special_tokens(tmp_path, {}, {"post_processor": {"processors": None}}, {}, False, 5) == {}


def test_named_templates(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "qwen2")
    config = tmp_path / "tokenizer_config.json"
    named = [{"name": "default", "template": "d"}, {"name": "tool-use", "template": "t"}, {"name": "broken"}]
    edit_json(config, {"chat_template": named})
    keys = tokenizer_metadata(tmp_path, {}, "qwen3", 280)
    assert keys["tokenizer.chat_template"] == "d"
    assert keys["tokenizer.chat_template.tool_use"] == "t"
    assert keys["tokenizer.chat_templates"] == ["tool_use"]
    edit_json(config, {"chat_template": None})
    assert "tokenizer.chat_template" not in tokenizer_metadata(tmp_path, {}, "qwen3", 280)
    (tmp_path / "chat_template.jinja").write_text("file")
    assert tokenizer_metadata(tmp_path, {}, "qwen3", 280)["tokenizer.chat_template"] == "file"


DIGITS = {"type": "Digits", "individual_digits": True}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def notes_of(folder: Path, arch: str = "llama", vocab_size: int = 280) -> list[str]:
    notes: list[str] = []
    tokenizer_metadata(folder, {}, arch, vocab_size, notes)
    return notes


def test_sources_that_the_reference_leaves_are_noted(tmp_path: Path) -> None:
    """The keys are the reference's; what transformers takes otherwise is said."""
    write_tokenizer(tmp_path, "llama-bpe")
    assert notes_of(tmp_path) == []
    (tmp_path / "chat_template.jinja").write_text("file")
    assert len(notes_of(tmp_path)) == 1
    assert "transformers uses those of default" in notes_of(tmp_path)[0]
    assert tokenizer_metadata(tmp_path, {}, "llama", 280)["tokenizer.chat_template"] == TEMPLATE
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    write_json(tmp_path / "special_tokens_map.json", {"eos_token": "<|eot_id|>", "bos_token": "<|begin_of_text|>"})
    found = "eos_token '<|eot_id|>' (the file has '<|end_of_text|>')"
    assert notes_of(tmp_path) == [f"special_tokens_map.json, which transformers uses, is left out: {found}"]
    assert tokenizer_metadata(tmp_path, {}, "llama", 280)[P + "eos_token_id"] == 273


def test_tokenizer_json_beside_another_tokenizer_model(tmp_path: Path) -> None:
    normalized_llama(tmp_path, "LlamaTokenizer")
    size = len(tokenizer_metadata(tmp_path, {}, "llama", 1100)[P + "tokens"])
    assert notes_of(tmp_path, vocab_size=size) == []
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({"id": size, "content": "<extra>", "special": True})
    write_json(tmp_path / "tokenizer.json", tokenizer)
    assert len(notes_of(tmp_path, vocab_size=size + 1)) == 1
    assert (
        f"has 1 other tokens: id {size} is '<extra>' there, and '[PAD{size}]' in the file"
        in notes_of(tmp_path, vocab_size=size + 1)[0]
    )


def sequence(*steps: Any) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


@pytest.mark.parametrize(
    ("pre_tokenizer", "added", "expected"),
    [
        (BYTES, [], "gpt-2"),
        (sequence(DIGITS, BYTES), ["<|endoftext|>", "<|im_start|>"], "smollm"),
        (sequence(DIGITS, BYTES), ["<|endoftext|>", "<fim_prefix>", "<file_sep>"], "starcoder"),
        (sequence(DIGITS, BYTES), ["<|endoftext|>", "<fim_prefix>"], "refact"),
    ],
)
def test_pre_tokenizers_without_a_pattern(pre_tokenizer: Any, added: list[str], expected: str) -> None:
    tokens = [{"id": i, "content": text} for i, text in enumerate(added)]
    assert pre_tokenizer_name({"pre_tokenizer": pre_tokenizer, "added_tokens": tokens}, "x") == expected


@pytest.mark.parametrize(
    ("pattern", "bos", "expected"),
    [
        (LLAMA3, "<s>", "llama-bpe"),
        (LLAMA3, None, "smaug-bpe"),
        (QWEN2, None, "qwen2"),
        (QWEN2, "<s>", "deepseek-r1-qwen"),
        (GPT2, None, "gpt-2"),
    ],
)
def test_pre_tokenizers_with_a_pattern(pattern: str, bos: str | None, expected: str) -> None:
    tokenizer = byte_level_tokenizer(pattern, ["<s>"], bos)
    assert pre_tokenizer_name(tokenizer, "x") == expected
    assert pre_tokenizer_name({**tokenizer, "normalizer": {"type": "NFC"}}, "x") == expected


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        {**BYTES, "add_prefix_space": True},
        sequence({"type": "Split", "pattern": {"Regex": "x"}, "behavior": "Isolated"}, BYTES),
        sequence({"type": "Split", "pattern": {"Regex": QWEN2}, "behavior": "Removed"}, BYTES),
    ],
)
def test_unknown_pre_tokenizers_are_no_guess(pre_tokenizer: Any) -> None:
    tokenizer = byte_level_tokenizer(QWEN2, [], None)
    assert pre_tokenizer_name({**tokenizer, "pre_tokenizer": pre_tokenizer}, "x") == "default"


@pytest.mark.parametrize("pre_tokenizer", [None, {"type": "Whitespace"}, sequence(3)])
def test_pre_tokenizers_without_bytes_are_refused(pre_tokenizer: Any) -> None:
    with pytest.raises(lowbit.UnsupportedError):
        pre_tokenizer_name({**byte_level_tokenizer(QWEN2, [], None), "pre_tokenizer": pre_tokenizer}, "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": None}, "expected a BPE vocabulary"),
        ({"model": {"type": "Unigram", "vocab": {}}}, "expected a BPE vocabulary"),
        (
            {"model": {"type": "BPE", "vocab": {"a": "0"}, "merges": [["a", "b", "c"], ["a"]]}},
            "expected a string or a pair of strings",
        ),
        ({"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}}}, "same id"),
        ({"model": {"type": "BPE", "vocab": {"a": -1}}}, "token id '-1'"),
        ({"model": {"type": "BPE", "vocab": {"a": 1 << 60}}}, "token id"),
        ({"model": {"type": "BPE", "vocab": {"a": 280}}, "added_tokens": []}, "token id 280, but vocab_size"),
        ({"added_tokens": [{"id": 1}]}, r"added_tokens\[0\]: content: expected a string"),
        ({"added_tokens": 3}, "added_tokens: expected a list"),
    ],
)
def test_broken_tokenizer_json(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write_tokenizer(tmp_path, "qwen2")
    edit_json(tmp_path / "tokenizer.json", change)
    with pytest.raises(lowbit.FormatError, match=message):
        tokenizer_metadata(tmp_path, {}, "qwen3", 280)


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(lowbit.FileError, match=r"no tokenizer\.json or tokenizer\.model"):
        tokenizer_metadata(tmp_path, {}, "qwen3", 280)
    with pytest.raises(lowbit.FormatError, match="vocab_size"):
        tokenizer_metadata(tmp_path, {}, "qwen3", 1 << 30)


def test_tokens_that_look_special() -> None:
    assert all(map(looks_special, ["<pad>", "<|x|>", "<\uff5cx\uff5c>", "<unused7>", "[@BOS@]"]))
    assert not any(map(looks_special, ["<x>", "<|x>", "pad", "a<pad>", ""]))


def test_pieces(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(sentencepiece_model(sentencepiece_pieces()))
    assert [tuple(piece) for piece in read_model(path).pieces] == sentencepiece_pieces()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"\x0a\x80", "broken number"),
        (b"\x0a" + b"\xff" * 11, "broken number"),
        (b"\x0a\x7f", "127 bytes at offset 2, 0 are left"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "are left"),
        (b"\x0b", "unknown wire type 3"),
        (b"\x0a\x03\x0a\x01\xff", "not UTF-8"),
        (b"\x0a\x02\x18\x07", "unknown type 7"),
        (b"\x0a\x04\x15\x00\x00\x00", "are left"),
    ],
)
def test_broken_models(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(data)
    with pytest.raises(lowbit.FormatError, match=message):
        read_model(path)


@given(st.binary(max_size=64))
def test_random_models(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "tokenizer.model"
    path.write_bytes(data)
    with contextlib.suppress(lowbit.FormatError):
        assert read_model(path)


def test_gemma3_without_a_sentencepiece_file(tmp_path: Path) -> None:
    """Scores from merges: the file tokenizes as tokenizer.json does, whose merges have another order than its ids."""
    texts = ["the and then", "thea", " the  a<pad>nd", "th\u00e9", "", "aa thand<0x0A>", "n\nthe<unused1>"]
    pieces = [piece[0] for piece in sentencepiece_pieces()]
    pieces += ["he", "hea", "\u2581th"]
    order = [
        "and",
        "hea",
        "he",
        "the",
        "an",
        "th",
        "\u2581t",
        "\u2581and",
        "\u2581th",
        "\u2581the",
    ]  # not that of the ids
    cuts = [(piece[:i], piece[i:]) for piece in order for i in range(len(piece) - 1, 0, -1)]
    merges = [pair for pair in cuts if set(pair) <= set(pieces)]
    model = {"type": "BPE", "vocab": {p: i for i, p in enumerate(pieces)}, "merges": merges, "byte_fallback": True}
    size = len(pieces)
    special = [(0, "<unk>", True), (1, "<s>", True), (size, "<pad>", True), (size + 1, "<unused1>", False)]
    tokenizer = tokenizers.Tokenizer.from_str(
        json.dumps(
            {
                "version": "1.0",
                "added_tokens": [
                    {"id": i, "content": text, "special": s, "single_word": False, "lstrip": False, "rstrip": False,
                     "normalized": False}
                    for i, text, s in special
                ],
                "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
                "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
                "model": {**model, "unk_token": "<unk>", "fuse_unk": True},
            }
        )
    )  # fmt: skip
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    keys = tokenizer_metadata(tmp_path, {"bos_token_id": 1}, "gemma3", len(pieces) + 4)
    assert (keys[P + "model"], keys[P + "add_space_prefix"], P + "merges" in keys) == ("llama", False, False)
    assert keys[P + "tokens"][-3:] == ["<unused1>", f"[PAD{len(pieces) + 2}]", f"[PAD{len(pieces) + 3}]"]
    assert keys[P + "token_type"][[0, 3, 260, -4, -3, -1]].tolist() == [3, 6, 1, 3, 3, 5]
    built = gguf.build(gguf.Vocab(keys))
    for text in texts:
        assert built.encode(text, False, True) == tokenizer.encode(text).ids
    with pytest.raises(lowbit.FormatError, match=r"tokenizer\.json: token id 277, but vocab_size"):
        tokenizer_metadata(tmp_path, {}, "gemma3", 277)
