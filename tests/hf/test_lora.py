"""LoRA adapters: the sums they stand for, computed at once in float64, and one error for each thing amiss.

tests/oracle/test_inputs_oracle.py compares with peft.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from input_cases import make_float8
from tiny_checkpoint import make_checkpoint, write_json, write_safetensors

import lowbit
from lowbit.cli.execution import execute
from lowbit.conversion.open import open_checkpoint
from lowbit.hf import lora
from lowbit.hf.checkpoint import Checkpoint
from lowbit.tensors.source import read

LAYER = "model.layers.0."
UP, Q, EMBED = f"{LAYER}mlp.up_proj", f"{LAYER}self_attn.q_proj", "model.embed_tokens"
SHAPES = {UP: (512, 256), Q: (256, 256), EMBED: (288, 256)}
PREFIX = "base_model.model."


def factors(module: str, rank: int = 4, seed: int = 0, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    random = np.random.RandomState(seed)
    rows, columns = SHAPES[module]
    kind = "embedding_" if module == EMBED else ""
    if kind:
        rows, columns = columns, rows
    end = "" if kind else ".weight"
    return {
        f"{PREFIX}{module}.lora_{kind}A{end}": (0.1 * random.standard_normal((rank, columns))).astype(dtype),
        f"{PREFIX}{module}.lora_{kind}B{end}": (0.1 * random.standard_normal((rows, rank))).astype(dtype),
    }


def make_adapter(folder: Path, tensors: dict[str, np.ndarray], **settings: Any) -> Path:
    folder.mkdir(exist_ok=True)
    write_json(folder / "adapter_config.json", {"peft_type": "LORA", "r": 4, "lora_alpha": 8, **settings})
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    return folder


def merged(base: Path, adapters: Any, scales: Any = 1.0) -> dict[str, np.ndarray]:
    checkpoint = Checkpoint(base)
    lora.merge(checkpoint, adapters, scales)
    return {name: read(tensor) for name, tensor in checkpoint.tensors.items()}


def product(tensors: dict[str, np.ndarray], module: str) -> np.ndarray:
    kind, end = ("embedding_", "") if module == EMBED else ("", ".weight")
    a, b = (np.float64(tensors[f"{PREFIX}{module}.lora_{kind}{letter}{end}"]) for letter in "AB")
    return (b @ a).T if kind else b @ a


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("rslora", [False, True])
def test_sums(tmp_path: Path, dtype: Any, rslora: bool) -> None:
    base = make_checkpoint(tmp_path / "base", layers=1)
    tensors = {key: value for module in SHAPES for key, value in factors(module, dtype=dtype).items()}
    before = {name: read(tensor) for name, tensor in Checkpoint(base).tensors.items()}
    after = merged(base, make_adapter(tmp_path / "a", tensors, use_rslora=rslora), 0.5)
    assert after.keys() == before.keys() >= {f"{module}.weight" for module in SHAPES}
    scale = 0.5 * 8 / (math.sqrt(4) if rslora else 4)
    for name, array in after.items():
        module = name.removesuffix(".weight")
        if module not in SHAPES:
            assert array.tobytes() == before[name].tobytes()
            continue
        assert array.dtype == np.float32
        expected = np.float64(before[name]) + scale * product(tensors, module)
        np.testing.assert_allclose(array, expected, rtol=1e-6, atol=1e-7)


def test_rows_are_those_of_the_whole(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", layers=1)
    tensors = {key: value for module in SHAPES for key, value in factors(module).items()}
    checkpoint = Checkpoint(base)
    lora.merge(checkpoint, make_adapter(tmp_path / "a", tensors), 1.0)
    for module in SHAPES:
        tensor = checkpoint.tensors[f"{module}.weight"]
        whole = read(tensor)
        for start, stop in ((0, 0), (0, 1), (7, 200), (len(whole) - 3, len(whole))):
            np.testing.assert_allclose(tensor.rows(start, stop), whole[start:stop], rtol=1e-6, atol=1e-7)


def test_several_adapters(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", layers=1, dtype="F32")
    first, second = factors(UP, seed=1), factors(UP, rank=2, seed=2)
    paths = [make_adapter(tmp_path / "1", first), make_adapter(tmp_path / "2", second, r=2)]
    before = read(Checkpoint(base).tensors[f"{UP}.weight"])
    for scales, (one, two) in ((1.0, (2.0, 4.0)), ([0.5, -1.0], (1.0, -4.0))):
        expected = before + one * product(first, UP) + two * product(second, UP)
        np.testing.assert_allclose(merged(base, paths, scales)[f"{UP}.weight"], expected, rtol=1e-5, atol=1e-6)


def test_dora_sets_the_norm_of_each_row(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", layers=1)
    magnitude = np.random.RandomState(3).uniform(0.5, 2, 512).astype(np.float32)
    tensors = factors(UP) | {f"{PREFIX}{UP}.lora_magnitude_vector": magnitude}
    after = merged(base, make_adapter(tmp_path / "a", tensors, use_dora=True))[f"{UP}.weight"]
    np.testing.assert_allclose(np.linalg.norm(after, axis=1), magnitude, rtol=1e-5)


def test_modules_to_save_take_the_place(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", layers=1)
    norm = np.arange(256, dtype=np.float32)
    after = merged(base, make_adapter(tmp_path / "a", {f"{PREFIX}model.norm.weight": norm}))
    np.testing.assert_array_equal(after["model.norm.weight"], norm)


EMBEDDINGS, OUTPUT = f"{PREFIX}{EMBED}.weight", f"{PREFIX}lm_head.weight"
WRAPPED = ".modules_to_save.default.weight"


@pytest.mark.parametrize("spelling", [".weight", ".modules_to_save.weight", WRAPPED])
@pytest.mark.parametrize("saved", [["embed_tokens"], ["lm_head"], ["model.embed_tokens", "lm_head"]])
def test_saved_modules_untie(tmp_path: Path, saved: list[str], spelling: str) -> None:
    base = make_checkpoint(tmp_path / "base", layers=1, dtype="F32")
    shared = read(Checkpoint(base).tensors[f"{EMBED}.weight"])
    new = {name: np.full((288, 256), i, np.float32) for i, name in enumerate([EMBEDDINGS, OUTPUT])}
    given = {name: new[name] for name in new if name.split(".")[-2] in [module.split(".")[-1] for module in saved]}
    tensors = {name.replace(".weight", spelling): value for name, value in given.items()}
    opened = open_checkpoint(base, lora=make_adapter(tmp_path / "a", {**GOOD, **tensors}, modules_to_save=saved))
    found = {tensor.name: read(tensor) for tensor in opened.tensors}
    np.testing.assert_array_equal(found["token_embd.weight"], given.get(EMBEDDINGS, shared))
    np.testing.assert_array_equal(found["output.weight"], given.get(OUTPUT, shared))
    assert [tensor.name for tensor in opened.tensors][:2] == [
        "output.weight",
        "token_embd.weight",
    ]  # as in a merged file


def test_a_later_adapter_changes_one_of_the_untied(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", layers=1, dtype="F32")
    low_rank, later = factors(EMBED, seed=1), factors(EMBED, seed=2)
    saved = {OUTPUT: np.ones((288, 256), np.float32)}
    paths = [
        make_adapter(tmp_path / "1", low_rank),
        make_adapter(tmp_path / "2", saved, modules_to_save=["lm_head"]),
        make_adapter(tmp_path / "3", later),
    ]
    before = read(Checkpoint(base).tensors[f"{EMBED}.weight"])
    opened = open_checkpoint(base, lora=paths)
    found = {tensor.name: read(tensor) for tensor in opened.tensors}
    expected = before + 2 * product(low_rank, EMBED) + 2 * product(later, EMBED)
    np.testing.assert_allclose(found["token_embd.weight"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found["output.weight"], 1)
    assert [note.split()[2] for note in opened.notes if "the output tied to them" in note] == ["1"]


def test_patterns_set_rank_and_alpha(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", layers=1, dtype="F32")
    tensors = factors(UP, rank=2)
    settings = {"rank_pattern": {"up_proj": 2}, "alpha_pattern": {"q_proj": 100, r"^model\.layers\.0\..*up_proj$": 6}}
    before = read(Checkpoint(base).tensors[f"{UP}.weight"])
    after = merged(base, make_adapter(tmp_path / "a", tensors, **settings))[f"{UP}.weight"]
    np.testing.assert_allclose(after, before + 3 * product(tensors, UP), rtol=1e-5, atol=1e-6)


def test_an_adapter_on_8_bit_floats(tmp_path: Path) -> None:
    base, weights = make_float8(tmp_path / "base", "compressed-rows")
    shape = weights[f"{UP}.weight"].shape
    random = np.random.RandomState(0)
    tensors = {
        f"{PREFIX}{UP}.lora_A.weight": random.standard_normal((4, shape[1])).astype(np.float32),
        f"{PREFIX}{UP}.lora_B.weight": random.standard_normal((shape[0], 4)).astype(np.float32),
    }
    opened = open_checkpoint(base, lora=make_adapter(tmp_path / "a", tensors))
    found = next(read(tensor) for tensor in opened.tensors if tensor.name == "blk.0.ffn_up.weight")
    np.testing.assert_allclose(found, weights[f"{UP}.weight"] + 2 * product(tensors, UP), rtol=1e-5, atol=1e-5)


def test_files_and_models_have_the_merged_weights(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", layers=1)
    adapter = make_adapter(tmp_path / "a", factors(UP), base_model_name_or_path="other/model")
    report = lowbit.convert(
        base, tmp_path / "out.gguf", "F32", verify=False, provenance=False, lora=[adapter], lora_scale=[0.5]
    )
    assert "the adapter a was made for other/model" in report.notes
    with lowbit.gguf.open(tmp_path / "out.gguf") as file:
        found = np.array(file.tensors["blk.0.ffn_up.weight"])
    np.testing.assert_array_equal(found, merged(base, adapter, 0.5)[f"{UP}.weight"])
    model = lowbit.load(base, lora=adapter, lora_scale=0.5)
    np.testing.assert_array_equal(np.asarray(model.weights["blk.0.ffn_up.weight"]), found)
    with pytest.raises(lowbit.InputError, match="lora works only for checkpoints"):
        lowbit.load(tmp_path / "out.gguf", lora=adapter)


def test_the_command_verifies_what_was_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = make_checkpoint(tmp_path / "base", layers=1)
    adapter, out = str(make_adapter(tmp_path / "a", factors(UP))), str(tmp_path / "out.gguf")
    scaled = ["--lora", adapter, "--lora-scale", "0.5"]
    assert execute(["convert", str(base), out, "-f", "bf16", *scaled, "--no-verify"]) == 0
    assert execute(["verify", out, str(base), *scaled]) == 0
    assert execute(["verify", out, str(base), "--lora", adapter]) == 1
    assert "blk.0.ffn_up.weight (BF16) is off by" in capsys.readouterr().out


@pytest.mark.parametrize("module", [UP, EMBED])
@pytest.mark.parametrize("formats", [("F32",), ("F16",), ("BF16",), ("BF16", "F16"), ("F16", "F32")])
def test_sums_in_another_order_verify(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, formats: tuple[str, ...]
) -> None:
    """Libraries of linear algebra add in an order that depends on the number of rows and on the CPU."""
    base = make_checkpoint(tmp_path / "base", layers=1)
    adapter = make_adapter(tmp_path / "a", factors(module, 48), r=48)
    lowbit.convert(base, tmp_path / "out.gguf", formats[0], verify=False, provenance=False, lora=adapter)
    for format in formats[1:]:
        lowbit.quantize_file(tmp_path / "out.gguf", tmp_path / "out.gguf.2", format)
        (tmp_path / "out.gguf.2").rename(tmp_path / "out.gguf")

    def rows(self: lora.Delta, start: int, stop: int) -> np.ndarray:
        a, b = read(self.a), read(self.b)
        left, right = (a.T, b.T) if self.transposed else (b, a)
        return sum(np.outer(x, y) for x, y in zip(left[start:stop].T, right, strict=True)) * self.scale

    monkeypatch.setattr(lora.Delta, "rows", rows)
    verdict = lowbit.verify(tmp_path / "out.gguf", base, lora=adapter)
    assert verdict.ok, verdict.failures
    verdict = lowbit.verify(tmp_path / "out.gguf", base, lora=adapter, lora_scale=1.0001)
    assert not verdict.ok


A, B = f"{PREFIX}{UP}.lora_A.weight", f"{PREFIX}{UP}.lora_B.weight"
GOOD = factors(UP)
M = {f"{PREFIX}{UP}.lora_magnitude_vector": np.ones(512, np.float32)}
BROKEN: dict[str, tuple[dict[str, np.ndarray], dict[str, Any], str]] = {
    "another rank": (GOOD, {"r": 8}, r"lora_A.weight' has shape \[4, 256\], expected \[8, 256\] from rank 8"),
    "B of another model": ({**GOOD, B: GOOD[B][:256]}, {}, r"lora_B.weight' has shape \[256, 4\], expected \[512, 4\]"),
    "B alone": ({B: GOOD[B]}, {}, "has no lora_A"),
    "A alone": ({A: GOOD[A]}, {}, "has no lora_B"),
    "no such layer": (
        {k.replace("layers.0", "layers.7"): v for k, v in GOOD.items()},
        {},
        "no tensor 'layers.7.mlp.up_proj",
    ),
    "a tied output": ({k.replace(UP, "lm_head"): v for k, v in GOOD.items()}, {}, "changes the output, and would"),
    "a norm": ({k.replace(UP, "model.norm"): v for k, v in GOOD.items()}, {}, "which is not a matrix"),
    "twice": (
        {**GOOD, **{k.replace(".model.model.", ".model."): v for k, v in GOOD.items()}},
        {},
        "which another tensor also changes",
    ),
    "larger embeddings": (
        {f"{PREFIX}{EMBED}.weight": np.zeros((300, 256), np.float32)},
        {},
        r"expected \[288, 256\] from .* first add the tokens to the base, with resize_token_embeddings",
    ),
    "a saved module that is not there": (
        GOOD,
        {"modules_to_save": ["lm_head"]},
        "tensor 'lm_head.weight' is missing, but modules_",
    ),
    "modules_to_save of text": (GOOD, {"modules_to_save": "lm_head"}, "'lm_head', expected a list of names"),
    "an unknown kind": (
        {f"{PREFIX}{UP}.lora_C.weight": GOOD[A]},
        {},
        "lora_C.weight' is not a tensor of a LoRA adapter",
    ),
    "nothing": ({}, {}, "no tensors"),
    "a magnitude without DoRA": ({**GOOD, **M}, {}, "does not match use_dora in adapter_config.json"),
    "DoRA without a magnitude": (GOOD, {"use_dora": True}, "does not match use_dora"),
    "IA3": (GOOD, {"peft_type": "IA3"}, "peft_type 'IA3', expected LORA"),
    "PiSSA": (GOOD, {"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4', which changes the base weights"),
    "QALoRA": (GOOD, {"use_qalora": True}, "use_qalora is set"),
    "layers repeated": (GOOD, {"layer_replication": [[0, 1]]}, "layer_replication is set"),
    "a slow pattern": (
        GOOD,
        {"alpha_pattern": {"(a+)+b": 1}},
        r"pattern '\(a\+\)\+b', expected a simple regular expression",
    ),
    "many stars": (GOOD, {"rank_pattern": {".*a" * 9: 1}}, ", expected a simple regular expression"),
    "a pattern of a list": (GOOD, {"rank_pattern": [1]}, "'rank_pattern' is '.1.', expected an object"),
    "rank of text": (GOOD, {"r": "4"}, "'r' is '4', expected a positive integer"),
    "no rank": (GOOD, {"r": None}, "no 'r'"),
    "alpha that is infinite": (GOOD, {"lora_alpha": math.inf}, "expected a positive number"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_refusals(tmp_path: Path, case: str) -> None:
    tensors, settings, message = BROKEN[case]
    base = make_checkpoint(tmp_path / "base", layers=1)
    adapter = make_adapter(tmp_path / "a", tensors, **settings)
    with pytest.raises((lowbit.FormatError, lowbit.UnsupportedError), match=message) as caught:
        lora.merge(Checkpoint(base), adapter, 1.0, tied=True)
    assert str(adapter) in str(caught.value) or "adapter_model" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_missing_files(tmp_path: Path, name: str) -> None:
    base = make_checkpoint(tmp_path / "base", layers=1)
    adapter = make_adapter(tmp_path / "a", GOOD)
    (adapter / name).unlink()
    with pytest.raises(lowbit.FileError, match=f"no {name}"):
        lora.merge(Checkpoint(base), adapter, 1.0)
    (adapter / "adapter_model.bin").write_bytes(b"not read")
    if name != "adapter_config.json":
        with pytest.raises(lowbit.UnsupportedError, match=r"adapter_model\.bin is a pickle.*save_pretrained"):
            lora.merge(Checkpoint(base), adapter, 1.0)
    with pytest.raises(lowbit.FileError, match="no such folder"):
        lora.merge(Checkpoint(base), tmp_path / "none", 1.0)


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ([1.0, 2.0], "expected one number, or one for each of 1 adapters, got 2"),
        (math.nan, "lora_scale: expected a finite number, got nan"),
        ("1", "expected a finite"),
    ],
)
def test_scales(tmp_path: Path, scales: Any, message: str) -> None:
    base = make_checkpoint(tmp_path / "base", layers=1)
    with pytest.raises(lowbit.InputError, match=message):
        lora.merge(Checkpoint(base), make_adapter(tmp_path / "a", GOOD), scales)


def test_an_adapter_in_place_of_the_model(tmp_path: Path) -> None:
    with pytest.raises(lowbit.UnsupportedError, match="--lora and this folder"):
        lowbit.convert(make_adapter(tmp_path / "a", GOOD), tmp_path / "out.gguf", verify=False, provenance=False)


def test_a_scale_without_an_adapter(tmp_path: Path) -> None:
    base = Checkpoint(make_checkpoint(tmp_path / "base", layers=1))
    with pytest.raises(lowbit.InputError, match=r"lora_scale has no effect without lora \(--lora\)"):
        lora.merge(base, (), 2.0)
    assert lora.merge(base, (), 1.0).folders == []
