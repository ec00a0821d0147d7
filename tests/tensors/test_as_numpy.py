"""Packed tensors as arrays: what NumPy does with np.asarray(q) it does with q, or an error says how to do it."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import lowbit

U = 2.0**-24


def packed(*shape: int, format: str = "Q4_0", seed: int = 1) -> lowbit.QTensor:
    return lowbit.quantize(np.random.default_rng(seed).standard_normal(shape), format)


@pytest.fixture
def q() -> lowbit.QTensor:
    return packed(4, 6, 64)


def assert_same(found: Any, expected: Any) -> None:
    """The same values, shape and dtype: an array, or a scalar of NumPy's."""
    assert isinstance(found, np.ndarray) == isinstance(expected, np.ndarray)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(found, expected)


# ---- np.asarray


@pytest.mark.parametrize("dtype", [None, "f4", "f8", "f2", "i4", ">f4", complex, object, ml_dtypes.bfloat16])
def test_asarray_decodes(q: lowbit.QTensor, dtype: Any) -> None:
    floats = q.dequantize()
    for each, expected in ((q, floats), (q.T, floats.T), (q[1, 2], floats[1, 2])):
        for convert in (np.asarray, np.array):
            found = convert(each, dtype)
            assert_same(found, convert(expected, dtype))
            assert found.flags.writeable
            assert not np.shares_memory(found, q.data)
    assert np.asarray(packed(3, 32, format="F32")).flags.writeable


def test_a_view_cannot_be(q: lowbit.QTensor) -> None:
    for each in (q, q.T):
        with pytest.raises(ValueError, match="copy=False"):  # as NumPy 2 asks for; NumPy 1 never asks
            each.__array__(copy=False)
        if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
            with pytest.raises(ValueError, match="copy"):
                np.asarray(each, copy=False)
        assert_same(each.__array__(np.dtype("f8"), copy=True), np.asarray(each).astype("f8"))


def test_attributes(q: lowbit.QTensor) -> None:
    for each in (q, q.T, q[0], q[0, 0]):
        array = np.asarray(each)
        assert (each.shape, each.ndim, each.size, each.dtype) == (array.shape, array.ndim, array.size, array.dtype)
        assert len(each) == len(array)
        assert np.shape(each) == array.shape
        assert each.T.shape == array.T.shape
        assert_same(np.asarray(each.T), array.T)
        for found, expected in zip(each, array, strict=True):
            assert_same(np.asarray(found)[()], expected)
    assert q.nbytes == q.data.nbytes
    assert q.T.T is q
    assert repr(packed(2, 32).T) == "QTensor((2, 32), Q4_0, 36 B, 4.5 bits per weight).T"


def test_functions_of_numpy_decode(q: lowbit.QTensor) -> None:
    w = np.asarray(q)
    for function in (
        np.mean,
        np.sum,
        np.std,
        np.max,
        np.ravel,
        np.sort,
        np.linalg.norm,
        np.copy,
        np.transpose,
        np.atleast_2d,
        lambda a: np.sum(a, axis=0),
        lambda a: np.max(a, axis=-1, keepdims=True),
        lambda a: np.concatenate([a, a]),
        lambda a: np.reshape(a, (2, -1)),
        lambda a: np.einsum("ijk->k", a),
        lambda a: np.where(w > 0, a, 0),
        lambda a: np.dot(np.ones(6, np.float32), a),
        lambda a: np.array([a[0], a[1]]),
    ):
        np.testing.assert_array_equal(function(q), function(w))
    np.testing.assert_array_equal(q, w)
    assert np.allclose(q, w)
    assert np.array_equal(q, w)


@pytest.mark.parametrize(
    "action",
    [
        *(lambda q, f=f: f(q, 1) for f in (operator.add, operator.mul, operator.pow, operator.lt, operator.floordiv)),
        *(lambda q, f=f: f(np.ones(64, np.float32), q) for f in (operator.add, operator.sub, operator.ge)),
        *(lambda q, f=f: f(q) for f in (operator.neg, abs, np.abs, np.sqrt, np.isnan)),
        lambda q: 2.0 * q,
        lambda q: np.float32(2) * q,
        lambda q: operator.iadd(q, 1),
        lambda q: operator.iadd(np.ones((4, 6, 64)), q),
        lambda q: q.T + 1,
        lambda q: np.matmul(np.ones(6), q, dtype=np.float64),
        lambda q: np.add.outer(q, q),
    ],
)
def test_arithmetic_says_what_to_do(q: lowbit.QTensor, action: Callable[[Any], Any]) -> None:
    with pytest.raises(
        TypeError, match=r"^np\..*: expected arrays, got packed weights: decode them first with np.asar"
    ):
        action(q)


