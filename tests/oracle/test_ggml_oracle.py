"""Every format against ggml itself, on inputs of many kinds, shapes and importances, on every SIMD target.

Needs ggml's library, named by LOWBIT_GGML; get_ggml.sh builds it. Without the variable this file is not collected.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from ggml import Ggml

import lowbit

pytestmark = pytest.mark.oracle

FORMATS = {f.name: f for f in lowbit.formats() if f.name != "F32"}  # ggml copies floats
SHAPES = ((1, 256), (3, 512), (17, 256), (2, 2048))

Random = np.random.Generator
Shape = tuple[int, int]


def normal(random: Random, shape: Shape, scale: float = 1.0) -> np.ndarray:
    return random.standard_normal(shape) * scale


def sparse(random: Random, shape: Shape, share: float) -> np.ndarray:
    return normal(random, shape) * (random.random(shape) < share)


def of_many_scales(random: Random, shape: Shape, run: int, low: int, high: int) -> np.ndarray:
    """Every `run` neighbours have a scale of their own, from 10^low to 10^high."""
    powers = 10.0 ** random.integers(low, high, (shape[0], shape[1] // run))
    return normal(random, shape) * powers.repeat(run, 1)


def with_outliers(random: Random, shape: Shape, value: float) -> np.ndarray:
    x = normal(random, shape)
    x[:, random.integers(0, shape[1], 3)] = value
    return x


def constant_runs(random: Random, shape: Shape, run: int) -> np.ndarray:
    return random.standard_normal((shape[0], shape[1] // run)).repeat(run, 1)


KINDS: dict[str, Callable[[Random, Shape], np.ndarray]] = {
    "normal": normal,
    "as weights": lambda r, s: normal(r, s, 0.02),
    "Student t": lambda r, s: r.standard_t(2, s),
    "Laplace": lambda r, s: r.laplace(size=s),
    "uniform": lambda r, s: r.uniform(-1, 1, s),
    "sparse": lambda r, s: sparse(r, s, 0.1),
    "very sparse": lambda r, s: sparse(r, s, 0.005),
    "zeros": lambda r, s: np.zeros(s),
    "negative zeros": lambda r, s: np.full(s, -0.0),
    "constant": lambda r, s: np.full(s, 0.37),
    "negative constant": lambda r, s: np.full(s, -5.1),
    "constant runs of 16": lambda r, s: constant_runs(r, s, 16),
    "constant runs of 256": lambda r, s: constant_runs(r, s, 256),
    "nearly constant": lambda r, s: 5 + normal(r, s, 1e-6),
    "denormal": lambda r, s: normal(r, s, 1e-40),
    "nearly denormal": lambda r, s: normal(r, s, 1e-37),
    "1e-20": lambda r, s: normal(r, s, 1e-20),
    "around the threshold of zero": lambda r, s: normal(r, s, 2e-15),
    "1e-8": lambda r, s: normal(r, s, 1e-8),
    "1e-6": lambda r, s: normal(r, s, 1e-6),
    "1e6": lambda r, s: normal(r, s, 1e6),
    "1e10": lambda r, s: normal(r, s, 1e10),
    "1e20": lambda r, s: normal(r, s, 1e20),
    "1e30": lambda r, s: normal(r, s, 1e30),
    "largest floats": lambda r, s: np.clip(normal(r, s, 3e38), -3.4e38, 3.4e38),
    "positive": lambda r, s: np.abs(normal(r, s)),
    "negative": lambda r, s: -np.abs(normal(r, s)),
    "ramp": lambda r, s: np.tile(np.arange(s[1]) - s[1] / 2, (s[0], 1)),
    "ramp of 16": lambda r, s: np.tile(np.arange(s[1]) % 16 - 8, (s[0], 1)),
    "ties": lambda r, s: np.round(normal(r, s, 4)) / 2,
    "signs": lambda r, s: np.sign(normal(r, s)),
    "small integers": lambda r, s: r.integers(-3, 4, s),
    "scales by 16": lambda r, s: of_many_scales(r, s, 16, -12, 12),
    "scales by 32": lambda r, s: of_many_scales(r, s, 32, -30, 30),
    "scales by weight": lambda r, s: of_many_scales(r, s, 1, -40, 30),
    "outliers": lambda r, s: with_outliers(r, s, 100),
    "huge outliers": lambda r, s: with_outliers(r, s, 3e38),
}


def importances(random: Random, columns: int) -> Iterator[np.ndarray]:
    squares = random.standard_normal(columns) ** 2
    yield random.random(columns) + 0.01
    yield squares
    yield squares * (random.random(columns) < 0.5)
    yield np.zeros(columns)
    yield 10.0 ** random.integers(-20, 20, columns)
    yield np.where(np.arange(columns) < columns // 2, 0, squares)
    yield np.full(columns, 1e38)


@pytest.fixture(scope="module")
def ggml() -> Iterator[Ggml]:
    library = Ggml(os.environ["LOWBIT_GGML"])
    yield library
    library.close()


def check(name: str, x: np.ndarray, importance: np.ndarray | None, expected: np.ndarray | None) -> np.ndarray:
    """Bytes on all targets against ggml's; where ggml aborts, the targets against each other. Returns them."""
    for target in lowbit.simd.targets():
        with lowbit.simd.force(target):
            data = lowbit.quantize(x, name, imatrix=importance).data
        if expected is None:
            expected = data
        np.testing.assert_array_equal(data, expected, err_msg=f"{target}, shape {x.shape}")
    assert expected is not None
    return expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FORMATS)
