"""Mixes against llama-quantize: data/mixes.json.xz has its choice for every tensor (mix_cases.py)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from mix_cases import CASES, LETTERS, Case, case_name, case_tensors
from stored import stored

import lowbit
from lowbit import ConvertOptions
from lowbit.quantization.assignment import Stored, assign, can_quantize, file_order
from lowbit.quantization.recipes import ALIASES, MIXES, Network, find_mix

REFERENCE = stored("mixes")


def inputs(case: Case) -> tuple[dict[str, Any], list[Stored]]:
    metadata, shapes = case_tensors(case)
    tensors = [Stored(name, shape, "F32" if len(shape) == 1 else "BF16") for name, shape in shapes.items()]
    return metadata, tensors


@pytest.mark.parametrize("case", CASES, ids=case_name)
def test_same_types_as_llama_quantize(case: Case) -> None:
    metadata, tensors = inputs(case)
    assert [tensor.name for tensor in tensors] == file_order(tensor.name for tensor in tensors)
    names = {letter: format for format, letter in LETTERS.items()}
    for mix, letters in REFERENCE[case_name(case)].items():
        if not letters:
            with pytest.raises(
                lowbit.InputError,
                match=r"has no fallback: expected a row length that is a multiple of the block size \d+, got \d+",
            ):
                assign(find_mix(mix), tensors, metadata, has_imatrix=case.imatrix)
            continue
        found = assign(find_mix(mix), tensors, metadata, has_imatrix=case.imatrix)
        wanted = [names[letter] for letter in letters]
        assert [(t.name, t.format) for t in found] == list(zip((t.name for t in tensors), wanted, strict=True)), mix


def test_pure_has_one_format() -> None:
    metadata, tensors = inputs(Case("falcon", 4))
    with pytest.raises(lowbit.UnsupportedError, match="falcon"):
        assign(find_mix("Q3_K_M"), tensors, metadata)
    pure = assign(find_mix("MXFP4_MOE"), tensors, metadata, ConvertOptions(pure=True))
    assert {t.format for t in pure} == {"MXFP4", "F32"}


def test_numbers_are_those_of_the_mixes() -> None:
    assert find_mix("15") is MIXES["Q4_K_M"]
    assert find_mix("0") is MIXES["F32"]
    numbers = [mix.file_type for mix in MIXES.values() if not mix.is_copy]
    assert len(numbers) == len(set(numbers)) == len(MIXES) - 1
    assert all(find_mix(str(mix.file_type)) is mix for mix in MIXES.values() if not mix.is_copy)
    assert all(find_mix(alias) is MIXES[name] for alias, name in ALIASES.items())
    for name in ("4", "33", "-1", "015", ""):
        with pytest.raises(lowbit.InputError, match="unknown format"):
            find_mix(name)


def test_the_reference_covers_every_quantized_mix() -> None:
    quantized = {name for name, mix in MIXES.items() if not mix.is_float}
    assert all(mixes.keys() == quantized for mixes in REFERENCE.values())
    assert set(REFERENCE) == set(map(case_name, CASES))


def test_fallbacks_say_why() -> None:
    metadata, tensors = inputs(Case("llama", 1, hidden=96, ffn=80))
    found = {t.name: t for t in assign(find_mix("Q4_K_S"), tensors, metadata)}
    assert found["blk.0.attn_q.weight"].fallback == (
        "blk.0.attn_q.weight: row length 96 is not a multiple of the block size 256: Q4_K -> Q5_0, +1 bits per weight"
    )
    assert found["blk.0.ffn_down.weight"].format == "F16"
    assert found["output.weight"].format == "Q8_0"
    assert "Q6_K -> Q8_0" in str(found["output.weight"].fallback)
    assert found["blk.0.attn_norm.weight"].fallback is None
    metadata, tensors = inputs(Case("llama", 1))
    assert not any(t.fallback for t in assign(find_mix("Q4_K_M"), tensors, metadata))


def test_names_in_any_case_and_aliases() -> None:
    assert find_mix("q4_k_m") is find_mix("Q4_K") is MIXES["Q4_K_M"]
    assert find_mix("bf16").is_float
    with pytest.raises(lowbit.InputError, match="'Q4_K_XL', did you mean Q4_K_S or Q4_K_M"):
        find_mix("Q4_K_XL")


def test_overrides_come_first_and_do_not_count_as_layers() -> None:
    metadata, tensors = inputs(Case("llama", 16))
    plain = assign(find_mix("Q4_K_M"), tensors, metadata)
    changed = assign(
        find_mix("Q4_K_M"),
        tensors,
        metadata,
        ConvertOptions(tensor_types=[(r"BLK\.0\.attn_v", "q8_0"), ("attn", "Q4_0")]),
    )
    by_name = {t.name: t.format for t in changed}
    assert by_name["blk.0.attn_v.weight"] == "Q8_0"
    assert by_name["blk.5.attn_q.weight"] == "Q4_0"
    for before, after in zip(plain, changed, strict=True):
        if "attn" not in before.name:
            assert before == after
    pure = {t.format for t in assign(find_mix("Q4_K_M"), tensors, metadata, ConvertOptions(pure=True))}
    assert pure == {"Q4_K", "F32"}
    floats = assign(find_mix("F16"), tensors, metadata, ConvertOptions(tensor_types=[("attn", "Q4_0")]))
    assert {t.format for t in floats if "attn_q.weight" in t.name} == {"Q4_0"}
    assert {t.format for t in floats} == {"F16", "F32", "Q4_0"}


def test_names_that_are_kept_are_those_of_llama_quantize() -> None:
    reference = stored("kept")
    assert {name: can_quantize(name, (2, 32)) for name in reference} == reference


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("blk.0.attn_q.weight", (4, 256), True),
        ("blk.0.attn_q.weight", (1, 256), False),
        ("blk.0.attn_q.weight", (2, 1, 256), True),
        ("blk.0.attn_q.bias", (4, 256), False),
        ("blk.0.attn_q_norm.weight", (4, 256), False),
        ("blk.0.ffn_gate_inp.weight", (4, 256), False),
        ("rope_freqs.weight", (64,), False),
    ],
)
def test_what_can_be_quantized(name: str, shape: tuple[int, ...], expected: bool) -> None:
    assert can_quantize(name, shape) == expected


@pytest.mark.parametrize(
    ("key", "value"),
    [("llama.expert_count", -1), ("llama.attention.head_count", np.array(["a"])), ("llama.block_count", "x")],
)
def test_models_without_known_mixes(key: str, value: Any) -> None:
    metadata, _ = case_tensors(Case("llama", 2))
    with pytest.raises(lowbit.UnsupportedError, match=key):
        Network.of({**metadata, key: value})