def test_what_python_asks_of_containers(q: lowbit.QTensor) -> None:
    for each in (q, q.T):
        assert weakref.ref(each)() is each
        with pytest.raises(ValueError, match="ambiguous"):
            bool(each)
        with pytest.raises(TypeError):
            0.5 in each  # noqa: B015
        with pytest.raises(TypeError):
            each[0] = 0  # type: ignore[index]
    assert q.T == q.T
    assert q.T != q.copy()[::-1].T
    assert (q == q.T) is False
    assert (np.asarray(q) == q) is False


# ---- indexing


@pytest.mark.parametrize(
    "index",
    [
        *((0, 0, 0), (3, 5, 63), (-1, -1, -1), (..., 0), (..., -1), (0, ..., 5), (slice(None), 2, 40)),
        *(
            (..., slice(3)),
            (..., slice(31, 33)),
            (..., slice(None, None, -1)),
            (..., slice(60, 4, -7)),
            (..., slice(0)),
        ),
        *((..., slice(32, 64)), (slice(1, 3), slice(None, None, 2), slice(8)), (..., slice(9, 9))),
        *((None,), (None, 0), (..., None), (0, None, 0), (slice(None), None, 1, None, slice(2), None)),
        *(
            ([0, 3],),
            ([0, 3], [1, 1]),
            ([0, 3], [1, 1], [0, 63]),
            ([0, 3], slice(None), [5, 7]),
            ([-1], 2, [[-64], [3]]),
        ),
        *(
            (..., [0, 63, 1]),
            (..., []),
            ([], 0),
            (slice(None), [1, 2], 5),
            ([1, 2], slice(None), 5),
            ([[0], [1]], [2, 3]),
        ),
        *(
            ([[0], [1]], [2, 3]),
            (..., list(range(64))),
            (0, 0, list(range(63, -1, -1))),
            (0, [2, 3], slice(None), None),
        ),
        *((slice(None), 0, ..., [5, 7]), (slice(None), [2, 3], ..., [5, 7]), (..., [0, 3], [1, 1], slice(8))),
        *((..., np.arange(64) % 3 == 0), (np.arange(4) > 1,), (np.arange(4) > 1, ..., 3), (..., [True, False] * 32)),
        *((np.arange(24).reshape(4, 6) % 5 == 0,), (np.arange(24).reshape(4, 6) % 5 == 0, 7)),
        *((np.arange(6 * 64).reshape(6, 64) % 7 == 0,), (2, np.arange(6 * 64).reshape(6, 64) % 7 == 0)),
        *((True,), (False, 0), (..., True), (0, True, 0), (np.bool_(True),)),
        *((np.int8(2), np.uint64(3)), (np.array(1), np.array([1], np.uint8), np.array(5)), ()),
        *((4,), (0, 6), (0, 0, 64), (..., -65), (..., [0, 64]), (0, 0, 0, 0), (..., 0, ...), (1.0,), ("a",), ([1.0],)),
        *((np.ones((4, 5), bool),), (..., np.ones(63, bool)), (np.ones((4, 6, 64, 1), bool),), ({},), (..., [0, -65])),
        *(([0, 1], [0, 1, 2]), ([0, 1], 0, [0, 1, 2])),
    ],
    ids=repr,
)
def test_each_form_of_index(q: lowbit.QTensor, index: tuple[Any, ...]) -> None:
    w = np.asarray(q)
    assert_index(q, w, index)
    if len(index) == 1:
        assert_index(q, w, index[0])
    for part in (q[0], q[0, 0]):
        assert_index(part, np.asarray(part), index)


def assert_index(q: lowbit.QTensor, w: np.ndarray, index: Any) -> None:
    try:
        expected = w[index]
    except (IndexError, DeprecationWarning):  # NumPy 1 only warns where the result is empty
        with pytest.raises((IndexError, DeprecationWarning)):
            q[index]
        return
    found = q[index]
    if isinstance(found, lowbit.QTensor):
        assert found.format == q.format
        assert np.shares_memory(found.data, q.data) == np.shares_memory(expected, w)
        found = np.asarray(found)
    assert_same(found, expected[()])


