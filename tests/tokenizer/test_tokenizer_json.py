"""The small JSON files of a tokenizer with values of other types than expected: an error of ours, or it works."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoint import byte_level_tokenizer, edit_json, write_json, write_tokenizer
from tokenizer_cases import normalized_llama, tokenizer_metadata

import lowbit
from lowbit.hf.model_card import general_metadata
from lowbit.tokenizer.naming import LLAMA3, QWEN2

FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json",
    "vocab.json",
)  # fmt: skip
VALUES = (1, "x", None, [], {}, True, 1.5, -1, 10**30)
#: Name -> GGUF architecture and number of tokens.
KINDS = {"byte-level": ("qwen3", 280), "framed": ("llama", 288), "spm": ("llama", 280), "vocab.json": ("qwen2", 280),
         "byte-fallback": ("llama", 1100), "ranked": ("gemma3", 1100)}  # fmt: skip
#: So many changes of each kind; all of them take minutes.
COUNT = 70


def make_folder(folder: Path, kind: str) -> None:
    if kind in ("byte-fallback", "ranked"):
        normalized_llama(folder, "LlamaTokenizer", model=False)
    elif kind == "vocab.json":
        model = byte_level_tokenizer(QWEN2, [], None)["model"]
        write_json(folder / "vocab.json", model["vocab"])
        (folder / "merges.txt").write_text("\n".join(map(" ".join, model["merges"])))
        write_json(folder / "tokenizer_config.json", {"tokenizer_class": "Qwen2Tokenizer"})
    else:
        write_tokenizer(folder, {"byte-level": "qwen2", "framed": "llama-bpe", "spm": "phi-3"}[kind])
    token = {"content": "<|end|>", "lstrip": False, "special": True}
    named = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    edit_json(folder / "tokenizer_config.json", {"added_tokens_decoder": {"274": token}, "chat_template": named,
              "additional_special_tokens": ["<x>"], "extra_special_tokens": {"y": "<y>"}, "legacy": True})  # fmt: skip
    write_json(folder / "special_tokens_map.json", {"eos_token": token, "bos_token": "<s>"})
    write_json(folder / "generation_config.json", {"eos_token_id": [2, 3], "temperature": 0.5, "top_k": 4})
    if not (folder / "added_tokens.json").exists() and kind == "vocab.json":
        write_json(folder / "added_tokens.json", {"<|end|>": 274})
    write_json(folder / "config.json", {"vocab_size": KINDS[kind][1], "eos_token_id": 2})


def places(value: Any, depth: int = 4) -> Iterator[tuple[Any, ...]]:
    """Where something is in a JSON value; of long lists and objects in the first and last entries."""
    items = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else [])
    for key, part in items if len(items) < 12 else [*items[:3], *items[-2:]]:
        yield (key,)
        if depth > 1:
            yield from ((key, *rest) for rest in places(part, depth - 1))


def replaced(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    if not place:
        return new
    copy = value.copy()
    copy[place[0]] = replaced(value[place[0]], place[1:], new)
    return copy


def outcome(use: Callable[[], Any]) -> str:
    try:
        use()
    except lowbit.Error as error:
        return f"refused in {len(str(error).splitlines())} line"
    return "works"


@pytest.mark.parametrize("kind", KINDS)
def test_values_of_other_types(tmp_path: Path, kind: str) -> None:
    arch, vocab_size = KINDS[kind]
    make_folder(tmp_path, kind)
    contents = {name: json.loads((tmp_path / name).read_text()) for name in FILES if (tmp_path / name).exists()}
    cases = [(name, place, value) for name in contents for place in places(contents[name]) for value in VALUES]
    outcomes = set()
    for name, place, value in random.Random(0).sample(cases, COUNT):
        write_json(tmp_path / name, replaced(contents[name], place, value))
        for use in (
            lambda: lowbit.load_tokenizer(tmp_path).encode("the <s>"),
            lambda: tokenizer_metadata(tmp_path, {}, arch, vocab_size, []),
            lambda: general_metadata(tmp_path, {}, 1, None, []),
        ):
            outcomes.add(outcome(use))
        write_json(tmp_path / name, contents[name])
    assert outcomes == {"works", "refused in 1 line"}


TOKEN = {"id": 275, "content": "<x>"}
FAULTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "added tokens": (
        "tokenizer.json",
        {"added_tokens": 1},
        r"tokenizer.json: added_tokens: expected a list, found int",
    ),
    "added token": ("tokenizer.json", {"added_tokens": [1]}, r"tokenizer.json: added_tokens\[0\]: expected an object"),
    "content": ("tokenizer.json", {"added_tokens": [{"id": 275}]}, r"added_tokens\[0\]: content: expected a string"),
    "flag": (
        "tokenizer.json",
        {"added_tokens": [{**TOKEN, "special": 1}]},
        r"\[0\]: special: expected true",
    ),
    "model": ("tokenizer.json", {"model": 1}, "tokenizer.json: model: expected an object"),
    "merges": ("tokenizer.json", {"model": {"type": "BPE", "merges": "a b"}}, "model: merges: expected a list"),
    "processor": ("tokenizer.json", {"post_processor": 5}, "tokenizer.json: post_processor: expected an object"),
    "steps": ("tokenizer.json", {"post_processor": {"processors": 5}}, "post_processor: processors: expected a list"),
    "step": ("tokenizer.json", {"post_processor": {"processors": [5]}}, r"processors\[0\]: expected an object"),
    "template": ("tokenizer.json", {"post_processor": {"single": 5}}, "post_processor: single: expected a list"),
    "decoder": ("tokenizer_config.json", {"added_tokens_decoder": 1}, "added_tokens_decoder: expected an object"),
    "entry": ("tokenizer_config.json", {"added_tokens_decoder": {"0": 1}}, r"added_tokens_decoder\['0'\]: expected an"),
    "extra": ("tokenizer_config.json", {"extra_special_tokens": 1}, "extra_special_tokens: expected a list"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", ["byte-level", "spm"])
def test_errors_name_file_and_key(tmp_path: Path, kind: str, fault: str) -> None:
    name, changes, message = FAULTS[fault]
    make_folder(tmp_path, kind)
    edit_json(tmp_path / name, changes)
    with pytest.raises(lowbit.FormatError, match=message):
        tokenizer_metadata(tmp_path, {}, *KINDS[kind])


def test_one_id_as_number_and_as_text(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer(LLAMA3, [], None)
    tokenizer["model"]["vocab"]["ou"] = "0"
    write_json(tmp_path / "tokenizer.json", tokenizer)
    with pytest.raises(lowbit.FormatError, match=r"tokenizer.json: tokens '\u0100' and 'ou' have the same id 0"):
        tokenizer_metadata(tmp_path, {}, "llama", 288)


def test_a_vocabulary_that_no_reader_takes(tmp_path: Path) -> None:
    """llama.cpp refuses both as well, when it loads the file."""
    tokenizer = byte_level_tokenizer(LLAMA3, ["<x>"], None)
    write_json(tmp_path / "tokenizer.json", {**tokenizer, "model": {**tokenizer["model"], "merges": []}})
    with pytest.raises(lowbit.FormatError, match=r"tokenizer.json: model has no merges"):
        tokenizer_metadata(tmp_path, {}, "llama", 288)
    write_json(tmp_path / "tokenizer.json", {**tokenizer, "added_tokens": [{"id": 274, "content": "th"}]})
    with pytest.raises(lowbit.FormatError, match=r"the ids 256 and 274 have the same token 'th'"):
        tokenizer_metadata(tmp_path, {}, "llama", 288)
