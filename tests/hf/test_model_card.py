"""Names, sizes, cards: the general.* keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbit.hf.model_card import general_metadata, name_parts, size_label, title


@pytest.mark.parametrize(
    ("model_id", "params", "expected"),
    [
        ("Mistral-7B-Instruct-v0.2", 7e9, (None, "Mistral", "Instruct", "v0.2", "7B")),
        ("meta-llama/Llama-3.2-1B-Instruct", 1.2e9, ("meta-llama", "Llama-3.2", "Instruct", None, "1B")),
        ("Qwen/Qwen3-0.6B", 6e8, ("Qwen", "Qwen3", None, None, "0.6B")),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 1.35e8, ("HuggingFaceTB", "SmolLM2", "Instruct", None, "135M")),
        ("TinyLlama-1.1B-Chat-v1.0", 1.1e9, (None, "TinyLlama", "Chat", "v1.0", "1.1B")),
        ("Phi-3-mini-128k-instruct", 3.8e9, (None, "Phi-3", "128k-instruct", None, "mini")),
        ("bloom-7b1", 7e9, (None, "bloom", None, None, "7.1B")),
        ("qwen3-tiny", 4.2e7, (None, None, None, None, None)),
        ("plain", 1e6, (None, None, None, None, None)),
        ("./model-7B", 7e9, (None, "model", None, None, "7B")),
        ("a sentence about it", 1, (None, None, None, None, None)),
        ("--", 1, (None, None, None, None, None)),
    ],
)
def test_names(model_id: str, params: float, expected: tuple[str | None, ...]) -> None:
    found = name_parts(model_id, int(params))
    parts = (found.organization, found.basename, found.finetune, found.version, found.size_label)
    assert parts == expected
    assert (found.name, *parts) == reference_parts(model_id, int(params))


WORDS = ["Llama", "qwen3", "7B", "1.5b", "8x7B", "chat", "Instruct", "v0.1", "3.2", "128k", "mini", "xl", "Q4_0",
         "bf16", "7b1", "A3B", "lora", "iter2", "é", "0_5B", "large", ""]  # fmt: skip


@given(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map("-".join),
    st.sampled_from(["", "org/", "./", "../"]),
    st.sampled_from([0, 500_000_000, 7_000_000_000]),
)
def test_names_as_the_reference_takes_them_apart(name: str, organization: str, num_params: int) -> None:
    found = name_parts(organization + name, num_params)
    parts = (found.organization, found.basename, found.finetune, found.version, found.size_label)
    assert (found.name, *parts) == reference_parts(organization + name, num_params)
    assert title(name) == gguf.Metadata.id_to_title(name)


def reference_parts(model_id: str, num_params: int) -> tuple[str | None, ...]:
    return gguf.Metadata.get_model_id_components(model_id, num_params)


@given(st.integers(1, 10**13))
def test_size_labels_as_the_reference_writes_them(num_params: int) -> None:
    assert size_label(num_params) == gguf.size_label(num_params, num_params, 0, 0)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (595776512, "596M"),
        (1.24e9, "1.2B"),
        (7.2e9, "7.2B"),
        (7.05e10, "70B"),
        (999, "1.0K"),
        (3.7e6, "3.7M"),
        (2e12, "2.0T"),
    ],
)
def test_sizes(count: float, expected: str) -> None:
    assert size_label(int(count)) == expected


def test_titles() -> None:
    assert title("tiny-llama-1.1B-v1.0") == "Tiny Llama 1.1B v1.0"


def general(
    folder: Path, config: dict[str, Any] | None = None, hub_id: str | None = None
) -> tuple[dict[str, Any], list[str]]:
    notes: list[str] = []
    return general_metadata(folder, config or {}, int(7e9), hub_id, notes), notes


CARD = """---
license: apache-2.0
license_name: apache
language:
- en
- no
tags:
- chat
pipeline_tag: text-generation
base_model: org/Base-7B-v2
datasets:
- https://huggingface.co/org/data
- other/set
model_creator: Somebody
version: 2.5
---
# A model
"""


def test_card(tmp_path: Path) -> None:
    folder = tmp_path / "My-Model-7B-chat"
    folder.mkdir()
    (folder / "README.md").write_text(CARD)
    (folder / "generation_config.json").write_text('{"temperature": 0.6, "top_k": 20, "penalty_repeat": 1.1}')
    found, notes = general(folder)
    assert notes == []
    assert list(found) == [
        "general.sampling.top_k", "general.sampling.temp", "general.sampling.penalty_repeat", "general.name",
        "general.author", "general.version", "general.finetune", "general.basename", "general.size_label",
        "general.license", "general.license.name", "general.base_model.count", "general.base_model.0.name",
        "general.base_model.0.version", "general.base_model.0.organization", "general.base_model.0.repo_url",
        "general.dataset.count", "general.dataset.0.name", "general.dataset.0.organization",
        "general.dataset.0.repo_url", "general.dataset.1.name", "general.dataset.1.organization",
        "general.dataset.1.repo_url", "general.tags",
        "general.languages",
    ]  # fmt: skip
    assert found["general.sampling.top_k"].dtype == np.int32
    assert found["general.sampling.temp"].dtype == np.float32
    assert found["general.version"] == "2.5"
    assert found["general.languages"] == ["en", "no"]
    assert found["general.tags"] == ["chat", "text-generation"]
    assert found["general.base_model.0.repo_url"] == "https://huggingface.co/org/Base-7B-v2"
    assert (found["general.name"], found["general.basename"]) == ("My Model 7B Chat", "My-Model")
    reference = reference_keys(folder)
    assert list(found) == list(reference)
    for key, value in reference.items():
        assert found[key] == (np.float32(value) if isinstance(value, float) else value), key


def reference_keys(folder: Path) -> dict[str, Any]:
    metadata = gguf.Metadata.load(None, folder, None, int(7e9))
    if metadata.version is not None:
        metadata.version = str(metadata.version)  # the reference cannot write a number here
    writer = gguf.GGUFWriter(None, "llama")
    metadata.set_gguf_meta_model(writer)
    return {key: value.value for key, value in writer.kv_data[0].items() if key != "general.architecture"}


@pytest.mark.parametrize(
    "card",
    [
        "# A model\nlicense: mit\n---\n",
        "---\nlicense: mit\n",
        "---\nbase_model: Base-7B\n---\n",
        "---\nbase_model:\n- org/A-1B\n- https://huggingface.co/org/B-2B-v1\n- {name: C, organization: d}\n---\n",
        "---\ndatasets: set\nlicense: mit\n---\nlicense: other\n",
        "---\ndatasets: [org/a, {repo_url: https://x.org/y}]\n---\n",
    ],
)
def test_cards_as_the_reference_reads_them(tmp_path: Path, card: str) -> None:
    folder = tmp_path / "My-Model-7B-chat"
    folder.mkdir()
    (folder / "README.md").write_text(card)
    assert list(general(folder)[0].items()) == list(reference_keys(folder).items())


def test_hub_id_beats_the_folder(tmp_path: Path) -> None:
    found, _ = general(tmp_path, hub_id="Qwen/Qwen3-8B")
    assert (found["general.name"], found["general.organization"]) == ("Qwen3 8B", "Qwen")
    found, _ = general(tmp_path, {"_name_or_path": "a/Other-7B"}, hub_id="Qwen/Qwen3-8B")
    assert found["general.name"] == "Other 7B"


@pytest.mark.parametrize(
    "card", ["---\na: [\n---\n", "---\n\x00\n---\n", "---\n&a [*a, *a]\n", "---\nname: x", "", "no", "---"]
)
def test_odd_cards(tmp_path: Path, card: str) -> None:
    (tmp_path / "README.md").write_text(card)
    assert general(tmp_path)[0]["general.name"]


MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 60))
LISTS = "license: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))


@pytest.mark.parametrize(
    "card",
    [
        MERGES,
        LISTS,
        "tags: " + "[" * 65 + "]" * 65,
        "tags: " + "[" * 100_000,
        "tags: [" + "x, " * 400_000 + "x]",
        "license: !!timestamp x",
        "license: !!bool x",
        "license: !!python/name:os.system",
    ],
    ids=["merges", "lists", "levels", "deep", "long", "date", "bool", "code"],
)
def test_cards_that_would_take_hours_or_break_the_parser(tmp_path: Path, card: str) -> None:
    (tmp_path / "README.md").write_text(f"---\n{card}\n---\n")
    found, notes = general(tmp_path)
    assert not {"general.license", "general.tags"} & found.keys()
    assert [note.partition(" (")[0] for note in notes] == [
        "README.md: the front matter is not valid YAML and was left out"
    ]


def test_what_was_left_out_is_said(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\na: [\n---\n")
    (tmp_path / "generation_config.json").write_text('{"top_k": "many", "temperature": 1e300}')
    _, notes = general(tmp_path)
    assert len(notes) == 3
    assert "README.md" in notes[0]
    assert "top_k" in notes[1]