def test_encode_and_decode(ggml: Ggml, name: str, kind: str) -> None:
    f = FORMATS[name]
    inputs: list[tuple[np.ndarray, np.ndarray | None]] = []
    for shape in SHAPES:
        random = np.random.default_rng([zlib.crc32(kind.encode()), *shape])
        x = np.ascontiguousarray(KINDS[kind](random, shape), np.float32)
        if not f.needs_imatrix:
            inputs.append((x, None))
        if f.block_size > 1:
            inputs += [(x, values.astype(np.float32)) for values in importances(random, shape[1])]
    expected = ggml.encode(f.ggml_type, inputs)
    blocks = [check(name, *given, wanted) for given, wanted in zip(inputs, expected, strict=True)]
    if ggml.can_decode(f.ggml_type):
        same_floats(ggml, name, blocks, [x for x, _ in inputs])


def same_floats(ggml: Ggml, name: str, blocks: list[np.ndarray], like: list[np.ndarray]) -> None:
    """Decoded values on all targets against ggml's, bit for bit; any NaN equals any."""
    for data, expected in zip(blocks, ggml.decode(FORMATS[name].ggml_type, blocks, like), strict=True):
        assert expected is not None
        for target in lowbit.simd.targets():
            with lowbit.simd.force(target):
                decoded = lowbit.dequantize(data, name)
            differ = decoded.view(np.uint32) != expected.view(np.uint32)
            assert not (differ & ~(np.isnan(decoded) & np.isnan(expected))).any(), target


@pytest.mark.parametrize("name", sorted(FORMATS.keys() - {"Q8_1", "Q8_K"}))  # activations, which ggml does not decode
def test_any_blocks_decode(ggml: Ggml, name: str) -> None:
    f = FORMATS[name]
    data = np.random.default_rng(3).integers(0, 256, (5, 4096 // f.block_size * f.block_bytes), np.uint8)
    same_floats(ggml, name, [data], [np.zeros((5, 4096), np.float32)])


def test_importances_matter(ggml: Ggml) -> None:
    """The comparison can fail: other importances give other bytes."""
    x = np.random.default_rng(1).standard_normal((4, 1024)).astype(np.float32)
    one, other = ggml.encode(12, [(x, np.linspace(low, 1, 1024, dtype=np.float32)) for low in (0, 1)])
    assert (one != other).any()
