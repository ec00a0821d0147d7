"""Data to calibrate with: inputs of a model, from files or from the caller, checked and cut into runs."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from lowbit.base.errors import Error, FormatError, InputError
from lowbit.base.files import open_file
from lowbit.base.paths import AnyPath, checked, is_dir
from lowbit.base.quoting import listed, quoted, reason, shown
from lowbit.base.suggest import did_you_mean
from lowbit.onnx.dtypes import dtype_name
from lowbit.onnx.graph import Model, Value
from lowbit.onnx.running import Array, Feed

#: An .npz file, a folder or a pattern of those, or one mapping of inputs for each run.
CalibrationData = AnyPath | Iterable[Mapping[str, Any]]
#: How .npz and .npy files begin.
_ZIP, _ARRAY = b"PK", b"\x93NUMPY"


def feeds(data: CalibrationData, model: Model, batch_size: int = 1, about: str = "calibration") -> Iterator[Feed]:
    """The inputs of each run. Raises InputError or FormatError for data that does not fit the model.

    about: what errors call the data.
    """
    if isinstance(data, (str, bytes, os.PathLike)):
        found = _from_files(checked(data), model, batch_size, about)
    elif isinstance(data, Iterable) and not isinstance(data, Mapping):
        found = (_checked(feed, model.inputs, f"{about}, run {at}") for at, feed in enumerate(data))
    else:
        expected = "a path or an iterable of mappings from input to array"
        raise InputError(f"{about}:", expected=expected, found=type(data).__name__)
    any_run = False
    for feed in found:
        any_run = True
        yield feed
    if not any_run:
        raise InputError(f"{about}: there is no data", expected="at least one run")


def repeatable(data: CalibrationData) -> CalibrationData:
    """The data as something that can be read more than once: an iterator is read now."""
    return [*data] if isinstance(data, Iterator) else data


def files(path: str, about: str) -> list[str]:
    """The .npz files of a path, a folder or a pattern, in the order of their names."""
    if is_dir(path):
        found = sorted(glob.glob(os.path.join(glob.escape(path), "*.npz")))
    else:
        found = [path] if os.path.exists(path) or not glob.has_magic(path) else sorted(glob.glob(path))
    if not found:
        raise InputError(f"{about}: no .npz file", path=path)
    return found


def _from_files(path: str, model: Model, batch_size: int, about: str) -> Iterator[Feed]:
    for file in files(path, about):
        arrays = load_arrays(file)
        try:
            yield from _runs(_named(arrays, model.inputs, about), model.inputs, batch_size, about)
        except Error as error:
            error.about(path=file)
            raise


def load_arrays(path: str) -> dict[str, Array]:
    """The arrays of an .npz file."""
    with os.fdopen(open_file(path), "rb") as file:
        magic = file.read(len(_ARRAY))
        if not magic.startswith(_ZIP):
            found = "one array" if magic == _ARRAY else "another file"
            raise FormatError(path=path, expected="an .npz file of arrays", found=found)
        file.seek(0)
        try:
            archive = np.load(file, allow_pickle=False)
            return {name: archive[name] for name in archive.files}
        except Exception as error:  # NumPy and zipfile raise a dozen kinds
            raise FormatError(f"no .npz file of arrays: {reason(error)}", path=path) from None


def _named(feed: Any, inputs: Iterable[Value], about: str) -> dict[str, Array]:
    """The arrays by name. Raises InputError for names that the model does not have, and for inputs that lack."""
    if not isinstance(feed, Mapping):
        raise InputError(f"{about}:", expected="a mapping from input to array", found=type(feed).__name__)
    known = [value.name for value in inputs]
    for name in feed:
        if name not in known:
            near = did_you_mean(str(name), known)
            raise InputError(f"{about}: the model has no input {quoted(name)}{near}", expected=listed(known))
    if lacking := [name for name in known if name not in feed]:
        raise InputError(f"{about}: input {quoted(lacking[0])} is missing", expected=listed(known))
    return {name: np.asarray(feed[name]) for name in known}


def _checked(feed: Any, inputs: tuple[Value, ...], about: str) -> Feed:
    """A run as the caller gave it."""
    arrays = _named(feed, inputs, about)
    for value in inputs:
        _check(arrays[value.name], value, about, value.shape)
    return arrays


def _runs(arrays: Mapping[str, Array], inputs: tuple[Value, ...], batch_size: int, about: str) -> Iterator[Feed]:
    """Cuts the arrays of a file along their first axis.

    The model's first dimension decides. If it is open, the axis counts samples, of which each run gets batch_size. If
    it is a number, each run gets as many; an array with just that many goes to every run.
    """
    pieces: dict[str, int] = {}
    for value in inputs:
        array = arrays[value.name]
        first = value.shape[0] if value.shape else None
        is_open = bool(value.shape) and not isinstance(first, int)
        _check(array, value, about, value.shape and (None, *value.shape[1:]))
        if array.ndim == 0 or first == array.shape[0]:
            continue
        size = batch_size if is_open or value.shape is None else int(first or 0)
        if not array.shape[0] or (not is_open and size and array.shape[0] % size):
            expected = "samples" if is_open else f"a multiple of {size} rows"
            raise InputError(f"{about}: input {quoted(value.name)}:", expected=expected, found=array.shape[0])
        pieces[value.name] = size
    counts = {name: -(-arrays[name].shape[0] // size) for name, size in pieces.items()}
    if len({*counts.values()}) > 1:
        found = ", ".join(f"{shown(name)} {count}" for name, count in counts.items())
        raise InputError(f"{about}: the inputs have different numbers of runs:", expected="one number", found=found)
    for run in range(next(iter(counts.values()), 1)):
        yield {
            name: array[run * pieces[name] : (run + 1) * pieces[name]] if name in pieces else array
            for name, array in arrays.items()
        }


def _check(array: Array, value: Value, about: str, shape: tuple[int | str | None, ...] | None) -> None:
    """Raises InputError unless an array has the type and shape of an input; None and names in a shape are open."""
    what = f"{about}: input {quoted(value.name)}:"
    if (
        value.dtype is not None
        and array.dtype != value.dtype
        and not (value.dtype == object and array.dtype.kind in "US")
    ):
        raise InputError(what, expected=dtype_name(value.dtype), found=dtype_name(array.dtype))
    if shape is not None and (
        len(shape) != array.ndim
        or any(isinstance(dim, int) and dim != size for dim, size in zip(shape, array.shape, strict=True))
    ):
        dims = ", ".join("?" if dim is None else str(dim) for dim in (value.shape or ()))
        raise InputError(what, expected=f"shape [{dims}]", found=f"[{', '.join(map(str, array.shape))}]")
    if 0 in array.shape:
        raise InputError(what, expected="values", found=f"an empty array of shape {list(array.shape)}")
