"""Folders with tokenizer.model or vocab.json alone, against sentencepiece and transformers."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_checkpoint import byte_level_tokenizer, edit_json, opened_tokenizer, write_json, write_tokenizer
from tokenizer_cases import SPECIAL_TEXTS, TURNS, normalized_llama, tokenizer_metadata
from transformers import AutoTokenizer

import lowbit
from lowbit.conversion.carried import carried_tokenizer
from lowbit.tokenizer.differences import TEXTS
from lowbit.tokenizer.load import from_metadata
from lowbit.tokenizer.naming import QWEN2

pytestmark = pytest.mark.oracle

README = Path(__file__).parents[2] / "README.md"
LETTERS = st.text("ab the\n\t_é你😀\u2581\uff21\ufb01'S1").map(lambda text: text * 2)
TEXT = st.text() | LETTERS
#: Options of sentencepiece's trainer, by what they stand for.
MODELS: dict[str, dict[str, Any]] = {
    "llama-spm": {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity",
                  "remove_extra_whitespaces": False},
    "gemma": {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity",
              "remove_extra_whitespaces": False, "add_dummy_prefix": False,
              "user_defined_symbols": ["<mask>", "[multimodal]", "\u2581\u2581", "\u2581\u2581\u2581"]},
    "bpe-nfkc": {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "nmt_nfkc"},
    "bpe-unknown": {"model_type": "bpe", "normalization_rule_name": "nfkc_cf", "remove_extra_whitespaces": True},
    "unigram": {"model_type": "unigram", "byte_fallback": True, "normalization_rule_name": "nmt_nfkc"},
    "unigram-identity": {"model_type": "unigram", "normalization_rule_name": "identity",
                         "remove_extra_whitespaces": False},
}  # fmt: skip


#: The tokenizers library normalizes graphemes, SentencePiece the longest match; its unigram model takes the name of a
#: byte for that byte.
LEFT_OUT = re.compile("[\u0300-\u036f\u1100-\u11ff]|<0x")


@pytest.fixture(scope="module", params=list(MODELS))
def pair(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("spm")
    model = io.BytesIO()
    sentences = [line for line in (*README.read_text().splitlines(), *TEXTS) if line.strip()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, vocab_size=800, character_coverage=0.98,
        hard_vocab_limit=False, minloglevel=2, num_threads=1, **MODELS[request.param],
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return lowbit.load_tokenizer(folder), theirs, request.param in ("llama-spm", "gemma")


def test_ids_of_the_test_texts(pair: Any) -> None:
    ours, theirs, is_plain = pair
    texts = [text for text in TEXTS if is_plain or not LEFT_OUT.search(text)]
    assert len(texts) > 15
    for text in texts:
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(text), text


@settings(max_examples=200)
@given(data=st.data())
def test_ids_and_back(pair: Any, data: Any) -> None:
    ours, theirs, is_plain = pair
    text = data.draw(TEXT if is_plain else LETTERS)
    ids = theirs.encode(text)
    assert ours.encode(text, add_special_tokens=False) == ids
    if theirs.unk_id() not in ids and "\u2581" not in text:
        assert ours.decode(ids) == theirs.decode(ids)


def test_special_tokens_and_added_ones(tmp_path: Path) -> None:
    """Against transformers, which takes the tokens' flags from the same files."""
    write_tokenizer(tmp_path, "spm")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    for legacy in (True, False):
        more = {"273": {"content": "<|assistant|>", "special": True, "rstrip": True}}
        decoder = {**config["added_tokens_decoder"], **more}
        write_json(tmp_path / "tokenizer_config.json", {**config, "legacy": legacy, "added_tokens_decoder": decoder})
        ours, theirs = lowbit.load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
        assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id) == (1, 2)
        for text in ("the and", "a<s>the", "the<|assistant|>  the", "</s><|assistant|>\nthe", ""):
            assert ours.encode(text) == theirs.encode(text), text


@pytest.mark.parametrize("has_model", [True, False])
@pytest.mark.parametrize(
    ("kind", "legacy"), [("LlamaTokenizer", None), ("LlamaTokenizerFast", True), ("PreTrainedTokenizerFast", None)]
)
def test_special_tokens_that_are_normalized(tmp_path: Path, kind: str, legacy: bool | None, has_model: bool) -> None:
    """The first Llama 2 and its fine-tunes: from the folder, from its GGUF file, and from the export of that."""
    normalized_llama(tmp_path, kind, legacy, has_model)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    keys = tokenizer_metadata(tmp_path, {}, "llama", theirs.vocab_size)
    result = from_metadata(keys | carried_tokenizer(opened_tokenizer(tmp_path), keys, []).keys)
    for ours in (lowbit.load_tokenizer(tmp_path), result):
        assert ours.special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        for text in (*SPECIAL_TEXTS, *TEXTS):
            assert ours.encode(text) == theirs.encode(text), text
            assert ours.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False), text
            ids = theirs.encode(text)
            assert ours.decode(ids) == theirs.decode(ids), text
            # Their decode() keeps special tokens that are normalized, convert_ids_to_tokens() skips them.
            kept = theirs.convert_ids_to_tokens(ids, skip_special_tokens=True)
            assert ours.decode(ids, skip_special_tokens=True) == theirs.convert_tokens_to_string(kept), text
        assert ours.apply_chat_template(TURNS) == theirs.apply_chat_template(TURNS, tokenize=False)
        assert ours.encode_chat(TURNS) == theirs.apply_chat_template(TURNS, return_dict=False)


