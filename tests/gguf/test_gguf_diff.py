"""lowbit.gguf.diff: how far tensors are apart is checked with the decoders of the `gguf` package."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

import lowbit
from lowbit.cli.execution import execute
from lowbit.gguf import GgufDiff, comparing, diff

WEIGHTS = np.random.default_rng(3).standard_normal((70, 512), dtype=np.float32)
KEYS: dict[str, Any] = {
    "general.architecture": "llama",
    "general.name": "model",
    "a.count": 3,
    "a.scale": np.float32(np.nan),
    "a.list": ["x", "y", "z"] * 100,
    "a.numbers": np.arange(400),
}
TENSORS: dict[str, Any] = {
    "q": lowbit.quantize(WEIGHTS, "Q4_K"),
    "f": WEIGHTS[:3, :33],
    "i": np.arange(24, dtype=np.int32).reshape(2, 3, 4),
    "empty": np.zeros((0, 32), np.float32),
}


def make(path: Path, keys: dict[str, Any], tensors: dict[str, Any]) -> Path:
    lowbit.gguf.write(path, keys, tensors)
    return path


@pytest.fixture
def a(tmp_path: Path) -> Path:
    return make(tmp_path / "a.gguf", KEYS, TENSORS)


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "_CHUNK_WEIGHTS", 4096)
    monkeypatch.setattr(comparing, "_ROW_WEIGHTS", 1024)


def kinds(found: GgufDiff) -> tuple[dict[str, str], dict[str, str]]:
    return {k.key: k.kind for k in found.keys}, {t.name: t.kind for t in found.tensors}


def test_no_difference(a: Path, tmp_path: Path) -> None:
    found = diff(a, make(tmp_path / "b.gguf", KEYS, TENSORS))
    assert found.equal
    assert found == GgufDiff([], [], False, False, len(KEYS), len(TENSORS))


def test_keys(a: Path, tmp_path: Path) -> None:
    keys = KEYS | {
        "general.name": "other",
        "a.count": np.int32(3),
        "a.list": [*KEYS["a.list"][:-1], "w"],
        "b.new": True,
    }
    del keys["a.numbers"]
    b = make(tmp_path / "b.gguf", keys, TENSORS)
    found = diff(a, b)
    assert kinds(found) == (
        {"general.name": "value", "a.count": "type", "a.list": "value", "a.numbers": "only in a", "b.new": "only in b"},
        {},
    )
    assert not found.equal
    assert not found.key_order
    assert (found.keys[0].a, found.keys[0].b) == ("model", "other")
    assert kinds(diff(a, b, ignore=["a.*", "general.name"])) == ({"b.new": "only in b"}, {})
    assert diff(a, b, ignore=["a.*", "general.name", "b.?ew"]).equal
    assert diff(a, b, metadata=False).equal


def test_order(a: Path, tmp_path: Path) -> None:
    keys = {key: KEYS[key] for key in reversed(KEYS)}
    tensors = {name: TENSORS[name] for name in reversed(TENSORS)}
    found = diff(a, make(tmp_path / "b.gguf", keys, tensors))
    assert (found.keys, found.tensors, found.key_order, found.tensor_order, found.equal) == ([], [], True, True, False)
    more = diff(a, make(tmp_path / "c.gguf", {"first": 1} | KEYS, TENSORS))
    assert not more.key_order


def test_blocks(a: Path, tmp_path: Path) -> None:
    changed = lowbit.quantize(WEIGHTS, "Q4_K").data.copy()
    for block in (0, 5, 139):
        changed.reshape(140, -1)[block, 20] ^= 0x11
    tensors = TENSORS | {"q": lowbit.QTensor(changed, "Q4_K"), "i": TENSORS["i"] + (TENSORS["i"] > 20)}
    tensors["f"] = TENSORS["f"].copy()
    tensors["f"][2, 32] += 1
    found = {tensor.name: tensor for tensor in diff(a, make(tmp_path / "b.gguf", KEYS, tensors)).tensors}
    before, after = (dequantize(data, GGMLQuantizationType.Q4_K) for data in (TENSORS["q"].data, changed))
    apart = (before - after).astype(np.float64)
    q = found["q"]
    assert (q.blocks, q.num_blocks, q.kind) == (3, 140, "data")
    assert q.relative == pytest.approx(np.sqrt(np.square(apart).sum() / np.square(before.astype(np.float64)).sum()))
    assert q.max == np.abs(apart).max()
    assert (found["i"].blocks, found["i"].num_blocks, found["i"].relative, found["i"].max) == (3, 24, None, None)
    assert (found["f"].blocks, found["f"].num_blocks, found["f"].max) == (1, 99, 1.0)


@pytest.mark.parametrize("format", ["Q8_0", "Q6_K", "IQ4_XS", "BF16", "F32", "F16"])
def test_other_formats(a: Path, tmp_path: Path, format: str) -> None:
    if format in ("BF16", "F32", "F16"):
        tensor: Any = WEIGHTS.astype(lowbit.gguf.DTYPES[format])
        after = tensor.astype(np.float32)
    else:
        tensor = lowbit.quantize(WEIGHTS, format)
        after = dequantize(tensor.data, GGMLQuantizationType[format])
    b = make(tmp_path / "b.gguf", KEYS, TENSORS | {"q": tensor})
    before = dequantize(TENSORS["q"].data, GGMLQuantizationType.Q4_K)
    apart = np.square((before - after).astype(np.float64)).sum()
    for found, signal in ((diff(a, b), before), (diff(b, a), after)):
        (only,) = found.tensors
        assert (only.kind, only.blocks, only.num_blocks) == ("format", None, None)
        assert only.relative == pytest.approx(np.sqrt(apart / np.square(signal.astype(np.float64)).sum()), rel=1e-6)
        assert only.max == pytest.approx(np.abs(before - after).max(), rel=1e-6)


def test_shapes_and_names(a: Path, tmp_path: Path) -> None:
    tensors = TENSORS | {"f": WEIGHTS[:3, :32], "new": WEIGHTS[0]}
    del tensors["i"]
    found = diff(a, make(tmp_path / "b.gguf", KEYS, tensors))
    assert kinds(found) == ({}, {"f": "shape", "i": "only in a", "new": "only in b"})
    assert all(tensor.relative is None for tensor in found.tensors)
    assert found.num_tensors == 5
    assert diff(a, tmp_path / "b.gguf", tensors=False).equal


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    plain = make(tmp_path / "a.gguf", KEYS, {"x": np.zeros(64, np.float32)})
    other = make(tmp_path / "b.gguf", KEYS, {"x": np.full(64, np.nan, ml_dtypes.bfloat16)})
    (tensor,) = diff(plain, other).tensors
    assert np.isnan([tensor.relative, tensor.max]).all()
    assert diff(other, other).equal


def test_a_split_model(a: Path, tmp_path: Path) -> None:
    lowbit.split_file(a, tmp_path / "parts", split_max_tensors=1)
    found = diff(a, tmp_path / "parts-00002-of-00004.gguf")
    assert kinds(found) == (dict.fromkeys(["split.no", "split.tensors.count", "split.count"], "only in b"), {})
    assert diff(a, tmp_path / "parts-00001-of-00004.gguf", ignore=["split.*"]).equal


def test_the_command(
    a: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    keys = KEYS | {"general.name": "\x1b[31m", "a.list": [*KEYS["a.list"][:-1], "w"]}
    tensors = TENSORS | {"q": lowbit.quantize(WEIGHTS, "Q8_0")}
    del tensors["i"]
    b = make(tmp_path / "b.gguf", keys, tensors)
    assert execute(["diff", str(a), str(a)]) == 0
    assert capsys.readouterr().out == "No difference.\n"
    assert execute(["diff", str(a), str(b)]) == 1
    shown = capsys.readouterr().out
    assert "model (str)" in shown
    assert "\\x1b[31m (str)" in shown
    assert "300 elements, from 299: w (str[])" in shown
    assert re.search(r"70 x 512 \w+ +Q8_0 ", shown)
    assert "2 of 6 keys and 2 of 4 tensors differ." in shown
    assert execute(["diff", str(a), str(b), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [(key["key"], key["kind"]) for key in found["keys"]] == [("general.name", "value"), ("a.list", "value")]
    assert [(t["name"], t["kind"]) for t in found["tensors"]] == [("q", "format"), ("i", "only in a")]
    assert execute(["diff", str(a), str(b), "--no-tensors", "--ignore", "general.name", "--ignore", "a.*"]) == 0
    assert execute(["diff", str(a), str(b), "--no-metadata"]) == 1
    capsys.readouterr()
    for arguments in ([str(a), str(tmp_path / "missing.gguf")], [str(a), __file__], [str(a), str(a), "--nothing"]):
        assert execute(["diff", *arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err
