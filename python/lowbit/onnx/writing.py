"""Writing ONNX models: the model and the files beside it appear together, or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from typing import Any, TypeAlias

from lowbit import _core
from lowbit.base import arguments
from lowbit.base.atomic import AtomicFile
from lowbit.base.errors import FileError, InputError
from lowbit.base.file_sets import replacing_set
from lowbit.base.operation import operation, replacing
from lowbit.base.paths import AnyPath, checked
from lowbit.base.progress import ProgressLike, steps
from lowbit.base.quoting import quoted
from lowbit.onnx.dtypes import Bytes
from lowbit.onnx.external import check_location
from lowbit.onnx.graph import Function, Graph, Model, Node
from lowbit.onnx.tensor import External, Tensor

#: What protobuf can read: messages of less than 2 GiB.
MOST_BYTES = 2**31 - 1
#: Tensors of fewer bytes stay in the model: shapes are read from there.
THRESHOLD = 1024
#: Tensors beside the model start at multiples of this many bytes.
ALIGNMENT = 64
#: Large tensors start where every system can map them. For smaller ones the padding would be too much.
MAP_ALIGNMENT, MAPPED_ALONE = 1 << 16, 1 << 20
_WRITTEN_AT_ONCE = 1 << 24

#: Bytes to write. A tensor gives its own when it is its turn.
Piece: TypeAlias = bytes | Bytes | Tensor


def write(
    path: AnyPath, model: Model, *, external_data: bool | str | None = None, progress: ProgressLike = None
) -> None:
    """Writes a model.

    `external_data` says where the bytes of tensors of 1,024 bytes and more go:

    | external_data | place |
    | --- | --- |
    | None | in the model; beside it if a tensor of the model that was read was there, or from 2 GiB on |
    | True | beside the model, in the file NAME.data |
    | a file's name | beside the model, in this file |
    | False | in the model |

    With None, a model that was opened and not changed is written byte for byte, with copies of the files beside it.
    Tensors that share their bytes share them beside the model. Raises InputError for a model of 2 GiB and more without
    what is beside it, FileError if the system refuses, and for a copy of a file beside the model that would replace
    another model's.
    """
    where = checked(path)
    if not isinstance(model, Model):
        raise arguments.wrong("model", "a lowbit.onnx.Model", model)
    with operation():
        contents = _contents(model, where, external_data)
        folder = os.path.dirname(where)
        _write_files({os.path.join(folder, name): pieces for name, pieces in contents.items()}, progress)


def file_bytes(model: Model, path: str | None = None, *, external_data: bool | str | None = None) -> int:
    """The size of the files that `write` makes of a model, or of those that it was read from. Raises as `write`."""
    return sum(map(_size, _contents(model, path or model.path or "model.onnx", external_data).values()))


def _contents(model: Model, path: str, external_data: bool | str | None) -> dict[str, Sequence[Piece]]:
    """The pieces of each file by its name, the model's first."""
    name = os.path.basename(path)
    if external_data is None:
        if model.encoded is not None:
            copies = {os.path.normpath(at): [file.map(0, file.size)] for at, file in model.files.items()}
            _check_copies(copies, path)
            return {name: [model.encoded], **copies}
        inside = _with_tensors(model, _inside)
        if inside is model and _size(pieces := _encode(model)) <= MOST_BYTES:
            return {name: pieces}
        external_data = True
    if external_data is False:
        return {name: _checked(_encode(_with_tensors(model, _inside)), path, "less than 2 GiB, or external_data=True")}
    beside = f"{name}.data" if external_data is True else arguments.text("external_data", external_data)
    check_location(beside)
    beside = os.path.normpath(beside)
    if beside == name:
        raise InputError("external_data names the model itself", path=path)
    layout = _Layout(beside)
    _with_tensors(model, layout.place_large)
    pieces = _encode(_with_tensors(model, layout.place))
    return {name: _checked(pieces, path, "less than 2 GiB without its initializers"), beside: layout.pieces}


def _check_copies(copies: Iterable[str], path: str) -> None:
    """Refuses to replace files that belong to something else. The file of a model that exists is its own."""
    folder, name = os.path.split(path)
    if name in copies:
        raise InputError(f"a file beside the model is called {quoted(name)}, too: write another name", path=path)
    for copy in copies if not os.path.exists(path) else ():
        beside = os.path.join(folder, copy)
        if os.path.exists(beside):
            text = f"belongs to another model than {quoted(path)}: write to another folder, or give external_data"
            raise FileError(text, path=beside, errno=errno.EEXIST)


def _encode(model: Model) -> list[Piece]:
    return _core.encode_onnx(Model.NAME, model.fields())


def _checked(pieces: list[Piece], path: str, expected: str) -> list[Piece]:
    if (size := _size(pieces)) > MOST_BYTES:
        raise InputError(f"{size} bytes", path=path, expected=expected)
    return pieces


def _inside(tensor: Tensor, is_initializer: bool) -> Tensor:
    """The tensor with its bytes in the model."""
    return replace(tensor, external=None) if tensor.external else tensor