NAMED = [{"name": "default", "template": "c"}, {"name": "tool_use", "template": "ct"}]
ADDITIONAL = "additional_chat_templates/"
#: chat_template of tokenizer_config.json, and other files.
TEMPLATES: dict[str, tuple[Any, dict[str, str]]] = {
    "file and configuration": ("c", {"chat_template.jinja": "j"}),
    "file and list": (NAMED, {"chat_template.jinja": "j"}),
    "empty file": ("c", {"chat_template.jinja": ""}),
    "named files": (None, {"chat_template.jinja": "j", f"{ADDITIONAL}tool-use.jinja": "a"}),
    "named files and list": (NAMED, {"chat_template.jinja": "j", f"{ADDITIONAL}rag.jinja": "a"}),
    "named file alone": ("c", {f"{ADDITIONAL}rag.jinja": "a"}),
    "default among named files": ("c", {"chat_template.jinja": "j", f"{ADDITIONAL}default.jinja": "a"}),
    "list": (NAMED, {}),
    "list with one twice": ([*NAMED, {"name": "default", "template": "second"}], {}),
    "processor's": ("c", {"chat_template.json": '{"chat_template": "p"}'}),
    "processor's and file": (None, {"chat_template.jinja": "j", "chat_template.json": '{"chat_template": "p"}'}),
}


@pytest.mark.parametrize("sources", TEMPLATES)
def test_sources_of_chat_templates(tmp_path: Path, sources: str) -> None:
    configured, files = TEMPLATES[sources]
    write_tokenizer(tmp_path, "llama-bpe")
    edit_json(tmp_path / "tokenizer_config.json", {"chat_template": configured})
    (tmp_path / ADDITIONAL).mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    theirs = AutoTokenizer.from_pretrained(tmp_path).chat_template
    ours = lowbit.load_tokenizer(tmp_path)
    assert ours.chat_templates == ({"default": theirs} if isinstance(theirs, str) else theirs)
    is_left = configured is not None and not all(name.endswith(".json") for name in files)
    assert [note.startswith("chat templates are those of ") for note in ours.notes] == [True] * is_left


EXTRA = {
    "content": "<extra>",
    "special": True,
    "lstrip": True,
    "rstrip": False,
    "normalized": False,
    "single_word": False,
}
#: Changes of tokenizer_config.json, special_tokens_map.json and added_tokens.json.
OLD_FILES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, int]]] = {
    "map": ({}, {"bos_token": "<|eot_id|>", "pad_token": {"content": "<|eot_id|>"}}, {}),
    "map and decoder": (
        {"added_tokens_decoder": {"275": EXTRA}},
        {"bos_token": "<|eot_id|>", "pad_token": "<|eot_id|>"},
        {},
    ),
    "map alone": ({"bos_token": None, "eos_token": None}, {"eos_token": "<|eot_id|>"}, {}),
    "added": ({}, {}, {"<extra>": 275}),
    "added and special": ({"pad_token": "<extra>"}, {}, {"<extra>": 275, "<more>": 276}),
    "added and decoder": ({"added_tokens_decoder": {"275": EXTRA}}, {}, {"<more>": 275}),
    "other flags": ({"added_tokens_decoder": {"274": {**EXTRA, "content": "<|eot_id|>"}}}, {}, {}),
}


@pytest.mark.parametrize("files", OLD_FILES)
def test_older_files_beside_tokenizer_json(tmp_path: Path, files: str) -> None:
    config, special, added = OLD_FILES[files]
    write_tokenizer(tmp_path, "llama-bpe")
    edit_json(tmp_path / "tokenizer_config.json", config)
    write_json(tmp_path / "special_tokens_map.json", special)
    write_json(tmp_path / "added_tokens.json", added)
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), lowbit.load_tokenizer(tmp_path)
    keys = tokenizer_metadata(tmp_path, {}, "llama", 280, [])
    converted = from_metadata(keys | carried_tokenizer(opened_tokenizer(tmp_path), keys, []).keys)
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id)
    for text in ("the <extra> and <more><|eot_id|>", "a <|eot_id|> b"):
        assert ours.encode(text) == converted.encode(text) == theirs.encode(text), text
    # The reference converter takes the tokens of transformers' tokenizer.
    assert keys["tokenizer.ggml.tokens"][: len(theirs)] == theirs.convert_ids_to_tokens(range(len(theirs)))


@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "Qwen2Tokenizer"])
def test_vocab_and_merges(tmp_path: Path, kind: str) -> None:
    model = byte_level_tokenizer(QWEN2, [], None)["model"]
    write_json(tmp_path / "vocab.json", model["vocab"])
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, model["merges"])) + "\n")
    end = {"272": {"content": "<|endoftext|>", "special": True}, "273": {"content": "<tool>", "special": False}}
    config = {"tokenizer_class": kind, "added_tokens_decoder": end, "unk_token": "<|endoftext|>"}
    write_json(tmp_path / "tokenizer_config.json", {**config, "bos_token": None, "eos_token": "<|endoftext|>"})
    ours, theirs = lowbit.load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert ours.eos_id == theirs.eos_token_id == 272
    for text in (*TEXTS, "the<tool>and <|endoftext|> in"):
        assert ours.encode(text) == theirs.encode(text), text
    keys = tokenizer_metadata(tmp_path, {}, "qwen2", 280)
    converted = from_metadata(keys | carried_tokenizer(opened_tokenizer(tmp_path), keys, []).keys)
    for text in TEXTS:
        assert converted.encode(text) == theirs.encode(text), text
