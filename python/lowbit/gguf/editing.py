"""Changing the metadata of GGUF files.

A file's header (metadata, then the tensors' infos) precedes its data. The last key, `lowbit.padding`, is a string of
spaces that no reader uses. An edit changes its length, so that infos and data do not move, and only the changed bytes
of the header are written. If the new header does not fit, a copy replaces the file. `rewriting.py` does the writing.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lowbit import _core
from lowbit.base import arguments
from lowbit.base.atomic import remove_stale
from lowbit.base.errors import FormatError, InputError
from lowbit.base.foreign import GGUF_MAGIC, named
from lowbit.base.log import log_notes
from lowbit.base.paths import checked
from lowbit.base.progress import ProgressLike, steps
from lowbit.base.quoting import listed, quoted, shown
from lowbit.base.suggest import did_you_mean
from lowbit.gguf.reading import SPLIT_KEYS, Path
from lowbit.gguf.rewriting import copy, difference, locked, recover, system_errors, write_at, write_in_place
from lowbit.gguf.values import checked_name, encoded, kind_name, typed

#: A string of spaces: readers that print or check it find valid text. A string is fast to skip; some readers visit each
#: element of an array.
PADDING_KEY = "lowbit.padding"
#: Bytes reserved by default. Chat templates have 1 to 12 KB, so a new one fits. The vocabulary in the same file has
#: hundreds of KB to MB.
RESERVED_BYTES = 16384
#: The largest reserve: the header is built in memory, in a few copies.
MAX_RESERVED_BYTES = 1 << 26

_TOKENS_KEY = "tokenizer.ggml.tokens"


@dataclass(frozen=True)
class Change:
    """A key before and after an edit: values as from `File.typed`; None if the file does not have the key."""

    key: str
    before: Any
    after: Any


@dataclass(frozen=True)
class Edit:
    """The changes of an edit, made or planned.

    in_place: whether the tensors' data did not move. bytes_written: of the header, or of the whole copy; 0 if the file
    already has all values. padding: bytes that are reserved after the edit. warnings: values that are probably wrong.
    recovered: whether an interrupted edit was rolled back.
    """

    path: str
    changes: list[Change]
    in_place: bool
    bytes_written: int
    padding: int
    warnings: list[str]
    recovered: bool


def padding(num_bytes: int = RESERVED_BYTES) -> dict[str, str]:
    """Metadata that reserves `num_bytes` for later edits. Write it after all other keys."""
    return {PADDING_KEY: " " * num_bytes}


def edit(
    path: Path,
    set: Mapping[str, Any] | None = None,
    unset: Iterable[str] = (),
    *,
    in_place: bool = False,
    reserve: int = RESERVED_BYTES,
    dry_run: bool = False,
    progress: ProgressLike = None,
) -> Edit:
    """Sets and unsets keys of a GGUF file, all or none of them.

    If the new header fits, the edit is made in place. It takes milliseconds for files of any size: tensors do not move,
    and programs that have the file open keep the old values. Otherwise a copy with `reserve` bytes of padding replaces
    the file, or, with `in_place`, InputError is raised. With dry_run nothing is written. An interrupted earlier edit
    is rolled back first, even if there is nothing to change.

    set: key -> value as for Writer. An existing key keeps its place and type; a NumPy scalar or array selects another
    width. New keys go to the end; lists of bool, int and float become arrays of bool, int32 and float32. For the id of
    a special token (tokenizer.ggml.eos_token_id), a str is the token's text in tokenizer.ggml.tokens.

    Chat templates that cannot be rendered and ids without a token are set all the same, with a warning in the report
    and the log.

    A symbolic link is followed. With hard links, an edit in place changes all of them; a copy leaves the others
    unchanged. In a split model, the first file has the keys.

    Raises InputError for a missing key in `unset`, a value of another kind, an unknown token, keys that determine the
    file's layout (general.alignment, split.*) and keys that every reader needs; FileError if the system refuses or
    another edit is running.
    """
    set = {} if set is None else arguments.mapping("set", set)
    unset, dry_run = arguments.items("unset", unset), arguments.flag("dry_run", dry_run)
    in_place = arguments.flag("in_place", in_place)
    reserve = arguments.integer("reserve", reserve, 0, MAX_RESERVED_BYTES)
    target = os.path.realpath(checked(path))
    if not dry_run:
        remove_stale(target)
    with locked(target) as file:
        recovered = not dry_run and recover(file, target)
        header = _Header(target)
        changes = header.changes(set, unset)
        entries = header.changed(changes)
        new = header.fitted(entries)
        if new is None and in_place:
            raise header.too_small(entries)
        warnings = header.warnings(changes)
        log_notes(warnings)
        if new is not None:
            written = difference(header.bytes, new.bytes)
            if written and not dry_run:
                write_in_place(file, target, header.bytes, new.bytes)
            return Edit(target, changes, True, len(written), new.padding, warnings, recovered)
        new = header.copied(entries, reserve)
        num_bytes = len(new.bytes) + os.fstat(file.fileno()).st_size - header.data_begin
        if not dry_run:
            with steps("copy", "B", progress) as advance:
                copy(target, new.bytes, header.data_begin, advance)
        return Edit(target, changes, False, num_bytes, reserve, warnings, recovered)


def edit_unfinished(path: Path, set: Mapping[str, Any]) -> None:
    """Sets keys of an unfinished file (`Writer.temporary_path`), within its padding.

    There is no lock and no rollback: a crash leaves a temporary file, which is removed anyway. Raises InputError if the
    padding is too small, and as `edit` does.
    """
    target = checked(path)
    header = _Header(target)
    entries = header.changed(header.changes(set, ()))
    new = header.fitted(entries)
    if new is None:
        raise header.too_small(entries)
    with system_errors(target), open(target, "r+b", buffering=0) as file:
        changed = difference(header.bytes, new.bytes)
        write_at(file, changed.start, new.bytes[changed.start : changed.stop])


class _NewHeader(NamedTuple):
    bytes: bytes
    padding: int


class _Header:
    """The parsed bytes of a file before its tensors' data."""

    def __init__(self, path: str) -> None:
        with named(path, expected=GGUF_MAGIC):
            self._core = _core.GgufFile.open_one(os.fsencode(path))
        self.path = path
        self.data_begin = self._core.data_begin
        self._alignment = self._core.alignment
        header = self._core.header()
        self._infos = header[self._core.infos_begin :]
        self._slack = self.data_begin - len(header)
        self.bytes = header + bytes(self._slack)
        begins = [*self._core.entry_begins(), self._core.infos_begin]
        self._keys = {key: i for i, key in enumerate(self._core.keys())}
        self._entries = {key: header[begins[i] : begins[i + 1]] for key, i in self._keys.items()}
        number = self._value("split.no")
        if number is not None and not isinstance(number, np.integer):
            raise FormatError(
                "key split.no:", path=path, key="split.no", expected="an integer", found=kind_name(number)
            )
        if number:
            raise InputError("the file has no keys to edit: edit the first file of the split model", path=path)

    def _value(self, key: str) -> Any:
        if key not in self._keys:
            return None
        value = self._core.value(self._keys[key])
        return value[()] if isinstance(value, np.ndarray) and not value.ndim else value

    def changes(self, set: Mapping[str, Any], unset: Iterable[str]) -> list[Change]:
        """The requested changes, checked; values get their types."""
        for key in unset:
            _check_key(key)
        gone = list(dict.fromkeys(unset))
        for key in gone:
            if key in set:
                raise InputError(f"key {shown(key)} is in both set and unset", key=key)
            if key not in self._keys:
                raise InputError(
                    f"there is no key {shown(key)}{did_you_mean(key, self._keys)}", path=self.path, key=key
                )
            if key == "general.architecture":
                raise InputError(f"key {shown(key)}: it cannot be unset, because readers need it", key=key)
        changes = [Change(key, self._value(key), None) for key in gone]
        for key, value in set.items():
            _check_key(key)
            before = self._value(key)
            if is_token_key(key) and isinstance(value, str):
                value = self._token_id(key, value, self._words(set))
            changes.append(Change(key, before, typed(key, value, before)))
        return changes

    def warnings(self, changes: Iterable[Change]) -> list[str]:
        """Warnings about new values."""
        changes = [change for change in changes if change.after is not None]
        has_ids = any(is_token_key(change.key) for change in changes)
        words = self._words({change.key: change.after for change in changes}) if has_ids else []
        found: list[str] = []
        for change in changes:
            if is_token_key(change.key) and words and int(change.after) >= len(words):
                found.append(
                    f"key {shown(change.key)}: {change.after} is not the id of a token: expected 0 to {len(words) - 1}"
                )
            if change.key.startswith("tokenizer.chat_template") and isinstance(change.after, str):
                from lowbit.chat.template import template_warnings  # imports Jinja, which other edits do not need

                found += [f"key {shown(change.key)}: {text}" for text in template_warnings(change.after)]
        return found

    def _words(self, set: Mapping[str, Any]) -> list[str]:
        """The tokens of the changed file, or []."""
        words = set.get(_TOKENS_KEY, self._value(_TOKENS_KEY))
        return list(words) if isinstance(words, (list, tuple)) else []

    def _token_id(self, key: str, text: str, words: list[str]) -> int:
        """The id of the token with this text. Raises InputError if no token or several have it."""
        found = [i for i, word in enumerate(words) if word == text]
        if len(found) == 1:
            return found[0]
        if found:
            raise InputError(
                f"key {shown(key)}: several tokens have the text {quoted(text)}: set one of the ids {listed(found)}",
                path=self.path,
                key=key,
            )
        near = did_you_mean(text, [word for word in words if isinstance(word, str) and _is_near(text, word)])
        raise InputError(
            f"key {shown(key)}: token {quoted(text)} is not in {_TOKENS_KEY}{near}", path=self.path, key=key
        )

    def changed(self, changes: Iterable[Change]) -> list[bytes]:
        """The entries of the changed file except padding."""
        entries = {key: entry for key, entry in self._entries.items() if key != PADDING_KEY}
        for change in changes:
            if change.after is None:
                del entries[change.key]
            else:
                entries[change.key] = _entry(change.key, change.after)
        return list(entries.values())

    def fitted(self, entries: list[bytes]) -> _NewHeader | None:
        """The header with these entries and the data at its current place, or None if that is impossible.

        The infos keep their place too, if padding can ensure that. A file without padding gets some only to fill a gap:
        readers look for the data at the next multiple of the alignment.
        """
        spare = self.data_begin - len(self._joined(entries))
        padding = spare - len(_entry(PADDING_KEY, ""))
        if padding >= self._slack:
            padding -= self._slack
        if padding >= 0 and (spare >= self._alignment or PADDING_KEY in self._keys):
            return _NewHeader(self._padded(entries, padding).ljust(self.data_begin, b"\0"), padding)
        if 0 <= spare < self._alignment:
            return _NewHeader(self._joined(entries).ljust(self.data_begin, b"\0"), 0)
        return None

    def copied(self, entries: list[bytes], padding: int) -> _NewHeader:
        """The header with these entries and this much padding, of any length."""
        header = self._padded(entries, padding) if padding else self._joined(entries)
        return _NewHeader(header.ljust(math.ceil(len(header) / self._alignment) * self._alignment, b"\0"), padding)

    def too_small(self, entries: list[bytes]) -> InputError:
        """The error for entries that do not fit."""
        size = len(self._joined(entries))
        return InputError(
            f"the new header has {size} bytes",
            path=self.path,
            expected=f"at most {self.data_begin} to edit in place",
            found=size,
        )

    def _padded(self, entries: list[bytes], padding: int) -> bytes:
        return self._joined([*entries, _entry(PADDING_KEY, " " * padding)])

    def _joined(self, entries: list[bytes]) -> bytes:
        return b"".join([self.bytes[:16], struct.pack("<Q", len(entries)), *entries, self._infos])


def is_token_key(key: str) -> bool:
    """Whether the key holds the id of a special token."""
    return isinstance(key, str) and key.startswith("tokenizer.ggml.") and key.endswith("_token_id")


def _is_near(text: str, word: str) -> bool:
    """Whether a token is similar to the text; comparing all exactly would take seconds."""
    return word[:1] == text[:1] or text in word


def _check_key(key: str) -> None:
    checked_name("key", key)
    if key in ("general.alignment", *SPLIT_KEYS):
        raise InputError(f"key {shown(key)}: it cannot be edited, because it determines the file's layout", key=key)
    if key == PADDING_KEY:
        raise InputError(f"key {shown(key)}: it cannot be edited, because it is the padding for edits", key=key)


def _entry(key: str, value: Any) -> bytes:
    return _core.gguf_entry(key, encoded(key, value))
