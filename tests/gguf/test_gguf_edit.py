"""lowbit.gguf.edit, checked with the `gguf` package; and what is left when it is killed at any of its writes."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf as peer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lowbit
from lowbit.base.files import FileReader
from lowbit.gguf import edit, rewriting

METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "general.name": "before",
    "llama.block_count": 3,
    "llama.rope.freq_base": 10000.0,
    "tokenizer.ggml.tokens": [f"token {i}" for i in range(200)],
    "tokenizer.ggml.scores": np.arange(200, dtype=np.float32),
    "tokenizer.ggml.eos_token_id": np.uint64(7),
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.chat_template": "{{ messages }}",
}
TENSORS = {
    "a": np.arange(33, dtype=np.float32),
    "b": lowbit.quantize(np.random.default_rng(0).standard_normal((4, 32), dtype=np.float32), "Q8_0"),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with padding."""
    path = tmp_path / "model.gguf"
    lowbit.gguf.write(path, METADATA | lowbit.gguf.padding(3000), TENSORS)
    return path


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A file without, by another writer."""
    path = tmp_path / "bare.gguf"
    writer = peer.GGUFWriter(path, "llama")
    writer.add_name("before")
    writer.add_array("llama.things", list(range(100)))
    for name, tensor in TENSORS.items():
        data = tensor.data if isinstance(tensor, lowbit.QTensor) else tensor
        writer.add_tensor(
            name, data, raw_dtype=peer.GGMLQuantizationType.Q8_0 if isinstance(tensor, lowbit.QTensor) else None
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def read_with_peer(path: Path) -> tuple[dict[str, Any], dict[str, bytes], int]:
    """Metadata but padding, tensors, and where their data begins."""
    reader = peer.GGUFReader(path)
    fields = {
        name: field.contents()
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.") and name != lowbit.gguf.PADDING_KEY
    }
    return fields, {t.name: t.data.tobytes() for t in reader.tensors}, reader.data_offset


def typed(path: Path) -> dict[str, Any]:
    with lowbit.gguf.open(path) as file:
        return {key: file.typed(key) for key in file.metadata}


def test_in_place(path: Path) -> None:
    fields, tensors, data_offset = read_with_peer(path)
    before = path.stat()
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}" * 20
    change = edit(
        path,
        {"tokenizer.chat_template": template, "general.name": "a longer name", "new.list": [1.5, 2.0]},
        ["tokenizer.ggml.add_bos_token"],
    )
    assert change.in_place
    assert change.bytes_written < path.stat().st_size
    assert [(c.key, c.before is None, c.after is None) for c in change.changes] == [
        ("tokenizer.ggml.add_bos_token", False, True),
        ("tokenizer.chat_template", False, False),
        ("general.name", False, False),
        ("new.list", True, False),
    ]
    expected = fields | {"tokenizer.chat_template": template, "general.name": "a longer name", "new.list": [1.5, 2.0]}
    del expected["tokenizer.ggml.add_bos_token"]
    assert read_with_peer(path) == (expected, tensors, data_offset)
    assert list(typed(path)) == [*expected, lowbit.gguf.PADDING_KEY]
    assert len(typed(path)[lowbit.gguf.PADDING_KEY]) == change.padding < 3000
    assert (path.stat().st_ino, path.stat().st_size) == (before.st_ino, before.st_size)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_there_and_back_again(path: Path) -> None:
    original = path.read_bytes()
    edit(path, {"general.name": "x" * 2000, "new": "y"})
    assert path.read_bytes() != original
    edit(path, {"general.name": "before"}, ["new"])
    assert path.read_bytes() == original
    assert edit(path, {"general.name": "before"}).bytes_written == 0


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["general.name", "tokenizer.chat_template", "x", "y"]), st.none() | st.integers(0, 400)
        ),
        max_size=12,
    ),
    st.sampled_from([0, 1, 40, 900]),
    st.sampled_from([8, 32, 256]),
)
def test_any_edits(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[str, int | None]], reserved: int, alignment: int
) -> None:
    path = tmp_path_factory.mktemp("edits") / "model.gguf"
    keys = {"general.architecture": "llama", "general.alignment": alignment, "general.name": "before"}
    lowbit.gguf.write(path, keys | (lowbit.gguf.padding(reserved) if reserved else {}), TENSORS)
    expected = dict(keys)
    for key, size in edits:
        if size is not None:
            expected[key] = "z" * size
            change = edit(path, {key: "z" * size}, reserve=reserved)
        elif expected.pop(key, None) is not None:
            change = edit(path, unset=[key], reserve=reserved)
        else:
            continue
        fields, tensors, _ = read_with_peer(path)
        assert fields == expected
        assert list(fields) == list(expected)
        assert tensors["a"] == TENSORS["a"].tobytes()
        assert tensors["b"] == TENSORS["b"].data.tobytes()
        assert len(typed(path).get(lowbit.gguf.PADDING_KEY, "")) == change.padding


def test_what_does_not_fit_is_copied(path: Path) -> None:
    fields, tensors, _ = read_with_peer(path)
    path.chmod(0o640)
    inode = path.stat().st_ino
    with pytest.raises(lowbit.InputError, match="to edit in place"):
        edit(path, {"general.name": "n" * 4000}, in_place=True)
    planned = edit(path, {"general.name": "n" * 4000}, dry_run=True)
    assert path.stat().st_ino == inode
    change = edit(path, {"general.name": "n" * 4000})
    assert change == planned
    assert not change.in_place
    assert change.bytes_written == path.stat().st_size
    assert read_with_peer(path)[:2] == (fields | {"general.name": "n" * 4000}, tensors)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert len(typed(path)[lowbit.gguf.PADDING_KEY]) == lowbit.gguf.RESERVED_BYTES == change.padding
    assert edit(path, {"general.name": "n" * 9000}).in_place
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_files_of_others(bare: Path) -> None:
    fields, tensors, offset = read_with_peer(bare)
    assert edit(bare, {"general.name": "BEFORE"}).in_place  # as long as it was
    assert lowbit.gguf.PADDING_KEY not in typed(bare)
    assert edit(bare, unset=["llama.things"]).in_place  # the gap becomes padding
    del fields["llama.things"]
    assert read_with_peer(bare) == (fields | {"general.name": "BEFORE"}, tensors, offset)
    assert edit(bare, {"general.name": "n" * 300}).in_place
    assert not edit(bare, {"general.name": "n" * 600}, reserve=0).in_place
    assert read_with_peer(bare)[:2] == (fields | {"general.name": "n" * 600}, tensors)
    assert lowbit.gguf.PADDING_KEY not in typed(bare)


def test_types(path: Path) -> None:
    values = {
        "tokenizer.ggml.eos_token_id": 8,  # keeps its type
        "llama.rope.freq_base": 5,
        "llama.block_count": np.uint8(4),  # chooses one
        "tokenizer.ggml.scores": [1, 2],
        "new.int": -1,
        "new.ints": [1, 2],
        "new.bools": [True, False],
        "new.strings": ("a", "b"),
        "new.nothing": [],
    }
    edit(path, values)
    found = typed(path)
    expected = {
        "tokenizer.ggml.eos_token_id": np.uint64(8),
        "llama.rope.freq_base": np.float32(5),
        "llama.block_count": np.uint8(4),
        "tokenizer.ggml.scores": np.array([1, 2], np.float32),
        "new.int": np.int32(-1),
        "new.ints": np.array([1, 2], np.int32),
        "new.bools": np.array([True, False]),
        "new.strings": ["a", "b"],
        "new.nothing": [],
    }
    for key, value in expected.items():
        assert np.asarray(found[key]).dtype == np.asarray(value).dtype, key
        assert np.array_equal(found[key], value), key


def test_warnings(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = {"tokenizer.ggml.eos_token_id": 199, "tokenizer.chat_template": "{{ bos_token }}x"}
    assert edit(path, values).warnings == []
    values = {"tokenizer.ggml.eos_token_id": 200, "tokenizer.chat_template": "{% if %}"}
    found = edit(path, values).warnings
    assert found[0] == "key tokenizer.ggml.eos_token_id: 200 is not the id of a token: expected 0 to 199"
    assert found[1].startswith("key tokenizer.chat_template: chat template: ")
    assert caplog.messages == found


def test_special_tokens_are_set_by_their_text(path: Path) -> None:
    edit(path, {"tokenizer.ggml.eos_token_id": "token 42", "tokenizer.ggml.eot_token_id": "token 0"})
    found = typed(path)
    assert found["tokenizer.ggml.eos_token_id"] == np.uint64(42)
    assert found["tokenizer.ggml.eot_token_id"] == np.uint32(0)
    assert {type(found[f"tokenizer.ggml.{role}_token_id"]) for role in ("eos", "eot")} == {np.uint64, np.uint32}
    words = ["7", *METADATA["tokenizer.ggml.tokens"][1:]]
    edit(path, {"tokenizer.ggml.eos_token_id": "7", "tokenizer.ggml.tokens": words})
    assert typed(path)["tokenizer.ggml.eos_token_id"] == 0


@pytest.mark.parametrize(
    ("set", "unset", "reason"),
    [
        ({"tokenizer.ggml.eos_token_id": "tokem 42"}, [], "token 'tokem 42' is not in .*, did you mean token 42 or"),
        ({"tokenizer.ggml.eos_token_id": "7"}, [], r"token '7' is not in tokenizer\.ggml\.tokens$"),
        ({"tokenizer.ggml.eos_token_id": "a", "tokenizer.ggml.tokens": list("aba")}, [], "set one of the ids 0, 2"),
        ({"tokenizer.ggml.tokens": ["a", 1], "tokenizer.ggml.bos_token_id": "b"}, [], "an array of str, as in the"),
        ({"general.alignment": 64}, [], "general.alignment: it cannot be edited"),
        ({}, ["split.count"], "split.count: it cannot be edited"),
        ({"lowbit.padding": "x"}, [], "it is the padding for edits"),
        ({}, ["missing"], "there is no key missing"),
        ({}, ["general.architecture"], "it cannot be unset, because readers need it"),
        ({"general.name": "x"}, ["general.name"], "is in both set and unset"),
        ({"general.architecture": 3}, [], "expected a str, as in the file, got an int"),
        ({"tokenizer.ggml.pre": 3}, [], "expected a str, as readers expect, got an int"),
        ({"general.name": ["x"]}, [], "expected a str, as in the file, got an array of str"),
        ({"tokenizer.ggml.tokens": [1]}, [], "expected an array of str, as in the file, got an array of numbers"),
        (
            {"tokenizer.ggml.tokens": np.arange(3)},
            [],
            "expected an array of str, as in the file, got an array of numbers",
        ),
        ({"llama.block_count": -1}, [], "expected a number that uint32 holds, got -1"),
        ({"llama.block_count": 1 << 32}, [], "expected a number that uint32 holds, got 4294967296"),
        ({"llama.block_count": 1 << 80}, [], "expected a number that uint32 holds"),
        ({"llama.block_count": 1.5}, [], "expected an int, as in the file, got a float"),
        ({"llama.rope.freq_base": 1e300}, [], "expected a number that float32 holds"),
        ({"tokenizer.ggml.add_bos_token": 2}, [], "expected a bool, as in the file, got an int"),
        ({"new": [1, "x"]}, [], "expected numbers that"),
        ({"new": [1 << 40]}, [], "expected numbers that int32 holds"),
        ({"new": {}}, [], "expected str, bool, int"),
        ({"": 1}, [], "expected a name"),
        ({"k" * 70000: 1}, [], "too long"),
        ({"new": "\ud800"}, [], "UTF-8"),
    ],
)
def test_refused(path: Path, set: dict[str, Any], unset: list[str], reason: str) -> None:
    before = path.read_bytes()
    with pytest.raises(lowbit.InputError, match=reason):
        edit(path, {"general.name": "all or nothing"} | set, unset)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_who_has_the_file_open_sees_what_it_said(path: Path) -> None:
    with lowbit.gguf.open(path) as file:
        edit(path, {"general.name": "n" * 1000})
        assert file.metadata["general.name"] == "before"
        assert file.metadata["tokenizer.ggml.tokens"] == METADATA["tokenizer.ggml.tokens"]
        np.testing.assert_array_equal(file.tensors["a"], TENSORS["a"])


def test_links(path: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    link = tmp_path / "folder" / "link.gguf"
    link.symlink_to(path)
    other = tmp_path / "folder" / "hard.gguf"
    other.hardlink_to(path)
    assert edit(link, {"general.name": "through the link"}).path == str(path)
    assert typed(path)["general.name"] == typed(other)["general.name"] == "through the link"
    assert not edit(link, {"general.name": "n" * 5000}).in_place
    assert link.is_symlink()
    assert typed(path)["general.name"] == "n" * 5000
    assert typed(other)["general.name"] == "through the link"


def test_one_edit_at_a_time(path: Path) -> None:
    with rewriting.locked(str(path)), pytest.raises(lowbit.FileError, match="another program is editing the file"):
        edit(path, {"general.name": "x"})


@pytest.mark.parametrize("name", ["missing.gguf", "folder", "pipe"])
def test_no_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(lowbit.FileError, match="cannot edit"):
        edit(tmp_path / name, {"general.name": "x"})


def test_a_split_model_is_edited_in_its_first_file(tmp_path: Path) -> None:
    for number in range(2):
        split = {"split.no": np.uint16(number), "split.count": np.uint16(2), "split.tensors.count": np.int32(2)}
        keys = {"general.architecture": "llama"} if number == 0 else {}
        name = list(TENSORS)[number]
        lowbit.gguf.write(tmp_path / f"m-0000{number + 1}-of-00002.gguf", keys | split, {name: TENSORS[name]})
    with pytest.raises(lowbit.InputError, match="edit the first file of the split model"):
        edit(tmp_path / "m-00002-of-00002.gguf", {"general.name": "x"})
    edit(tmp_path / "m-00001-of-00002.gguf", {"general.name": "x"})
    with lowbit.gguf.open(tmp_path / "m-00002-of-00002.gguf") as file:
        assert file.metadata["general.name"] == "x"
        np.testing.assert_array_equal(file.tensors["a"], TENSORS["a"])


def test_more_than_4_gib(tmp_path: Path) -> None:
    path = tmp_path / "large.gguf"
    lowbit.gguf.write(path, METADATA | lowbit.gguf.padding(100), {"t": np.zeros(32, np.int8)})
    header = path.read_bytes()[:-32]
    size = 5 << 30
    info = struct.pack("<Q1sIQIQ", 1, b"t", 1, 32, 24, 0)
    at = header.rindex(info)
    path.write_bytes(header[:at] + struct.pack("<Q1sIQIQ", 1, b"t", 1, size, 24, 0) + header[at + len(info) :])
    os.truncate(path, len(header) + size)  # a hole
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x07")
    assert edit(path, {"general.name": "n" * 50}).in_place
    assert typed(path)["general.name"] == "n" * 50
    with lowbit.gguf.open(path) as opened:
        assert opened.tensors["t"][-1] == 7


def test_a_file_that_has_no_name_yet(tmp_path: Path) -> None:
    path = tmp_path / "new.gguf"
    tensor = TENSORS["a"]
    with lowbit.gguf.Writer(
        path, METADATA | lowbit.gguf.padding(100), [lowbit.gguf.TensorInfo("a", tensor.shape, "F32")]
    ) as writer:
        writer.write(tensor)
        lowbit.gguf.edit_unfinished(writer.temporary_path, {"lowbit.verify.verdict": "good"})
        with pytest.raises(lowbit.InputError, match="to edit in place"):
            lowbit.gguf.edit_unfinished(writer.temporary_path, {"lowbit.verify.more": "x" * 200})
        assert not path.exists()
    assert writer.temporary_path == ""
    fields, tensors, _ = read_with_peer(path)
    assert fields["lowbit.verify.verdict"] == "good"
    assert tensors == {"a": tensor.tobytes()}


class Killed(BaseException):
    """Stands for the end of the process: nothing that happens after it reaches the disk."""


@contextmanager
def killed_after(calls: int) -> Iterator[None]:
    """Lets so many writes and removals happen, then half a write, and nothing after it."""
    left = calls
    write_at, unlink = rewriting.write_at, os.unlink

    def killed_write(file: Any, offset: int, data: bytes) -> None:
        nonlocal left
        left -= 1
        if left >= -1:
            write_at(file, offset, data if left >= 0 else data[: len(data) // 2])
        if left < 0:
            raise Killed

    def killed_unlink(path: str) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        unlink(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rewriting, "write_at", killed_write)
        patch.setattr(os, "unlink", killed_unlink)
        yield


def test_killed_at_any_write(path: Path) -> None:
    before = path.read_bytes()
    new = {"general.name": "n" * 500, "new.key": 3}
    edit(path, new)
    after = path.read_bytes()
    undo = Path(str(path) + rewriting.Undo.SUFFIX)
    states = []
    for calls in range(5):
        path.write_bytes(before)
        with killed_after(calls), pytest.raises(Killed):
            edit(path, new)
        left = path.read_bytes()
        states.append("before" if left == before else "after" if left == after else "half")
        if states[-1] == "half":
            with pytest.raises(lowbit.FormatError, match="magic at offset 0"):
                lowbit.gguf.open(path)
        assert edit(path).recovered == (states[-1] == "half")
        assert path.read_bytes() == (after if left == after else before)
        assert not undo.exists()
    assert states == ["before", "half", "half", "half", "after"]
    path.write_bytes(before)
    with killed_after(5):
        edit(path, new)
    assert path.read_bytes() == after


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("calls", [0, 1, 2, 3])
def test_what_fails_is_taken_back(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, calls: int
) -> None:
    before = path.read_bytes()
    write_at = rewriting.write_at
    left = calls

    def failing(file: Any, offset: int, data: bytes) -> None:
        nonlocal left
        left -= 1
        if left == -1:
            raise error
        write_at(file, offset, data)

    monkeypatch.setattr(rewriting, "write_at", failing)
    with pytest.raises(lowbit.FileError if isinstance(error, OSError) else KeyboardInterrupt):
        edit(path, {"general.name": "n" * 500})
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda undo: undo.unlink(), "the file that undoes it is missing"),
        (lambda undo: undo.write_bytes(b""), "found other content"),
        (lambda undo: undo.write_bytes(undo.read_bytes()[:-1]), "found other content"),
        (lambda undo: undo.write_bytes(b"x" + undo.read_bytes()[1:]), "found other content"),
    ],
)
def test_a_damaged_way_back(path: Path, damage: Any, reason: str) -> None:
    undo = rewriting.Undo(str(path))
    undo.save(path.stat().st_size, 24, path.read_bytes()[24:100])
    with path.open("r+b") as file:
        file.write(b"EDIT")
    before = path.read_bytes()
    damage(Path(undo.path))
    with pytest.raises(lowbit.Error, match=reason):
        edit(path, {"general.name": "x"})
    assert path.read_bytes() == before


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_copy_that_fails_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    before = path.read_bytes()

    def failing(*_: Any) -> bytes:
        raise error

    monkeypatch.setattr(FileReader, "read", failing)  # once the header is written
    with pytest.raises(lowbit.FileError if isinstance(error, OSError) else KeyboardInterrupt):
        edit(path, {"general.name": "n" * 5000})
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_an_interrupted_edit_is_named(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"EDIT")
    with pytest.raises(lowbit.FormatError, match="an edit was interrupted: `lowbit metadata FILE recover`"):
        lowbit.gguf.open(path)


def test_a_way_back_that_nobody_needs(path: Path) -> None:
    """The edit was complete, or had not begun; or the file is another one."""
    before = path.read_bytes()
    undo = Path(str(path) + rewriting.Undo.SUFFIX)
    undo.write_bytes(b"anything")
    edit(path)
    assert path.read_bytes() == before
    assert not undo.exists()


@pytest.mark.parametrize("reserve", [-1, 10**9, 2**63, (1 << 26) + 1, 1.5, "1"])
def test_padding_that_cannot_be(path: Path, reserve: Any) -> None:
    before = path.read_bytes()
    with pytest.raises(lowbit.InputError, match="reserve: expected"):
        edit(path, {"general.name": "x" * 100_000}, reserve=reserve)
    assert path.read_bytes() == before
