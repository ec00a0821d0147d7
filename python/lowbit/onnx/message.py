"""What the classes of an ONNX model have in common: they come from the bytes of messages, and become bytes again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

from lowbit import _core
from lowbit.onnx.dtypes import Bytes

_Message = TypeVar("_Message", bound="Message")
_NOTHING: Mapping[str, Any] = MappingProxyType({})


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
