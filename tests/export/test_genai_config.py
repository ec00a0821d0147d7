"""genai_config.json and the tokenizer's files beside it, from checkpoints and GGUF files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoint import TEMPLATE, edit_json, make_checkpoint, write_json

import lowbit
from lowbit.export.genai_config import GraphFacts
from lowbit.export.genai_files import GenaiFiles, genai_files
from lowbit.export.source import open_source

TYPES = {
    "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3_text", "phi3": "phi3", "bitnet": "decoder",
}  # fmt: skip


def graph(layers: int) -> GraphFacts:
    caches = [f"{i}.{part}" for i in range(layers) for part in ("key", "value")]
    inputs = ["input_ids", "attention_mask", *(f"past_key_values.{cache}" for cache in caches)]
    return GraphFacts("model.onnx", inputs, ["logits", *(f"present.{cache}" for cache in caches)], True)


def made(path: Path, **changes: Any) -> GenaiFiles:
    source = open_source(str(path), (), 1.0, None, None)
    provider = changes.pop("provider", None)
    return genai_files(source, graph(2)._replace(**changes), provider)


def config(path: Path, **changes: Any) -> Any:
    return json.loads(made(path, **changes).files["genai_config.json"])


@pytest.mark.parametrize("arch", TYPES)
def test_sizes_and_type(tmp_path: Path, arch: str) -> None:
    make_checkpoint(tmp_path, arch, layers=2, tokenizer="llama-bpe")
    model = config(tmp_path)["model"]
    assert model["type"] == TYPES[arch]
    assert (model["context_length"], model["vocab_size"]) == (256, 288)
    decoder = model["decoder"]
    assert (decoder["filename"], decoder["head_size"], decoder["hidden_size"]) == ("model.onnx", 64, 256)
    assert [decoder[f"num_{name}"] for name in ("attention_heads", "key_value_heads", "hidden_layers")] == [4, 2, 2]
    assert decoder["inputs"] == {
        "input_ids": "input_ids",
        "attention_mask": "attention_mask",
        "past_key_names": "past_key_values.%d.key",
        "past_value_names": "past_key_values.%d.value",
    }
    assert decoder["outputs"] == {
        "logits": "logits",
        "present_key_names": "present.%d.key",
        "present_value_names": "present.%d.value",
    }


def test_search(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    assert config(tmp_path)["search"] == {
        "do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "repetition_penalty": 1.0, "max_length": 256,
        "past_present_share_buffer": True,
    }  # fmt: skip
    sampling = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.1}
    write_json(tmp_path / "generation_config.json", sampling)
    found = config(tmp_path, shares_cache=False)["search"]
    assert {key: found[key] for key in sampling} == sampling
    assert not found["past_present_share_buffer"]
    edit_json(tmp_path / "generation_config.json", {"do_sample": False})
    assert not config(tmp_path)["search"]["do_sample"]


def test_tokens_that_end_a_text(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    tokenizer = lowbit.load_tokenizer(tmp_path)
    write_json(tmp_path / "generation_config.json", {"eos_token_id": [3, 5]})
    model = config(tmp_path)["model"]
    assert model["eos_token_id"][0] == tokenizer.eos_id
    assert {3, 5} < set(model["eos_token_id"])
    assert model["pad_token_id"] == (tokenizer.eos_id if tokenizer.pad_id is None else tokenizer.pad_id)


def test_a_model_without_a_token_that_ends_a_text(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    definition = json.loads((tmp_path / "tokenizer.json").read_text())
    for i, token in enumerate(definition["added_tokens"]):
        token["content"] = f"<|{i}|>"
    write_json(tmp_path / "tokenizer.json", definition)
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "Qwen2Tokenizer"})
    edit_json(tmp_path / "config.json", {"eos_token_id": None})
    found = made(tmp_path)
    assert "eos_token_id" not in json.loads(found.files["genai_config.json"])["model"]
    assert "eos" in [difference.rule for difference in found.differences]


def test_a_provider(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    assert config(tmp_path)["model"]["decoder"]["session_options"]["provider_options"] == []
    options = config(tmp_path, provider={"cuda": {"enable_cuda_graph": "0"}})["model"]["decoder"]["session_options"]
    assert options["provider_options"] == [{"cuda": {"enable_cuda_graph": "0"}}]


@pytest.mark.parametrize("arch", ["qwen3", "llama", "gemma3"])
def test_the_same_from_a_gguf_file(tmp_path: Path, arch: str) -> None:
    make_checkpoint(tmp_path / "model", arch)
    lowbit.convert(tmp_path / "model", tmp_path / "model.gguf", "F32")
    first, second = made(tmp_path / "model"), made(tmp_path / "model.gguf")
    assert json.loads(first.files["genai_config.json"]) == json.loads(second.files["genai_config.json"])
    tokenizers = []
    for name, found in (("a", first), ("b", second)):
        (tmp_path / name).mkdir()
        for file, content in found.files.items():
            (tmp_path / name / file).write_bytes(content)
        tokenizers.append(lowbit.load_tokenizer(tmp_path / name))
    text = "The ship left\n  the harbour, 123 and d\u00e9j\u00e0 vu."
    assert (
        tokenizers[0].encode(text)
        == tokenizers[1].encode(text)
        == lowbit.load_tokenizer(tmp_path / "model").encode(text)
    )
    assert [d.rule for d in first.differences] == [d.rule for d in second.differences]


def tokenizer_config(path: Path) -> Any:
    return json.loads(made(path).files["tokenizer_config.json"])


def test_the_class_of_a_tokenizer(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    for name, expected in (
        ("Qwen2TokenizerFast", "Qwen2TokenizerFast"),
        ("PhiTokenizer", "PreTrainedTokenizerFast"),
        ("CLIPTokenizer", "PreTrainedTokenizerFast"),
    ):
        edit_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": name})
        assert tokenizer_config(tmp_path)["tokenizer_class"] == expected


def test_the_chat_template_is_the_one_of_transformers(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    edit_json(tmp_path / "tokenizer_config.json", {"chat_template": "ignored"})
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    assert tokenizer_config(tmp_path)["chat_template"] == TEMPLATE
    (tmp_path / "chat_template.jinja").unlink()
    several = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    edit_json(tmp_path / "tokenizer_config.json", {"chat_template": several})
    assert tokenizer_config(tmp_path)["chat_template"] == "a"
    assert any("'tool_use'" in str(difference) for difference in made(tmp_path).differences)


def test_tokenizer_json_is_copied(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    assert made(tmp_path).files["tokenizer.json"] == (tmp_path / "tokenizer.json").read_bytes()


def test_the_files_are_beside_the_model(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model", "llama")
    report = lowbit.export_onnx(tmp_path / "model", tmp_path / "onnx", format="f32")
    names = {path.name for path in (tmp_path / "onnx").iterdir()}
    assert {"genai_config.json", "tokenizer.json", "tokenizer_config.json", "config.json"} < names
    differences = [str(difference) for difference in made(tmp_path / "model").differences]
    assert differences
    assert set(differences) <= set(report.notes)


def test_a_checkpoint_whose_tokenizer_cannot_be_read(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "broken", "phi3")  # whose tokenizer.json lacks flags
    report = lowbit.export_onnx(tmp_path / "broken", tmp_path / "onnx", format="f32")
    assert any("no tokenizer and no genai_config.json" in note for note in report.notes)
    assert not (tmp_path / "onnx" / "genai_config.json").exists()
