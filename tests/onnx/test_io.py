"""ONNX files: parts and copies of them, lazy tensors, files beside a model, and what is left after a failure."""

from __future__ import annotations

import copy
import dataclasses
import os
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx_files import message, network, whole_model
from program import check

import lowbit
import lowbit.onnx
from lowbit.base import file_sets
from lowbit.onnx import External, Graph, Model, Tensor, Value


def opened(model: Model, path: Path) -> Model:
    lowbit.onnx.write(path, model)
    return lowbit.onnx.open(path)


def beside(folder: Path, location: str, **places: object) -> Path:
    """A model whose tensor `w` has its 256 bytes in another file; the file is not made."""
    entries = [{"key": key, "value": str(value)} for key, value in {"location": location, **places}.items()]
    tensor = {"name": "w", "dims": [64], "data_type": 1, "data_location": 1, "external_data": entries}
    folder.mkdir(exist_ok=True)
    graph = {"name": "g", "initializer": [tensor]}
    encoded = message("ModelProto", ir_version=8, graph=graph, opset_import=[{"version": 17}])
    (folder / "m.onnx").write_bytes(encoded.tobytes())
    return folder / "m.onnx"


WEIGHT = np.arange(64, dtype=np.float32)


# Parts


def test_a_model_is_read_as_it_was_made(tmp_path: Path) -> None:
    made = whole_model()
    model = opened(made, tmp_path / "m.onnx")
    assert (model.ir_version, model.producer, model.opset) == (10, "maker", 21)
    assert (model.opsets, model.metadata) == (made.opsets, made.metadata)
    assert [node.operator for node in model.nodes] == ["my.Custom", "If"]
    assert model.nodes[0].get("fs") == (1.0, 2.5)
    assert model.nodes[0].get("gs")[0].tensors["k"].array.shape == (2, 30)
    assert model.functions[0].operator == "my.Twice"
    assert model.functions[0].nodes[1].get("value").array.tolist() == [3]
    assert [(value.name, value.dtype, value.shape) for value in model.inputs] == [
        ("x", np.float32, ("n", None, 3)),
        ("c", np.bool_, ()),
    ]
    assert len(list(model.graph.graphs())) == 5
    assert list(model.initializers) == ["w", "int4", "bf16", "texts"]
    assert model.initializers["int4"].dtype == ml_dtypes.int4
    assert model.initializers["texts"].tolist() == [b"a", "\u00e9".encode()]
    assert not model.initializers["w"].flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        model.initializers["w"][0] = 1


def test_a_changed_part_changes_nothing_else(tmp_path: Path) -> None:
    """What the classes do not know stays, in the changed part too."""
    encoded = message("ModelProto", ir_version=8, graph={"name": "g"}).tobytes() + b"\xf8\x07\x0a"
    shape = {"dim": [{"dim_param": "n", "denotation": "DATA_BATCH"}]}
    kind = {"tensor_type": {"elem_type": 1, "shape": shape}, "denotation": "IMAGE"}
    value = message("ValueInfoProto", name="x", type=kind, doc_string="d")
    (tmp_path / "m.onnx").write_bytes(
        message("ModelProto", ir_version=8, graph={"input": [value]}).tobytes() + b"\xf8\x07\x0a"
    )
    model = lowbit.onnx.open(tmp_path / "m.onnx")
    renamed = dataclasses.replace(model.graph.inputs[0], name="y")
    changed = opened(model.with_graph(dataclasses.replace(model.graph, inputs=(renamed,))), tmp_path / "n.onnx")
    content = (tmp_path / "n.onnx").read_bytes()
    assert content.endswith(b"\xf8\x07\x0a")
    assert all(text in content for text in (b"DATA_BATCH", b"IMAGE", b"d"))
    assert (changed.graph.inputs[0].name, changed.graph.inputs[0].shape) == ("y", ("n",))
    retyped = dataclasses.replace(model.graph.inputs[0], shape=(4,))
    changed = opened(model.with_graph(dataclasses.replace(model.graph, inputs=(retyped,))), tmp_path / "n.onnx")
    assert changed.graph.inputs[0].shape == (4,)
    assert encoded


