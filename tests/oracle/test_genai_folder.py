"""Folders that onnxruntime-genai runs: their files, and its text beside lowbit's on the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime_genai as og
import pytest
from tiny_checkpoint import make_checkpoint

import lowbit
from lowbit.export.exporting import export_onnx

pytestmark = pytest.mark.oracle

BARD = Path(lowbit.__file__).parent / "data" / "bard"
PROMPT, COUNT = "The ship left the harbour", 24


def exported(path: Path, folder: Path, layout: str = "genai") -> Path:
    export_onnx(path, folder, format="f32", layout=layout)
    return folder


def greedy(folder: Path, ids: list[int], count: int) -> list[int]:
    model = og.Model(str(folder))
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=len(ids) + count)
    generator = og.Generator(model, params)
    generator.append_tokens(ids)
    while not generator.is_done():
        generator.generate_next_token()
    return [int(i) for i in generator.get_sequence(0)]


@pytest.mark.parametrize("layout", ["genai", "standard"])
@pytest.mark.parametrize("from_gguf", [False, True])
def test_greedy_text(tmp_path: Path, layout: str, from_gguf: bool) -> None:
    source = BARD
    if from_gguf:
        source = tmp_path / "bard.gguf"
        lowbit.convert(BARD, source, "F32")
    folder = exported(source, tmp_path / "onnx", layout)
    model = lowbit.load(source)
    ids = model.tokenizer.encode(PROMPT)
    expected = model.generate(PROMPT, max_tokens=COUNT)
    tokenizer = og.Tokenizer(og.Model(str(folder)))
    assert [int(i) for i in tokenizer.encode(PROMPT)] == ids
    assert model.tokenizer.decode(greedy(folder, ids, COUNT)[len(ids) :]) == expected


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3", "gemma3", "phi3"])
def test_every_family_loads(tmp_path: Path, arch: str) -> None:
    """genai knows the type, and the tokens that end a text."""
    make_checkpoint(tmp_path / "model", arch, tokenizer="llama-bpe")
    folder = exported(tmp_path / "model", tmp_path / "onnx")
    tokenizer: Any = og.Tokenizer(og.Model(str(folder)))
    ours = lowbit.load_tokenizer(tmp_path / "model")
    assert {int(i) for i in tokenizer.eos_token_ids} == (ours.eos_ids or {0})
    ids = ours.encode("and then")
    assert len(greedy(folder, ids, 3)) <= len(ids) + 3
