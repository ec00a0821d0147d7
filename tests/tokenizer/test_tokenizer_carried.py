"""Parts of a tokenizer that GGUF has no key for travel with the file: the ids stay those of the source."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_checkpoint import (
    byte_level_tokenizer,
    edit_json,
    make_checkpoint,
    opened_tokenizer,
    sentencepiece_model,
    write_json,
    write_tokenizer,
)
from tokenizer_cases import tokenizer_metadata

import lowbit
from lowbit.conversion.carried import carried_tokenizer
from lowbit.tokenizer.definition import DEFINITION_KEY, MERGES_KEY
from lowbit.tokenizer.differences import record, tokenizer_differences
from lowbit.tokenizer.load import from_metadata, load_tokenizer
from lowbit.tokenizer.naming import QWEN2

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def split(pattern: str, **options: Any) -> dict[str, Any]:
    step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False, **options}
    return {"type": "Sequence", "pretokenizers": [step, BYTES]}


def frame(*tokens: str, ids: tuple[int, ...]) -> dict[str, Any]:
    """A post_processor that puts tokens before a text."""
    pieces = [{"SpecialToken": {"id": token, "type_id": 0}} for token in tokens]
    special = {t: {"id": t, "ids": [i], "tokens": [t]} for t, i in zip(tokens, ids, strict=True)}
    single = [*pieces, {"Sequence": {"id": "A", "type_id": 0}}]
    return {"type": "TemplateProcessing", "single": single, "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": special}  # fmt: skip


CHANGES: dict[str, dict[str, Any]] = {
    "normal form": {"normalizer": {"type": "NFC"}},
    "normalizer": {"normalizer": {"type": "Lowercase"}},
    "unknown split": {"pre_tokenizer": split("[a-z]+|\\d\\d?|\\s+|.")},
    "removed": {"pre_tokenizer": split("\\s+", behavior="Removed")},
    "prefix": {"pre_tokenizer": {**BYTES, "add_prefix_space": True, "use_regex": True}},
    "frame": {"post_processor": frame("<|im_start|>", "<|im_end|>", ids=(273, 274))},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path, "qwen2")
    return tmp_path


def edit(folder: Path, **changes: Any) -> None:
    edit_json(folder / "tokenizer.json", changes)


def carried(folder: Path) -> tuple[dict[str, Any], list[str], lowbit.Tokenizer]:
    """The keys that go along, the notes, and the tokenizer of the whole."""
    notes: list[str] = []
    metadata = tokenizer_metadata(folder, {}, "qwen3", 280)
    keys = carried_tokenizer(opened_tokenizer(folder), metadata, notes).keys
    return keys, notes, from_metadata({**metadata, **keys})


def test_nothing_is_carried_where_nothing_is_lost(folder: Path) -> None:
    assert carried(folder)[:2] == ({}, [])


@pytest.fixture(scope="module", params=list(CHANGES))
def changed(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What is carried of a changed tokenizer, the notes, the source and the result."""
    folder = tmp_path_factory.mktemp("source")
    write_tokenizer(folder, "qwen2")
    edit(folder, **CHANGES[request.param])
    keys, notes, result = carried(folder)
    return keys, notes, load_tokenizer(folder), result


def test_what_is_carried(changed: Any) -> None:
    keys, notes, source, result = changed
    assert list(keys) == [DEFINITION_KEY]
    assert len(notes) == 1
    assert notes[0].startswith(
        f"{DEFINITION_KEY} holds the parts of the tokenizer that have no GGUF key; programs that ignore it tokenize "
    )
    assert tokenizer_differences(record(source), result).equal


@settings(max_examples=60)
@given(text=st.text())
def test_ids_are_the_sources(changed: Any, text: str) -> None:
    _, _, source, result = changed
    for parse_special in (True, False):
        assert result.encode(text, parse_special=parse_special) == source.encode(text, parse_special=parse_special)