def test_parts_cannot_be_changed_in_place(tmp_path: Path) -> None:
    """What was read is written as its bytes, so a change in place would be lost."""
    model = opened(whole_model(), tmp_path / "m.onnx")
    given = {"k": Tensor.of("k", WEIGHT)}
    graph = Graph("g", (), given, (), ())
    for mapping in (model.graph.tensors, model.opsets, model.nodes[0].attributes, graph.tensors):
        with pytest.raises(TypeError, match="item assignment"):
            mapping["new"] = None  # type: ignore[index]
    given["more"] = given["k"]
    assert list(graph.tensors) == ["k"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.nodes[0].name = "another"  # type: ignore[misc]


def same(a: Any, b: Any) -> bool:
    """Whether two parts say the same."""
    return b"".join(map(bytes, lowbit._core.encode_onnx(a.NAME, a.fields()))) == b"".join(
        map(bytes, lowbit._core.encode_onnx(b.NAME, b.fields()))
    )


def test_parts_are_pickled_and_copied(tmp_path: Path) -> None:
    model = opened(whole_model(), tmp_path / "m.onnx")
    parts = [model, model.graph, model.nodes[0], model.nodes[0].attributes["g"], model.graph.tensors["texts"]]
    for part in [*parts, model.graph.tensors["w"], model.graph.inputs[0], model.functions[0]]:
        assert copy.copy(part) is copy.deepcopy(part) is part
        again = pickle.loads(pickle.dumps(part))
        assert type(again) is type(part)
        assert same(again, pickle.loads(pickle.dumps(again)))
        assert len(pickle.dumps(part)) < 3 * (tmp_path / "m.onnx").stat().st_size
    again = opened(pickle.loads(pickle.dumps(model)), tmp_path / "n.onnx")
    assert again.nodes[0].get("ts")[0].array.tolist() == model.nodes[0].get("ts")[0].array.tolist()
    assert again.initializers["int4"].tobytes() == model.initializers["int4"].tobytes()


def test_a_pickled_model_brings_what_was_beside_it(tmp_path: Path) -> None:
    path = beside(tmp_path / "a", "w.bin")
    (path.parent / "w.bin").write_bytes(WEIGHT.tobytes())
    model = pickle.loads(pickle.dumps(lowbit.onnx.open(path)))
    (path.parent / "w.bin").unlink()
    assert opened(model, tmp_path / "m.onnx").initializers["w"].tobytes() == WEIGHT.tobytes()


def test_a_message_inside_itself(tmp_path: Path) -> None:
    endless: dict[str, Any] = {}
    endless["sequence_type"] = {"elem_type": endless}
    value = Value("x", rest={"type": endless})
    with pytest.raises(lowbit.InputError, match="nested deeper than 100"):
        lowbit.onnx.write(tmp_path / "m.onnx", Model(Graph("g", (), {}, (value,), ()), {"": 17}, 8))


def test_dtypes_that_onnx_lacks() -> None:
    for dtype in (np.float128 if hasattr(np, "float128") else "M8[s]", "V3", "m8[s]"):
        with pytest.raises(lowbit.UnsupportedError, match="ONNX has no element type for"):
            Tensor.of("t", np.zeros(2, dtype))
    swapped = Tensor.of("t", np.array([1, 2], ">i4"))
    assert (swapped.dtype, swapped.array.tolist()) == (np.int32, [1, 2])


# Lazy bytes


class Source:
    """Makes bytes when it is asked, and counts."""

    def __init__(self, size: int, byte: int, log: list[int]) -> None:
        self.size, self.byte, self.log = size, byte, log

    def __call__(self) -> np.ndarray:
        self.log.append(self.byte)
        return np.full(self.size, self.byte, np.uint8)


@pytest.mark.parametrize("external_data", [None, True])
def test_a_source_is_asked_once_in_order(tmp_path: Path, external_data: bool | None) -> None:
    log: list[int] = []
    size = 1 << 17
    tensors = {f"t{i}": Tensor(f"t{i}", np.dtype(np.uint8), (size,), Source(size, i, log)) for i in range(4)}
    model = Model(Graph("g", (), tensors, (), ()), {"": 17}, 8)
    assert log == []
    lowbit.onnx.write(tmp_path / "m.onnx", model, external_data=external_data)
    assert log == [0, 1, 2, 3]
    written = lowbit.onnx.open(tmp_path / "m.onnx")
    assert [set(written.initializers[f"t{i}"].tolist()) for i in range(4)] == [{0}, {1}, {2}, {3}]


def test_a_source_of_the_wrong_size(tmp_path: Path) -> None:
    for size, has, external_data in ((1 << 17, -1, None), (1 << 17, 1, True), (10, -1, None), (10, 1, None)):
        tensor = Tensor("t", np.dtype(np.uint8), (size,), Source(size + has, 0, []))
        model = Model(Graph("g", (), {"t": tensor}, (), ()), {"": 17}, 8)
        with pytest.raises(lowbit.FormatError, match=rf"tensor t: .*expected {size} bytes, found {size + has}"):
            lowbit.onnx.write(tmp_path / "m.onnx", model, external_data=external_data)
        assert list(tmp_path.iterdir()) == []


PEAK = """
import sys
import numpy as np
import lowbit.onnx
from lowbit.onnx import Graph, Model, Tensor

def peak():
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))
"""

if sys.platform == "linux":

    def test_writing_holds_one_tensor(tmp_path: Path) -> None:
        code = f"""{PEAK}
tensors = {{}}
for i in range(10):
    tensors[f"t{{i}}"] = Tensor(f"t{{i}}", np.dtype(np.uint8), (1 << 26,), lambda: np.ones(1 << 26, np.uint8))
before = peak()
lowbit.onnx.write(sys.argv[1], Model(Graph("g", (), tensors, (), ()), {{"": 17}}, 8), external_data=True)
print(peak() - before)
"""
        assert int(check(code, tmp_path / "m.onnx")) < 1.5 * (1 << 26)
        assert (tmp_path / "m.onnx.data").stat().st_size == 10 << 26

    @pytest.mark.parametrize("is_beside", [False, True])
    def test_opening_reads_no_weights(tmp_path: Path, is_beside: bool) -> None:
        """Of 4 GB of weights (a sparse file) nothing is in memory, and what is looked at alone comes in."""
        size = 2**32
        if is_beside:
            path = beside(tmp_path, "w.bin")
            tensor = message(
                "TensorProto", name="w", dims=[size], data_type=2, data_location=1,
                external_data=[{"key": "location", "value": "w.bin"}],
            )  # fmt: skip
            path.write_bytes(message("ModelProto", ir_version=8, graph={"initializer": [tensor]}).tobytes())
            os.truncate(os.open(tmp_path / "w.bin", os.O_CREAT | os.O_WRONLY), size)
        else:
            path = sparse(tmp_path / "m.onnx", size)
        code = f"""{PEAK}
before = peak()
model = lowbit.onnx.open(sys.argv[1])
array = model.initializers["w"]
assert array.shape == (1 << 32,) and array[1 << 31] == 0
print(peak() - before)
"""
        assert int(check(code, path)) < 8 << 20


def sparse(path: Path, size: int) -> Path:
    """A model with a tensor of so many bytes, which are no blocks of the file."""
    head = message("TensorProto", name="w", dims=[size], data_type=2).tobytes() + b"\x4a" + varint(size)
    head = b"\x2a" + varint(len(head) + size) + head
    head = b"\x08\x08\x3a" + varint(len(head) + size) + head
    path.write_bytes(head)
    os.truncate(path, len(head) + size)
    return path


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


# Whole or not at all


class Stop(Exception):
    pass


@contextmanager
def failing(where: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An exception in a source, in the progress, between two files, or when a file gets its name."""
    calls = 0

    def stop(*arguments: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise Stop

    with monkeypatch.context() as patch:
        if where == "rename":
            real = os.rename

            def rename(old: str, new: str) -> None:
                stop()
                real(old, new)

            patch.setattr(os, "rename", rename)
        elif where == "sync":
            patch.setattr(file_sets, "_sync", stop)
        yield


@pytest.mark.parametrize("where", ["rename", "sync", "source", "progress"])
def test_a_failure_leaves_the_old_files(tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    lowbit.onnx.write(path, network(), external_data=True)
    old = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert set(old) == {"m.onnx", "m.onnx.data"}

    def stop(*arguments: object) -> Any:
        raise Stop

    tensor = Tensor("more", np.dtype(np.uint8), (1 << 17,), stop if where == "source" else Source(1 << 17, 1, []))
    progress = stop if where == "progress" else None
    with failing(where, monkeypatch), pytest.raises(Stop):
        lowbit.onnx.write(path, network(32, more=tensor), external_data=True, progress=progress)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == old


def test_killed_while_writing(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    lowbit.onnx.write(path, network(), external_data=True)
    old = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    code = """
import os, sys
import numpy as np
import lowbit.onnx
from lowbit.onnx import Graph, Model, Tensor
tensors = {
    "a": Tensor.of("a", np.ones(1 << 20, np.uint8)),
    "b": Tensor("b", np.dtype(np.uint8), (1 << 17,), lambda: os._exit(7)),
}
lowbit.onnx.write(sys.argv[1], Model(Graph("g", (), tensors, (), ()), {"": 17}, 8), external_data=True)
"""
    from program import run

    assert run(code, path).returncode == 7
    assert all((tmp_path / name).read_bytes() == data for name, data in old.items())
    assert len(list(tmp_path.iterdir())) > 2  # temporary files, which the next writer removes
    lowbit.onnx.write(path, network(32), external_data=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]


def test_in_place(tmp_path: Path) -> None:
    """The open model keeps its bytes while its files are replaced."""
    path = tmp_path / "m.onnx"
    lowbit.onnx.write(path, network(), external_data=True)
    model = lowbit.onnx.open(path)
    before = model.initializers["w"].tobytes()
    lowbit.onnx.write(path, dataclasses.replace(model, producer="p"), external_data=True)
    assert model.initializers["w"].tobytes() == lowbit.onnx.open(path).initializers["w"].tobytes() == before
    lowbit.onnx.write(path, model)
    assert lowbit.onnx.open(path).producer == ""


# Files beside the model


def test_copies_are_written_with_the_model(tmp_path: Path) -> None:
    path = beside(tmp_path / "a", "sub/w.bin")
    (path.parent / "sub").mkdir()
    (path.parent / "sub" / "w.bin").write_bytes(WEIGHT.tobytes())
    (tmp_path / "b").mkdir()
    model = lowbit.onnx.open(path)
    assert model.graph.tensors["w"].external == External("sub/w.bin")
    lowbit.onnx.write(tmp_path / "b" / "n.onnx", model)
    assert (tmp_path / "b" / "n.onnx").read_bytes() == path.read_bytes()
    assert (tmp_path / "b" / "sub" / "w.bin").read_bytes() == WEIGHT.tobytes()
    lowbit.onnx.write(tmp_path / "b" / "n.onnx", model)  # its own files are replaced
    with pytest.raises(lowbit.FileError, match=r"w\.bin: belongs to another model than .*other\.onnx.*external_data"):
        lowbit.onnx.write(tmp_path / "b" / "other.onnx", model)
    lowbit.onnx.write(tmp_path / "b" / "other.onnx", model, external_data=False)
    assert lowbit.onnx.open(tmp_path / "b" / "other.onnx").files == {}
    (tmp_path / "c").mkdir()
    lowbit.onnx.write(tmp_path / "c" / "n.onnx", dataclasses.replace(model, producer="p"))
    assert lowbit.onnx.open(tmp_path / "c" / "n.onnx").initializers["w"].tobytes() == WEIGHT.tobytes()


def test_a_model_called_as_its_data(tmp_path: Path) -> None:
    path = beside(tmp_path / "a", "w.onnx")
    (path.parent / "w.onnx").write_bytes(WEIGHT.tobytes())
    with pytest.raises(lowbit.InputError, match=r"w\.onnx: a file beside the model is called 'w\.onnx', too"):
        lowbit.onnx.write(tmp_path / "w.onnx", lowbit.onnx.open(path))
    with pytest.raises(lowbit.InputError, match="names the model itself"):
        lowbit.onnx.write(tmp_path / "w.onnx", network(), external_data="./w.onnx")
    for location in ("../w.bin", "/w.bin", "", "./", "c:\\w.bin", "a\\b", "a\0b"):
        with pytest.raises(lowbit.FormatError, match="expected a relative path inside the model's folder"):
            lowbit.onnx.write(tmp_path / "w.onnx", network(), external_data=location)


def test_the_hub_cache(tmp_path: Path) -> None:
    """Links into a folder of blobs: a file beside the blob of the model is accepted."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    path = beside(blobs, "w.bin")
    path.rename(blobs / "aaa")
    (blobs / "bbb").write_bytes(WEIGHT.tobytes())
    (snapshot / "m.onnx").symlink_to("../../blobs/aaa")
    (snapshot / "w.bin").symlink_to("../../blobs/bbb")
    assert lowbit.onnx.open(snapshot / "m.onnx").initializers["w"].tobytes() == WEIGHT.tobytes()
    (tmp_path / "ccc").write_bytes(WEIGHT.tobytes())
    (snapshot / "w.bin").unlink()
    (snapshot / "w.bin").symlink_to("../../ccc")
    with pytest.raises(lowbit.FormatError, match=r"m\.onnx: tensor w: the file 'w\.bin' is a link that leaves"):
        lowbit.onnx.open(snapshot / "m.onnx")


@pytest.mark.parametrize("name", ["file", "folder", "folder of the same begin"])
def test_links_that_leave_the_folder(tmp_path: Path, name: str) -> None:
    outside = tmp_path / ("ab" if name.endswith("begin") else "outside")
    outside.mkdir()
    (outside / "w.bin").write_bytes(WEIGHT.tobytes())
    path = beside(tmp_path / "a", "w.bin" if name == "file" else "sub/w.bin")
    (tmp_path / "a" / ("w.bin" if name == "file" else "sub")).symlink_to(
        outside / "w.bin" if name == "file" else outside
    )
    with pytest.raises(lowbit.FormatError, match=r"m\.onnx: tensor w: the file '.*w\.bin' is a link that leaves"):
        lowbit.onnx.open(path)


@pytest.mark.parametrize(
    "location",
    [
        "../w.bin",
        "sub/../../w.bin",
        "..",
        "/etc/passwd",
        "C:/w.bin",
        "C:w.bin",
        "\\\\host\\w.bin",
        "..\\w.bin",
        "",
        "a\0b",
    ],
)
def test_locations_that_are_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    path = beside(tmp_path / "a", location)
    with pytest.raises(
        lowbit.FormatError, match=r"m\.onnx: tensor w: the file '.*': expected a relative path"
    ) as caught:
        lowbit.onnx.open(path)
    assert "\n" not in str(caught.value)
    assert caught.value.tensor == "w"


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"w\.bin: tensor w: the file 'w\.bin' beside the model does not exist"):
        lowbit.onnx.open(beside(tmp_path, "w.bin"))
    (tmp_path / "w.bin").mkdir()
    with pytest.raises(lowbit.FileError, match=r"w\.bin: .*expected a regular file, found a folder"):
        lowbit.onnx.open(tmp_path / "m.onnx")
    with pytest.raises(FileNotFoundError, match=r"none\.onnx"):
        lowbit.onnx.open(tmp_path / "none.onnx")


@pytest.mark.parametrize(
    ("places", "text"),
    [
        ({}, r"bytes 0 to 256 of the file 'w\.bin', which has 100 bytes"),
        ({"offset": 100}, r"bytes 100 to 356 of the file 'w\.bin', which has 100 bytes"),
        ({"offset": 101, "length": 0}, r"bytes 101 to 101 of the file 'w\.bin', which has 100 bytes"),
        ({"length": 101}, r"bytes 0 to 101 of the file"),
        ({"length": 100}, r"float32 \[64\]: expected 256 bytes, found 100"),
        ({"offset": 2**63 - 1}, "offset: expected a number of bytes, found 9223372036854775807"),
        ({"offset": -1}, "offset: expected a number of bytes, found -1"),
        ({"length": "1e2"}, "length: expected a number of bytes, found 1e2"),
        ({"length": "\u0661"}, "length: expected a number of bytes"),
    ],
)
def test_places_that_do_not_fit(tmp_path: Path, places: dict[str, object], text: str) -> None:
    path = beside(tmp_path, "w.bin", **places)
    (tmp_path / "w.bin").write_bytes(bytes(100))
    with pytest.raises(lowbit.FormatError, match=rf"m\.onnx: tensor w: {text}"):
        lowbit.onnx.open(path)


def test_hidden_tensors_beside_the_model(tmp_path: Path) -> None:
    """Where no class of lowbit has them, they would be lost when the model is written."""
    tensor = {"data_type": 1, "data_location": 1, "external_data": [{"key": "location", "value": "w.bin"}]}
    hidden = {"sparse_initializer": [{"values": tensor}]}
    for fields in ({"graph": hidden}, {"graph": {}, "training_info": [{"algorithm": {"initializer": [tensor]}}]}):
        (tmp_path / "m.onnx").write_bytes(message("ModelProto", ir_version=8, **fields).tobytes())
        with pytest.raises(lowbit.UnsupportedError, match="a sparse tensor or a tensor of training_info has its bytes"):
            lowbit.onnx.open(tmp_path / "m.onnx")
