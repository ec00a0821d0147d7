"""What the classes of an ONNX model have in common: they come from the bytes of messages, and become bytes again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from lowbit import _core
from lowbit.base import arguments
from lowbit.base.errors import InputError
from lowbit.base.quoting import quoted, shown
from lowbit.onnx.dtypes import Bytes

_Message = TypeVar("_Message", bound="Message")
_NOTHING: Mapping[str, Any] = MappingProxyType({})
#: What errors call the types of fields.
_CONTAINERS: Mapping[Any, str] = {tuple: "a list", Mapping: "a mapping"}


class Message(ABC):
    """A frozen dataclass for one protobuf message (src/io/onnx_schema.h).

    A message that was read keeps its bytes, and is written as those. `dataclasses.replace` makes one without them,
    which is encoded anew. `rest` has the fields that the class does not model, as `_core.onnx_fields` returns them, so
    that nothing in a file is lost.

    Mappings are read-only, so copies made by `copy` are the object itself. A pickled message is encoded anew.
    """

    NAME = ""
    encoded: Bytes | None = None

    def __post_init__(self) -> None:
        """Raises InputError for fields that are not the messages that their types say. Lists become tuples."""
        for name, (container, kind) in _kinds(type(self)).items():
            value: Any = getattr(self, name)
            if container is tuple and isinstance(value, list):
                value = tuple(value)
                object.__setattr__(self, name, value)
            what = f"{type(self).__name__}.{name}"
            if not isinstance(value, container):
                raise arguments.wrong(what, _CONTAINERS.get(container, container.__name__), value)
            for each in value.values() if container is Mapping else value if container is tuple else ():
                if not isinstance(each, kind):
                    raise arguments.wrong(what, kind.__name__, each)
            if container is Mapping and kind is not object:
                for key, each in value.items():
                    if key != each.name:
                        text = f"{what}: the key of {quoted(each.name)}:"
                        raise InputError(text, expected="its name", found=shown(key))
        for name, value in vars(self).items():
            if isinstance(value, dict):
                object.__setattr__(self, name, MappingProxyType(dict(value)) if value else _NOTHING)

    @abstractmethod
    def fields(self) -> dict[str, Any]:
        """The fields for `_core.encode_onnx`."""

    def content(self) -> dict[str, Any] | Bytes:
        """The message inside another one: its bytes if it is as it was read, else its fields."""
        return self.fields() if self.encoded is None else self.encoded

    def __copy__(self: _Message) -> _Message:
        return self

    def __deepcopy__(self: _Message, memo: dict[int, Any]) -> _Message:
        return self

    def __getstate__(self) -> dict[str, Any]:
        state = {name: dict(v) if isinstance(v, MappingProxyType) else v for name, v in vars(self).items()}
        state.pop("encoded", None)  # else each level of the tree would bring the bytes of all below it
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.__post_init__()


@cache
def _kinds(message: type[Message]) -> dict[str, tuple[Any, type]]:
    """The fields of a class that are messages, tuples or mappings: the type of the field, and that of its values."""
    found: dict[str, tuple[Any, type]] = {}
    for name, hint in get_type_hints(message).items():
        container = get_origin(hint) or hint
        if container is tuple or container is Mapping:
            kind = get_args(hint)[0 if container is tuple else 1]
            if kind is not Any:
                # Text and numbers are checked when they are encoded.
                found[name] = (container, kind if issubclass(kind, Message) else object)
        elif isinstance(container, type) and issubclass(container, Message):
            found[name] = (container, container)
    return found


def with_bytes(message: _Message, encoded: Bytes) -> _Message:
    """The message, which now knows the bytes that it was read from."""
    object.__setattr__(message, "encoded", encoded)  # the dataclasses are frozen for everyone else
    return message


def contents(messages: Sequence[Message]) -> list[dict[str, Any] | Bytes]:
    """`Message.content` of each."""
    return [message.content() for message in messages]


def read_pairs(entries: Sequence[Bytes]) -> dict[str, str]:
    """StringStringEntryProto messages as a dict."""
    pairs = (_core.onnx_fields("StringStringEntryProto", entry) for entry in entries)
    return {pair.get("key", ""): pair.get("value", "") for pair in pairs}


def pairs(entries: Mapping[str, str]) -> list[dict[str, str]]:
    """The inverse of `read_pairs`."""
    return [{"key": key, "value": value} for key, value in entries.items()]
