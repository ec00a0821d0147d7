"""Finished files hold finite scales only: what decodes to NaN or infinity is found, named, and not written."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoint import make_checkpoint

import lowbit
from lowbit import _core

FORMATS = {f.name: f for f in lowbit.formats() if f.block_size > 1}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("share", [0.0, 1e-3, 0.02])
def test_the_first_broken_block_is_found(simd, name: str, share: float) -> None:
    """Random bytes are blocks, too; NumPy says which of them decode to something that is not finite."""
    random = np.random.default_rng(int(1000 * share))
    f = FORMATS[name]
    K = 4096 + 256  # more than one piece
    blocks = lowbit.quantize(random.standard_normal((23, K), np.float32), name, imatrix=np.ones(K)).data
    blocks = blocks.reshape(-1, f.block_bytes)
    blocks[random.random(len(blocks)) < share] = 0xFF
    data = blocks.reshape(23, -1)
    broken = ~np.isfinite(lowbit.dequantize(data, name)).reshape(23, -1, f.block_size).all(axis=2)
    for threads in (1, 3):
        if not broken.any():
            _core.check_scales(data, name, 0, threads)
            continue
        row, block = np.argwhere(broken)[0]
        message = f"row {row + 1000}, block {block}: {name} has a scale that is not finite"
        with pytest.raises(lowbit.InputError, match=f"^{message}$"):
            _core.check_scales(data, name, 1000, threads)


def test_most_formats_have_scales_that_break() -> None:
    """Bytes of all ones are NaN in float16, so the test above is about something."""
    nan = [
        name
        for name, f in FORMATS.items()
        if np.isnan(lowbit.dequantize(np.full(f.block_bytes, 255, np.uint8), name)).any()
    ]
    assert {"Q8_0", "Q4_K", "Q6_K"} <= set(nan)


@pytest.mark.parametrize("mix", ["Q8_0", "Q4_K_M", "Q2_K", "Q5_1"])
def test_a_file_with_a_broken_scale_is_not_written(mix: str, tmp_path: Path) -> None:
    """float16 has no scale for weights of 1e38. llama-quantize refuses them as well ("validation failed")."""
    lowbit.convert(make_checkpoint(tmp_path / "a"), tmp_path / "f32.gguf", "F32", verify=False, provenance=False)
    with lowbit.gguf.open(tmp_path / "f32.gguf") as file:
        tensors = {name: np.array(file.tensors[name]) for name in file.tensors}
        tensors["blk.1.ffn_up.weight"][300, 17] = 1e38
        lowbit.gguf.write(tmp_path / "huge.gguf", {key: file.typed(key) for key in file.metadata}, tensors)
    (tmp_path / "out.gguf").write_bytes(b"before")
    message = r"^tensor blk\.1\.ffn_up\.weight, row 300, block 0: Q\d_(K|\d) has a scale that is not finite$"
    with pytest.raises(lowbit.InputError, match=message):
        lowbit.quantize_file(tmp_path / "huge.gguf", tmp_path / "out.gguf", mix)
    assert (tmp_path / "out.gguf").read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "f32.gguf", "huge.gguf", "out.gguf"]


def test_rows_are_counted_from_the_tensors_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors are encoded a chunk of rows at a time."""
    monkeypatch.setattr("lowbit.conversion.pipeline.CHUNK_WEIGHTS", 100 * 256)
    test_a_file_with_a_broken_scale_is_not_written("Q8_0", tmp_path)


def test_bad_arguments() -> None:
    data = np.zeros((4, 34), np.uint8)
    for array, message in (
        (data[:, :33], "rows have 33 bytes, expected a multiple of 34 for Q8_0"),
        (data[::2], "expected a C-contiguous array"),
        (data.astype(np.int8), "expected uint8 array"),
        (data[0], "expected two dimensions"),
    ):
        with pytest.raises(lowbit.InputError, match=re.escape(message)):
            _core.check_scales(array, "Q8_0", 0, 1)
    _core.check_scales(data[:0], "Q8_0", 0, 1)
    _core.check_scales(data[:, :0], "Q8_0", 0, 1)