def random_index(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """Any mixture of integers, slices, arrays of one length, masks, None and one ellipsis; some lie outside."""
    number = rng.integers(len(shape) + 1)
    front = rng.integers(number + 1)
    length = rng.integers(4)
    parts: list[Any] = []
    for size in (*shape[:front], *shape[len(shape) - number + front :]):
        low, high = -size - (rng.random() < 0.03), max(size, 1)
        start, stop, step = (None if rng.random() < 0.3 else int(n) for n in rng.integers(-size - 2, size + 3, 3))
        kinds = (
            lambda low=low, high=high: int(rng.integers(low, high)),
            lambda start=start, stop=stop, step=step: slice(start, stop, step or None),
            lambda: slice(None),
            lambda low=low, high=high: rng.integers(low, high, length).tolist(),
            lambda size=size: rng.random(size) < 2 / max(size, 1),
        )
        parts.append(rng.choice(kinds)())
    if number < len(shape) or rng.random() < 0.3:
        parts.insert(front, ...)
    for _ in range(rng.integers(3)):
        parts.insert(rng.integers(len(parts) + 1), None)
    return tuple(parts)


def test_any_index() -> None:
    rng = np.random.default_rng(1)
    for shape in ((64,), (3, 96), (2, 4, 64), (3, 1, 2, 32), (0, 32), (2, 0)):
        q = packed(*shape)
        for _ in range(400):
            index = random_index(rng, shape)
            try:
                assert_index(q, np.asarray(q), index)
            except Exception as error:
                raise AssertionError(f"{shape} {index}") from error


def test_what_indices_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not more than the blocks that they reach into, or all of the tensor."""
    from lowbit import _core

    decoded = []
    decode = _core.dequantize_rows

    def counted(data: np.ndarray, *rest: Any) -> None:
        decoded.append(data.size // 18 * 32)
        decode(data, *rest)

    q = packed(50, 640)
    monkeypatch.setattr(_core, "dequantize_rows", counted)
    rows, columns = [3, 7, 11], [0, 300, 639]
    for index, number in (
        (3, 0),
        ((slice(5), slice(None)), 0),
        ((3, 5), 32),
        ((slice(4), slice(30, 40)), 4 * 64),
        ((rows, slice(64, 96)), 3 * 32),
        ((slice(None), 5), 50 * 32),
        ((rows, columns), 3 * 32),
        ((rows, 5), 3 * 32),
        (np.ones(q.shape, bool), 50 * 640),
        ((slice(None), list(range(640))), 50 * 640),
    ):
        decoded.clear()
        q[index]
        assert sum(decoded) == number, index


# ---- products


@pytest.mark.parametrize("format", ["Q4_0", "F16", "F32"])
@pytest.mark.parametrize("shape", [(64,), (5, 64), (3, 5, 64), (2, 1, 5, 64)])
@pytest.mark.parametrize(
    "other",
    [
        *((), (64,), (5,), (64, 7), (7, 64), (7, 5), (5, 7), (64, 64), (1, 64), (64, 1), (63,), (0, 64), (64, 0)),
        *(
            (3, 64, 7),
            (3, 7, 5),
            (3, 7, 64),
            (1, 64, 2),
            (4, 64, 2),
            (2, 3, 64, 2),
            (2, 3, 2, 5),
            (0, 64, 2),
            (0, 0, 64),
        ),
    ],
)
def test_products(format: str, shape: tuple[int, ...], other: tuple[int, ...]) -> None:
    """NumPy's shapes, within float32's error of the exact product; what NumPy does not multiply is an InputError."""
    q = packed(*shape, format=format)
    y = np.random.default_rng(2).standard_normal(other).astype(np.float32)
    w = np.asarray(q)
    for left, right, a, b in ((q, y, w, y), (y, q, y, w), (q.T, y, w.T, y), (y, q.T, y, w.T)):
        try:
            exact = np.matmul(a.astype(np.float64), b.astype(np.float64))
        except ValueError:
            with pytest.raises(lowbit.InputError, match="expected shapes"):
                left @ right
            with pytest.raises(lowbit.InputError, match="expected shapes"):
                np.matmul(left, right)
            continue
        found = left @ right
        assert isinstance(found, np.ndarray) == isinstance(exact, np.ndarray)
        assert (found.dtype, found.shape) == (np.float32, exact.shape)
        bound = (a.shape[-1] + 1) * U * np.matmul(np.abs(a), np.abs(b)) + 1e-35
        assert (np.abs(found - exact) <= bound).all()
        np.testing.assert_array_equal(np.matmul(left, right), found)


def test_products_of_other_operands(q: lowbit.QTensor) -> None:
    """Lists, float64, integers and packed tensors are float32 in products."""
    q = q[0]
    w = np.asarray(q)
    y = np.random.default_rng(3).standard_normal((64, 3))
    for other in (
        y,
        y.tolist(),
        (y * 10).astype(int),
        y.astype(np.float16),
        y.astype(">f8"),
        y.astype(ml_dtypes.bfloat16),
    ):
        floats = np.asarray(other).astype(np.float32)
        np.testing.assert_array_equal(q @ other, q @ floats)
        np.testing.assert_array_equal(floats.T @ q.T, np.transpose(q @ other))
    assert ([1] * 6 @ q).shape == (64,)
    np.testing.assert_allclose(q @ q.T, w @ w.T, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(q.T @ q, w.T @ w, rtol=1e-4, atol=1e-4)
    assert np.allclose(q @ y, w @ y, atol=1e-5)
    for bad in (y.astype(complex), np.array(["1"] * 64), None, [[1], [2, 3]]):
        with pytest.raises(lowbit.InputError, match="operand of @: expected an array"):
            q @ bad


def test_product_with_a_transposed_matrix_is_matmul(q: lowbit.QTensor, monkeypatch: pytest.MonkeyPatch) -> None:
    q = q[0]
    x = np.random.default_rng(4).standard_normal((3, 64)).astype(np.float32)
    expected = lowbit.matmul(x, q, compute="f32")
    monkeypatch.setattr(lowbit.QTensor, "dequantize", None)  # nothing is decoded as a whole
    np.testing.assert_array_equal(x @ q.T, expected)
    np.testing.assert_array_equal(q @ x.T, expected.T)
    np.testing.assert_array_equal(x[0] @ q.T, expected[0])


# ---- what is taken for an array


def test_what_is_an_array_of_real_numbers() -> None:
    rng = np.random.default_rng(5)
    w = rng.standard_normal((3, 64))
    floats = w.astype(np.float32)
    expected = lowbit.quantize(floats, "Q8_0")

    class Arraylike:
        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            return w

    for same in (w, w.tolist(), tuple(map(tuple, w)), w.astype(">f8"), floats.astype(">f4"), Arraylike(), [*w]):
        assert lowbit.quantize(same, "Q8_0") == expected
        assert lowbit.compare(same, expected) == lowbit.compare(floats, expected)
        assert lowbit.compare(floats, same).max == 0
        np.testing.assert_array_equal(lowbit.matmul(same, expected), lowbit.matmul(floats, expected))
        np.testing.assert_array_equal(lowbit.matmul(floats, same), lowbit.matmul(floats, floats))
    for dtype in ("i1", "u2", "i8", "?", ml_dtypes.float8_e4m3fn, np.longdouble):
        numbers = (w * 20).astype(dtype)
        assert lowbit.quantize(numbers, "Q8_0") == lowbit.quantize(numbers.astype(np.float32), "Q8_0")
    assert lowbit.quantize([0.1] * 32, "F32").dequantize().tolist() == [float(np.float32(0.1))] * 32
    assert lowbit.quantize(w, "Q4_0", imatrix=[1] * 64) == lowbit.quantize(w, "Q4_0", imatrix=np.ones(64))
    assert lowbit.quantize(w, "Q4_0", imatrix=np.ones(64, ">f8")) == lowbit.quantize(w, "Q4_0", imatrix=np.ones(64))
    assert lowbit.quantize(expected, "Q4_0") == lowbit.quantize(np.asarray(expected), "Q4_0")
    assert lowbit.quantize(np.random.default_rng(6).standard_normal((4, 256)), lowbit.Format("Q4_K")).format == "Q4_K"


@pytest.mark.parametrize(
    "w",
    [
        np.ones(32, complex),
        np.ones(32, object),
        np.array(["1.5"] * 32),
        np.ones(32, "M8[s]"),
        np.ones(32, [("a", "f4")]),
        [None] * 32,
        [1j] * 32,
        ["1"] * 32,
        [10**400] * 32,
        [[1.0] * 32, [1.0]],
        "Q8_0",
        object(),
        {1: 2},
    ],
    ids=lambda w: str(getattr(w, "dtype", type(w).__name__)),
)
def test_what_is_none(w: Any) -> None:
    q = lowbit.quantize(np.ones((1, 32)), "Q8_0")
    for call in (
        lambda: lowbit.quantize(w, "Q8_0"),
        lambda: lowbit.quantize(np.ones(32), "Q8_0", imatrix=w),
        lambda: lowbit.compare(w, q),
        lambda: lowbit.compare(q, w),
        lambda: lowbit.matmul(w, q),
        lambda: lowbit.matmul(np.ones((1, 32)), w),
        lambda: lowbit.imatrix.load_imatrix({"a": w}),
    ):
        with pytest.raises(lowbit.InputError, match="expected an array") as caught:
            call()
        assert str(caught.value).isprintable()


def test_the_reason_of_another_package_is_told() -> None:
    class Elsewhere:
        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            raise RuntimeError("on the accelerator:\n use cpu()")

    with pytest.raises(lowbit.InputError, match=r"expected an array, got Elsewhere: on the accelerator: use cpu"):
        lowbit.quantize(Elsewhere(), "Q8_0")


def test_too_large_for_float32() -> None:
    w = np.ones((3, 64))
    w[1, 40] = -1e300
    with pytest.raises(lowbit.InputError, match="row 1, column 40 is -infinity, expected a finite"):
        lowbit.quantize(w, "Q8_0")
    with pytest.raises(lowbit.InputError, match="importance of column 2 is inf"):
        lowbit.quantize(np.ones(32), "Q8_0", imatrix=[1, 1, 1e39] + [1] * 29)