def _size(pieces: Iterable[Piece]) -> int:
    return sum(piece.nbytes if isinstance(piece, Tensor) else len(piece) for piece in pieces)


class _Layout:
    """The file beside a model: its pieces, with zeros between them.

    Large tensors come first, in the model's order: behind a small one they would need up to 64 KiB of zeros.
    """

    def __init__(self, location: str) -> None:
        self.pieces: list[Piece] = []
        self._location = location
        self._size = 0
        self._places: dict[Any, External] = {}

    def place_large(self, tensor: Tensor, is_initializer: bool) -> Tensor:
        """As `place`, for tensors that are not smaller than the distance between large ones."""
        return tensor if tensor.nbytes < MAP_ALIGNMENT else self.place(tensor, is_initializer)

    def place(self, tensor: Tensor, is_initializer: bool) -> Tensor:
        """The tensor with a place in the file, if it is large enough, else in the model."""
        if not is_initializer or isinstance(tensor.source, list) or tensor.nbytes < THRESHOLD:
            return _inside(tensor, is_initializer)
        if tensor.sharing not in self._places:
            if padding := -self._size % (ALIGNMENT if tensor.nbytes < MAPPED_ALONE else MAP_ALIGNMENT):
                self.pieces.append(bytes(padding))
            self._places[tensor.sharing] = External(self._location, self._size + padding, tensor.nbytes)
            self.pieces.append(tensor)
            self._size += padding + tensor.nbytes
        return replace(tensor, external=self._places[tensor.sharing])


def _with_tensors(model: Model, change: Callable[[Tensor, bool], Tensor]) -> Model:
    """The model with other tensors: change(tensor, whether it is an initializer). Parts without a change stay."""
    graph = _graph_with(model.graph, change)
    functions = tuple(_function_with(function, change) for function in model.functions)
    if graph is model.graph and _are_same(functions, model.functions):
        return model
    return replace(model, graph=graph, functions=functions)


def _are_same(new: Iterable[object], old: Iterable[object]) -> bool:
    return all(a is b for a, b in zip(new, old, strict=True))


def _function_with(function: Function, change: Callable[[Tensor, bool], Tensor]) -> Function:
    nodes = tuple(_node_with(node, change) for node in function.nodes)
    return function if _are_same(nodes, function.nodes) else replace(function, nodes=nodes)


def _graph_with(graph: Graph, change: Callable[[Tensor, bool], Tensor]) -> Graph:
    tensors = {name: change(tensor, True) for name, tensor in graph.tensors.items()}
    nodes = tuple(_node_with(node, change) for node in graph.nodes)
    if _are_same((*tensors.values(), *nodes), (*graph.tensors.values(), *graph.nodes)):
        return graph
    return replace(graph, tensors=tensors, nodes=nodes)


def _node_with(node: Node, change: Callable[[Tensor, bool], Tensor]) -> Node:
    changed = {}
    for attribute in node.attributes.values():
        values = attribute.value if isinstance(attribute.value, tuple) else (attribute.value,)
        new = tuple(
            change(v, False) if isinstance(v, Tensor) else _graph_with(v, change) if isinstance(v, Graph) else v
            for v in values
        )
        if not _are_same(new, values):
            value = new if isinstance(attribute.value, tuple) else new[0]
            changed[attribute.name] = replace(attribute, value=value)
    return replace(node, attributes={**node.attributes, **changed}) if changed else node


def _write_files(contents: Mapping[str, Sequence[Piece]], progress: ProgressLike) -> None:
    paths = [*contents]
    replacing(paths)
    total, done = sum(map(_size, contents.values())), 0
    with ExitStack() as opened, steps("write", "B", progress) as advance:
        for path in paths:
            opened.enter_context(_folder(os.path.dirname(path)))
        files = [opened.enter_context(AtomicFile(path)) for path in paths]
        for file, pieces in zip(files, contents.values(), strict=True):
            for piece in pieces:
                for num_bytes in _written(piece, file):
                    done += num_bytes
                    advance(done, total)
        with replacing_set(paths, [file.temporary_path for file in files]) if len(files) > 1 else nullcontext():
            opened.close()  # in reverse order: the model is the last to appear


def _written(piece: Piece, file: AtomicFile) -> Iterator[int]:
    """Writes a piece in parts: their numbers of bytes. Keeps nothing of it, nor of a mapped file in memory."""
    for part in piece.pieces() if isinstance(piece, Tensor) else (piece,):
        raw: Any = memoryview(part)  # type: ignore[arg-type]
        for begin in range(0, len(raw), _WRITTEN_AT_ONCE):
            some = raw[begin : begin + _WRITTEN_AT_ONCE]
            yield file.write(some)
            _core.MappedFile.release(some)


@contextmanager
def _folder(path: str) -> Iterator[None]:
    """The folder of a file; removed after an exception if it did not exist before."""
    if not path or os.path.isdir(path):
        yield
        return
    try:
        os.makedirs(path)
    except OSError as error:
        raise FileError.of(error, path) from None
    try:
        yield
    except BaseException:
        with suppress(OSError):
            os.rmdir(path)
        raise
