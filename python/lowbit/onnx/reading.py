"""Reading ONNX models: the file is memory-mapped, tensors are views of the map."""

from __future__ import annotations

from pathlib import Path

from lowbit import _core
from lowbit.base.errors import FormatError, UnsupportedError
from lowbit.base.files import FileReader
from lowbit.base.foreign import named, of_file
from lowbit.base.operation import reading
from lowbit.base.paths import AnyPath, checked
from lowbit.onnx.external import Files
from lowbit.onnx.graph import Model, read_model

#: Versions of the file format that are read. https://github.com/onnx/onnx/blob/main/docs/Versioning.md
IR_VERSIONS = range(3, 15)
#: The tag of the IR version. Files may begin with another field, but no other known format begins with this one.
_FIRST = b"\x08"


def open_model(path: AnyPath) -> Model:
    """Opens an ONNX model and the files beside it that hold bytes of its tensors.

    The elements of tensors are not read, so the time and the memory depend on the graph only. Raises FileError if a
    file cannot be read or is missing, FormatError if it is no valid model or a file beside it lies elsewhere,
    UnsupportedError for IR versions other than 3 to 14 and unknown element types.
    """
    where = checked(path)
    with named(where, expected=_FIRST), of_file(where):
        file = FileReader(Path(where))
        encoded = file.map(0, file.size)
        try:
            _core.check_onnx(encoded)
        except FormatError as error:
            if bytes(encoded[:1]) != _FIRST:
                error.about("this is no ONNX model: ")
            raise
        files = Files(where)
        model = read_model(encoded, files, where, files.opened)
        if model.ir_version not in IR_VERSIONS:
            found = f"IR version {model.ir_version}"
            raise UnsupportedError(f"{found}:", expected=f"{IR_VERSIONS[0]} to {IR_VERSIONS[-1]}")
        return model


def opened(source: AnyPath | Model) -> Model:
    """The model of a path, or the given one, as what the operation reads (`lowbit.base.operation`)."""
    model = source if isinstance(source, Model) else open_model(source)
    if model.path is not None:
        reading(model.path)
    return model