def test_white_space_that_added_tokens_swallow(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    edit(folder, added_tokens=[{**token, "rstrip": True} for token in tokenizer["added_tokens"]])
    keys, _, result = carried(folder)
    assert list(keys) == [DEFINITION_KEY]
    assert tokenizer_differences(record(load_tokenizer(folder)), result).equal


def test_merges_that_do_not_follow_from_scores(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer(QWEN2, [], None)
    vocab = ["<unk>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581", "a", "b", "ab", "ba"]
    tokenizer["model"] = {"type": "BPE", "vocab": {t: i for i, t in enumerate(vocab)}, "byte_fallback": True,
                          "unk_token": "<unk>", "fuse_unk": True, "merges": ["b a", "a b"]}  # fmt: skip
    steps = [{"type": "ByteFallback"}, {"type": "Fuse"}]
    tokenizer |= {"pre_tokenizer": None, "normalizer": None, "decoder": {"type": "Sequence", "decoders": steps}}
    write_json(tmp_path / "tokenizer.json", tokenizer)
    metadata = tokenizer_metadata(tmp_path, {}, "llama", 300)
    notes: list[str] = []
    keys = carried_tokenizer(opened_tokenizer(tmp_path), metadata, notes).keys
    assert list(keys) == [DEFINITION_KEY, MERGES_KEY]
    source, result = load_tokenizer(tmp_path), from_metadata({**metadata, **keys})
    for text in ("ab", "aba", "abab", "bab", "é"):
        assert result.encode(text, add_special_tokens=False) == source.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("ranked", [True, False])
def test_added_tokens_of_white_space(tmp_path: Path, ranked: bool) -> None:
    """Gemma's: the file spells runs of the mark with blanks. ranked: merges follow from scores."""
    runs = ["\u2581" * n for n in range(2, 5)]
    words = ["\u2581", *runs, "a", "b", "c", "bc", "ab"]
    pieces = [("<unk>", 0.0, 2), *((f"<0x{i:02X}>", 0.0, 6) for i in range(256))]
    pieces += [(word, -float(i), 4 if word in runs else 1) for i, word in enumerate(words)]
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model(pieces))
    vocab = {text: i for i, (text, _, _) in enumerate(pieces)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    added = {vocab[run]: {"content": run, **flags} for run in runs}
    write_json(tmp_path / "tokenizer_config.json", {"added_tokens_decoder": added})
    merges = [
        "\u2581 \u2581",
        "\u2581 \u2581\u2581",
        "\u2581\u2581 \u2581\u2581",
        *(["b c", "a b"] if ranked else ["a b", "b c"]),
    ]
    steps = [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"}]
    tokenizer = {
        **byte_level_tokenizer(QWEN2, [], None),
        "pre_tokenizer": None,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        "added_tokens": [{"id": i, **token} for i, token in added.items()],
        "decoder": {"type": "Sequence", "decoders": [*steps, {"type": "Fuse"}]},
        "model": {"type": "BPE", "vocab": vocab, "byte_fallback": True, "unk_token": "<unk>", "fuse_unk": True,
                  "merges": merges},
    }  # fmt: skip
    write_json(tmp_path / "tokenizer.json", tokenizer)
    metadata = tokenizer_metadata(tmp_path, {}, "llama", 300)
    assert metadata["tokenizer.ggml.tokens"][vocab[runs[2]]] == "    "
    keys = carried_tokenizer(opened_tokenizer(tmp_path), metadata, []).keys
    assert DEFINITION_KEY in keys
    source, result = load_tokenizer(tmp_path), from_metadata({**metadata, **keys})
    for text in ("abc", "a    bc  c", "a\u2581\u2581b \u2581\u2581\u2581\u2581", "     abc      a b"):
        assert result.encode(text, add_special_tokens=False) == source.encode(text, add_special_tokens=False)


def test_files_that_say_what_they_were_made_of_carry_it(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "qwen3")
    edit(tmp_path, normalizer={"type": "Lowercase"})
    for provenance in (True, False):
        lowbit.convert(tmp_path, tmp_path / "out.gguf", "BF16", verify=False, provenance=provenance)
        with lowbit.gguf.open(tmp_path / "out.gguf") as file:
            assert (DEFINITION_KEY in file.metadata) == provenance
            ids = load_tokenizer(file).encode("THE and")
        assert (ids == load_tokenizer(tmp_path).encode("THE and")) == provenance


def test_ends_that_gguf_has_no_key_for(tmp_path: Path) -> None:
    """generation_config.json may list more ids than one. The reference converter drops them."""
    make_checkpoint(tmp_path, "qwen3", config={"eos_token_id": [274, 261]})
    write_json(tmp_path / "generation_config.json", {"eos_token_id": [274, 262]})
    source = load_tokenizer(tmp_path)
    assert source.eos_ids == {272, 274, 261, 262}
    for provenance in (True, False):
        report = lowbit.convert(tmp_path, tmp_path / "out.gguf", "BF16", verify=False, provenance=provenance)
        assert len(report.notes) == 1
        assert report.notes[0].endswith("do not end a text at 261 ('and'), 262 ('Ġa')")
        assert load_tokenizer(tmp_path / "out.gguf").eos_ids == (source.eos_ids if provenance else {272, 274})
    lowbit.convert(tmp_path, tmp_path / "out.gguf", "BF16", provenance=True, verify=True)
    lowbit.export_hf(tmp_path / "out.gguf", tmp_path / "hf")
    assert load_tokenizer(tmp_path / "hf").eos_ids == source.eos_ids


@pytest.mark.parametrize(("arch", "vocab"), [("qwen3", 288), ("mistral", 276)])
def test_ids_that_no_token_has(tmp_path: Path, arch: str, vocab: int) -> None:
    """config.json, as in real ones: kept where the reference converter keeps them, told of once, ignored by readers."""
    bad = {"bos_token_id": vocab, "eos_token_id": vocab + 1, "pad_token_id": -1, "sep_token_id": 0xFFFFFFFF,
           "mask_token_id": 1 << 70}  # fmt: skip
    make_checkpoint(tmp_path / "m", arch, vocab=vocab, config=bad)
    edit_json(tmp_path / "m" / "tokenizer_config.json", {"bos_token": None, "eos_token": None, "pad_token": None})
    write_json(tmp_path / "m" / "generation_config.json", {"eos_token_id": [vocab + 1, "x", 2.0, True]})
    report = lowbit.convert(tmp_path / "m", tmp_path / "a.gguf", "Q8_0", verify=True, provenance=True)
    for name, value in bad.items():
        assert sum(name in note and str(value) in note for note in report.notes) == 1, (name, report.notes)
    with lowbit.gguf.open(tmp_path / "a.gguf") as file:
        found = {key: file.metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("bos", "eos", "padding")}
        kept = {"bos": vocab, "eos": vocab + 1} if arch == "qwen3" else {"bos": None, "eos": None}
        assert found == {**kept, "padding": None}
    model = lowbit.load(tmp_path / "a.gguf")
    assert model.generate([260, 261], max_tokens=2) is not None
    assert model.tokenizer.eos_ids == load_tokenizer(tmp_path / "m").eos_ids
    report = lowbit.export_hf(tmp_path / "a.gguf", tmp_path / "hf")
    assert sum("bos_token_id" in note for note in report.notes) == (arch == "qwen3")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config.get("eos_token_id") is None or config["eos_token_id"] < vocab


FAULTS = {
    "not text": (7, "FormatError"),
    "not JSON": ("{", "FormatError: .*not JSON"),
    "deep": ("[" * 100000, "FormatError: .*not JSON"),
    "large": (" " * (5 << 20), "FormatError: .*expected at most"),
    "no object": ("[]", "FormatError: .*expected an object"),
    "no model": ("{}", "UnsupportedError: .*model 'None'"),
    "unknown model": ('{"model": {"type": "WordLevel"}}', "UnsupportedError: .*'WordLevel'"),
    "model is a list": ('{"model": []}', "FormatError: .*expected an object"),
    "broken pattern": ('{"model": {"type": "BPE"}, "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, '
                       '"behavior": "Isolated", "invert": false}}', "FormatError"),
    "added past the end": ('{"model": {"type": "BPE"}, "added_tokens": [[270, 1000000000, []]]}', "FormatError: .*270"),
    "added before the start": ('{"model": {"type": "BPE"}, "added_tokens": [[-1, 1, []]]}', "FormatError"),
    "added is no row": ('{"model": {"type": "BPE"}, "added_tokens": [5]}', "FormatError"),
    "contents out of range": ('{"model": {"type": "BPE"}, "contents": {"9999": "x"}}', "FormatError: .*9999"),
    "contents is no text": ('{"model": {"type": "BPE"}, "contents": {"1": 1}}', "FormatError"),
    "wrong option": ('{"model": {"type": "BPE", "dropout": "x"}}', "FormatError"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_hostile_definitions(folder: Path, fault: str) -> None:
    value, message = FAULTS[fault]
    metadata = tokenizer_metadata(folder, {}, "qwen3", 280)
    with pytest.raises(lowbit.Error) as caught:
        from_metadata({**metadata, DEFINITION_KEY: value})
    error = f"{type(caught.value).__name__}: {caught.value}"
    assert "\n" not in error
    assert re.match(message, error), error
