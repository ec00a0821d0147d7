"""ONNX files read and written by lowbit, against the `onnx` package and onnxruntime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message as Proto
from onnx import TensorProto, helper, numpy_helper, onnx_ml_pb2
from onnx.external_data_helper import convert_model_to_external_data, set_external_data
from onnx_models import SHAPES, TYPES, elements, everything, small, value

import lowbit
from lowbit import _core
from lowbit.onnx import writing
from lowbit.onnx.message import Message

pytestmark = pytest.mark.oracle

F = FieldDescriptor
INTEGERS = (F.TYPE_INT32, F.TYPE_INT64, F.TYPE_UINT64, F.TYPE_ENUM)


# The messages


def descriptors() -> Iterator[Descriptor]:
    """Those of every message, nested ones too."""
    waiting = [*onnx_ml_pb2.DESCRIPTOR.message_types_by_name.values()]
    while waiting:
        descriptor = waiting.pop()
        yield descriptor
        waiting += descriptor.nested_types


DESCRIPTORS = {d.full_name.removeprefix("onnx."): d for d in descriptors()}


def sample(field: FieldDescriptor) -> Any:
    if field.type in INTEGERS:
        return 1
    if field.type in (F.TYPE_FLOAT, F.TYPE_DOUBLE):
        return 0.5
    return {F.TYPE_STRING: "t\u00e9xt", F.TYPE_BYTES: b"\xff\0"}.get(field.type, {})


def plain(value: Any) -> Any:
    """Views of bytes as bytes; a message is an empty one here."""
    if isinstance(value, np.ndarray):
        return bytes(value) or {}
    return [plain(item) for item in value] if isinstance(value, list) else value


def made(descriptor: Descriptor, field: FieldDescriptor, value: Any) -> Proto:
    message = onnx_ml_pb2.__dict__[descriptor.full_name.split(".")[1]]
    for name in descriptor.full_name.split(".")[2:]:
        message = getattr(message, name)
    proto = message()
    if field.is_repeated and field.message_type:
        for _ in range(2):
            getattr(proto, field.name).add()
    elif field.is_repeated:
        getattr(proto, field.name).extend([value, value])
    elif field.message_type:
        getattr(proto, field.name).SetInParent()
    else:
        setattr(proto, field.name, value)
    return proto


@pytest.mark.parametrize("name", sorted(DESCRIPTORS))
def test_schema(name: str) -> None:
    """Every field has the number, the type and the cardinality of onnx's, and there are no others."""
    descriptor = DESCRIPTORS[name]
    for field in descriptor.fields:
        value = sample(field)
        proto = made(descriptor, field, value)
        encoded = np.frombuffer(proto.SerializeToString(), np.uint8)
        stored = [value, value] if field.is_repeated else value
        is_data = field.name.endswith("_data") and name == "TensorProto" and field.is_repeated
        found = _core.onnx_fields(name, encoded)
        if is_data and not field.message_type:
            assert found == {field.name: None}
            assert list(_core.onnx_elements(encoded, field.name)) == stored
        else:
            assert {key: plain(item) for key, item in found.items()} == {field.name: stored}
        written = b"".join(map(bytes, _core.encode_onnx(name, {field.name: stored})))
        assert type(proto).FromString(written) == proto
        if field.message_type:  # of the right kind
            inner = field.message_type.full_name.removeprefix("onnx.")
            first = field.message_type.fields[0]
            value = {first.name: [sample(first)] if first.is_repeated else sample(first)}
            whole = {field.name: [value] if field.is_repeated else value}
            written = b"".join(map(bytes, _core.encode_onnx(name, whole)))
            assert not type(proto).FromString(written).DiscardUnknownFields()
            content = _core.onnx_fields(name, np.frombuffer(written, np.uint8))[field.name]
            content = content[0] if field.is_repeated else content
            assert {key: plain(item) for key, item in _core.onnx_fields(inner, content).items()} == value
    known = {field.number for field in descriptor.fields}
    for number in set(range(1, 60)) - known:
        unknown = helper_tag(number) + b"\1"
        found = _core.onnx_fields(name, np.frombuffer(unknown, np.uint8))
        assert {key: plain(item) for key, item in found.items()} == {"?": [unknown]}


def helper_tag(number: int) -> bytes:
    tag = number << 3
    return bytes([tag]) if tag < 128 else bytes([tag & 127 | 128, tag >> 7])


# Whole models


def wheel_models() -> list[Path]:
    """The models of onnx's own tests."""
    return sorted((Path(onnx.__file__).parent / "backend" / "test" / "data").rglob("*.onnx"))


def our_models() -> list[Path]:
    return sorted((Path(__file__).parents[1] / "data" / "onnx").glob("*.onnx"))


def saved(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def test_models_are_there() -> None:
    assert len(wheel_models()) > 100
    assert our_models()


def made_models(folder: Path) -> list[Path]:
    whole = everything()
    saved(whole, folder / "everything.onnx")
    # What a later version may bring, as varint, fixed, bytes and a group; numbers packed that are not, and the reverse.
    unknown = bytes.fromhex("f8070a") + bytes.fromhex("fd0701020304") + bytes.fromhex("fa0702abcd")
    group = bytes.fromhex("fb07") + bytes.fromhex("0801") + bytes.fromhex("fc07")
    (folder / "unknown.onnx").write_bytes(whole.SerializeToString() + unknown + group)
    ints = b"\x0a\x01k" + b"\x42\x03\x01\x02\x03" + b"\x40\x04" + b"\xa0\x01\x07"
    floats = b"\x08\x02\x10\x01" + b"\x25\0\0\x80\x3f" + b"\x25\0\0\0\x40" + b"\x42\x01f"
    node = b"\x22\x01C" + b"\x2a" + bytes([len(ints)]) + ints
    graph = b"\x0a" + bytes([len(node)]) + node + b"\x2a" + bytes([len(floats)]) + floats
    (folder / "packed.onnx").write_bytes(b"\x08\x08\x3a" + bytes([len(graph)]) + graph)
    for version in range(3, 15):
        saved(small(version), folder / f"ir{version}.onnx")
    for opset in range(7, 29):
        saved(small(8, opset), folder / f"opset{opset}.onnx")
    return sorted(folder.iterdir())


def test_unchanged_is_byte_for_byte(tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    written = tmp_path / "written.onnx"
    for path in [*wheel_models(), *our_models(), *made_models(made)]:
        lowbit.onnx.write(written, lowbit.onnx.open(path))
        assert written.read_bytes() == path.read_bytes(), path


def test_numbers_may_be_packed_or_not(tmp_path: Path) -> None:
    made_models(tmp_path)
    proto = onnx.load(tmp_path / "packed.onnx")
    model = lowbit.onnx.open(tmp_path / "packed.onnx")
    assert model.nodes[0].get("k") == tuple(proto.graph.node[0].attribute[0].ints) == (1, 2, 3, 4)
    assert model.initializers["f"].tolist() == numpy_helper.to_array(proto.graph.initializer[0]).tolist() == [1, 2]


def rebuilt(part: Any) -> Any:
    """Every part replaced, so that each is encoded anew."""
    if isinstance(part, Message):
        return replace(part, **{field.name: rebuilt(getattr(part, field.name)) for field in fields(part)})
    if isinstance(part, tuple):
        return tuple(map(rebuilt, part))
    if isinstance(part, Mapping):
        return {key: rebuilt(item) for key, item in part.items()}
    return part


def normal(proto: Proto) -> Proto:
    """Without differences that mean nothing: empty texts, and tensors' elements in typed fields."""
    if isinstance(proto, TensorProto) and proto.data_type != TensorProto.STRING:
        named = numpy_helper.from_array(numpy_helper.to_array(proto), proto.name)
        for name in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
            proto.ClearField(name)
        proto.raw_data = named.raw_data
    for field, item in list(proto.ListFields()):
        if field.message_type:
            for each in item if field.is_repeated else [item]:
                normal(each)
        elif field.type == F.TYPE_STRING and not field.is_repeated and not item:
            proto.ClearField(field.name)
    if isinstance(proto, TensorProto) and proto.data_location == TensorProto.DEFAULT:
        proto.ClearField("data_location")
    for field in proto.DESCRIPTOR.fields:
        if field.type == F.TYPE_STRING and not field.is_repeated and not getattr(proto, field.name):
            proto.ClearField(field.name)
    return proto


def test_encoded_anew_is_equal(tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    written = tmp_path / "written.onnx"
    for path in [*wheel_models(), *our_models(), *made_models(made)]:
        lowbit.onnx.write(written, rebuilt(lowbit.onnx.open(path)))
        assert normal(onnx.load(written)) == normal(onnx.load(path)), path


def test_parts_agree(tmp_path: Path) -> None:
    """What the parts say is what onnx says."""
    proto = everything()
    model = lowbit.onnx.open(saved(proto, tmp_path / "m.onnx"))
    assert (model.ir_version, model.producer, dict(model.opsets)) == (13, "maker", {"": 21, "my": 1})
    assert dict(model.metadata) == {"author": "a", "licence": "l"}
    assert [node.op_type for node in model.nodes] == [node.op_type for node in proto.graph.node]
    assert [function.name for function in model.functions] == ["Twice"]
    node = model.nodes[0]
    assert (node.operator, node.name, node.inputs, node.outputs) == ("my.Custom", "n", ("x", "", "w"), ("y",))
    assert (node.get("f"), node.get("i"), node.get("s"), node.get("ints")) == (1.5, -7, "t\u00e9xt", (3, -(2**62)))
    assert node.get("raw").encode("utf-8", "surrogateescape") == b"\xff\0"
    assert node.get("nothing") == ()
    assert model.functions[0].nodes[0].get("alpha") is None
    for attribute in proto.graph.node[0].attribute:
        assert node.attributes[attribute.name].type == onnx.AttributeProto.AttributeType.Name(attribute.type)
    assert [value.name for value in model.inputs] == [value.name for value in proto.graph.input]
    assert model.inputs[2].shape == (1, "n", None)
    assert model.inputs[2].dtype == np.float32
    assert model.initializers["w"].tolist() == [b"\xff", b"b"]
    assert len(list(model.graph.graphs())) == 6


# Elements


def cases() -> list[tuple[int, tuple[int, ...]]]:
    return [(number, shape) for number in TYPES for shape in SHAPES]


@pytest.mark.parametrize("number", TYPES, ids=TYPES.values())
def test_elements(number: int, tmp_path: Path) -> None:
    assert len(TYPES) == 28
    tensors, ours = [], {}
    for i, shape in enumerate(SHAPES):
        array = elements(number, shape)
        texts = [text.encode() for text in array.reshape(-1)] if number == TensorProto.STRING else array.reshape(-1)
        tensors.append(helper.make_tensor(f"typed{i}", number, shape, texts))
        if number != TensorProto.STRING:
            tensors.append(numpy_helper.from_array(array, f"raw{i}"))
        ours[f"ours{i}"] = lowbit.onnx.Tensor.of(f"ours{i}", array)
    graph = helper.make_graph([], "g", [], [], tensors)
    path = saved(helper.make_model(graph), tmp_path / "m.onnx")
    model = lowbit.onnx.open(path)
    expected = {name: elements(number, tensor.shape) for name, tensor in ours.items()}
    expected |= {tensor.name: numpy_helper.to_array(tensor) for tensor in tensors}
    for tensor in tensors:
        same(model.initializers[tensor.name], expected[tensor.name])
        assert model.graph.tensors[tensor.name].size == expected[tensor.name].size
    written = tmp_path / "written.onnx"
    graph = replace(model.graph, tensors={**ours, **rebuilt(model.graph.tensors)})
    lowbit.onnx.write(written, replace(model, graph=graph))
    for tensor in onnx.load(written).graph.initializer:
        same(numpy_helper.to_array(tensor), expected[tensor.name])
        if number != TensorProto.STRING:
            assert tensor.raw_data == numpy_helper.from_array(expected[tensor.name]).raw_data


def same(found: np.ndarray, expected: np.ndarray) -> None:
    """Bit for bit."""
    assert found.shape == expected.shape
    if found.dtype == object:
        texts = [text.decode() if isinstance(text, bytes) else text for text in found.reshape(-1)]
        assert texts == list(expected.reshape(-1))
    else:
        assert found.dtype == expected.dtype
        assert found.tobytes() == expected.tobytes()


# Bytes in other files


def outputs(path: Path, size: int = 64) -> np.ndarray:
    x = np.random.default_rng(1).standard_normal((3, size)).astype(np.float32)
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


@pytest.mark.parametrize("external_data", [None, False, True, "w.bin", "sub/w.bin"])
@pytest.mark.parametrize("ir_version", [3, 8, 14])
def test_others_read_what_we_write(tmp_path: Path, external_data: bool | str | None, ir_version: int) -> None:
    source = saved(small(ir_version), tmp_path / "source.onnx")
    path = tmp_path / "written.onnx"
    lowbit.onnx.write(path, rebuilt(lowbit.onnx.open(source)), external_data=external_data)
    onnx.checker.check_model(path)
    assert normal(onnx.load(path)) == normal(onnx.load(source))
    assert outputs(path).tobytes() == outputs(source).tobytes()
    name = {True: "written.onnx.data", None: None, False: None}.get(external_data, external_data)  # type: ignore[arg-type]
    tensors = onnx.load(path, load_external_data=False).graph.initializer
    assert [tensor.data_location == TensorProto.EXTERNAL for tensor in tensors] == [name is not None, False]
    assert name is None or (tmp_path / name).stat().st_size == 64 * 64 * 4


@pytest.mark.parametrize("keys", [("offset", "length"), ("length",), ("offset",), ()])
def test_we_read_what_others_write(tmp_path: Path, keys: tuple[str, ...]) -> None:
    proto = small()
    expected = numpy_helper.to_array(proto.graph.initializer[0])
    raw = proto.graph.initializer[0].raw_data
    start = 4096 if "offset" in keys else 0
    (tmp_path / "w.bin").write_bytes(bytes(start) + raw + (b"more" if "length" in keys else b""))
    set_external_data(proto.graph.initializer[0], "w.bin")
    del proto.graph.initializer[0].external_data[1:]
    places = {"offset": str(start), "length": str(len(raw))}
    for key in keys:
        proto.graph.initializer[0].external_data.add(key=key, value=places[key])
    proto.graph.initializer[0].ClearField("raw_data")
    path = saved(proto, tmp_path / "m.onnx")
    assert lowbit.onnx.open(path).initializers["w"].tobytes() == expected.tobytes()
    assert outputs(path).tobytes() == outputs(saved(small(), tmp_path / "whole.onnx")).tobytes()


def test_converted_by_onnx(tmp_path: Path) -> None:
    """All tensors in one file, and each in its own."""
    for is_one in (True, False):
        proto = small()
        folder = tmp_path / str(is_one)
        folder.mkdir()
        convert_model_to_external_data(proto, all_tensors_to_one_file=is_one, location="all.bin", size_threshold=0)
        onnx.save(proto, folder / "m.onnx")
        model = lowbit.onnx.open(folder / "m.onnx")
        for tensor in small().graph.initializer:
            same(model.initializers[tensor.name], numpy_helper.to_array(tensor))
        copied = tmp_path / f"copy{is_one}" / "m.onnx"
        copied.parent.mkdir()
        lowbit.onnx.write(copied, model)
        assert {path.name: path.read_bytes() for path in copied.parent.iterdir()} == {
            path.name: path.read_bytes() for path in folder.iterdir()
        }
        assert outputs(copied).tobytes() == outputs(folder / "m.onnx").tobytes()


def test_tied_weights_share_their_bytes(tmp_path: Path) -> None:
    table = np.random.default_rng(0).standard_normal((300, 1000)).astype(np.float32)
    nodes = [
        lowbit.onnx.Node.of("MatMul", ["x", "a"], ["h"]),
        lowbit.onnx.Node.of("Transpose", ["b"], ["bt"]),
        lowbit.onnx.Node.of("MatMul", ["h", "bt"], ["y"]),
    ]
    tensors = {name: lowbit.onnx.Tensor.of(name, table) for name in "ab"}
    values = [lowbit.onnx.Value.of(name, np.float32, ["n", 300]) for name in "xy"]
    graph = lowbit.onnx.Graph("g", tuple(nodes), tensors, (values[0],), (values[1],))
    path = tmp_path / "m.onnx"
    lowbit.onnx.write(path, lowbit.onnx.Model(graph, {"": 17}, 8), external_data=True)
    assert (tmp_path / "m.onnx.data").stat().st_size == table.nbytes
    onnx.checker.check_model(path)
    for tensor in onnx.load(path).graph.initializer:
        same(numpy_helper.to_array(tensor), table)
    outputs(path, 300)


def test_alignment(tmp_path: Path) -> None:
    """Large tensors start at multiples of 64 KiB, which Windows can map, others at multiples of 64."""
    sizes = [300, 1, 2**18, 257, 2**18 + 1, 400]
    tensors = {f"t{i}": lowbit.onnx.Tensor.of(f"t{i}", np.full(size, i, np.float32)) for i, size in enumerate(sizes)}
    path = tmp_path / "m.onnx"
    lowbit.onnx.write(
        path, lowbit.onnx.Model(lowbit.onnx.Graph("g", (), tensors, (), ()), {"": 17}, 8), external_data=True
    )
    found = onnx.load(path, load_external_data=False).graph.initializer
    places = [{entry.key: int(entry.value) for entry in t.external_data[1:]} for t in found]
    assert [bool(place) for place in places] == [True, False, True, True, True, True]
    for size, place in zip(sizes, places, strict=True):
        assert not place or place["offset"] % (65536 if size >= 2**18 else 64) == 0
    for tensor, size in zip(onnx.load(path).graph.initializer, sizes, strict=True):
        assert numpy_helper.to_array(tensor).tolist() == [float(tensor.name[1:])] * size


def test_what_protobuf_cannot_hold_goes_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of 2 GiB, lowered."""
    source = saved(small(), tmp_path / "source.onnx")
    model = rebuilt(lowbit.onnx.open(source))
    path = tmp_path / "written.onnx"
    size = len(source.read_bytes())
    monkeypatch.setattr(writing, "MOST_BYTES", size)
    lowbit.onnx.write(path, model)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["source.onnx", "written.onnx"]
    monkeypatch.setattr(writing, "MOST_BYTES", size - 1)
    lowbit.onnx.write(path, model)
    assert (tmp_path / "written.onnx.data").exists()
    assert outputs(path).tobytes() == outputs(source).tobytes()
    with pytest.raises(lowbit.InputError, match=rf"written\.onnx: {size} bytes, expected less than 2 GiB"):
        lowbit.onnx.write(path, model, external_data=False)
    monkeypatch.setattr(writing, "MOST_BYTES", 100)
    with pytest.raises(lowbit.InputError, match="without its initializers"):
        lowbit.onnx.write(path, model, external_data=True)


def test_tensors_of_functions_and_attributes(tmp_path: Path) -> None:
    """In other files when they are read, inside the model when it is written."""
    weight = np.arange(4096, dtype=np.float32).reshape(64, 64)
    (tmp_path / "w.bin").write_bytes(weight.tobytes())
    tensor = numpy_helper.from_array(weight, "k")
    set_external_data(tensor, "w.bin", 0, weight.nbytes)
    tensor.ClearField("raw_data")
    body = [helper.make_node("Constant", [], ["k"], value=tensor), helper.make_node("MatMul", ["a", "k"], ["b"])]
    function = helper.make_function("my", "Product", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    nodes = [helper.make_node("Product", ["x"], ["y"], domain="my")]
    graph = helper.make_graph(nodes, "g", [value("x", ["n", 64])], [value("y", ["n", 64])])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]
    path = saved(
        helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=8), tmp_path / "m.onnx"
    )
    model = lowbit.onnx.open(path)
    same(model.functions[0].nodes[0].get("value").array, weight)
    for external_data in (None, True, False):
        folder = tmp_path / str(external_data)
        folder.mkdir()
        lowbit.onnx.write(folder / "m.onnx", replace(model, producer="p"), external_data=external_data)
        onnx.checker.check_model(folder / "m.onnx")
        assert outputs(folder / "m.onnx").shape == (3, 64)
