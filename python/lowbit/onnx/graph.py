"""The parts of an ONNX model: immutable, so that what was read and not replaced is written as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from lowbit import _core
from lowbit.base.errors import FormatError, InputError
from lowbit.base.files import FileReader
from lowbit.base.quoting import quoted, shown
from lowbit.onnx.dtypes import BY_NUMBER, Bytes, element_type
from lowbit.onnx.message import Message, contents, pairs, read_pairs, with_bytes
from lowbit.onnx.tensor import Fetch, Tensor, read_tensor

#: AttributeProto.AttributeType, by number, and the field that holds the value.
_ATTRIBUTE_TYPES = (
    ("UNDEFINED", ""),
    ("FLOAT", "f"),
    ("INT", "i"),
    ("STRING", "s"),
    ("TENSOR", "t"),
    ("GRAPH", "g"),
    ("FLOATS", "floats"),
    ("INTS", "ints"),
    ("STRINGS", "strings"),
    ("TENSORS", "tensors"),
    ("GRAPHS", "graphs"),
    ("SPARSE_TENSOR", "sparse_tensor"),
    ("SPARSE_TENSORS", "sparse_tensors"),
    ("TYPE_PROTO", "tp"),
    ("TYPE_PROTOS", "type_protos"),
)
_NUMBERS = {name: number for number, (name, _) in enumerate(_ATTRIBUTE_TYPES)}
_FIELDS = dict(_ATTRIBUTE_TYPES)


@dataclass(frozen=True, eq=False)
class Attribute(Message):
    """An AttributeProto. `type`: "INT", "FLOATS", ... `value`: int, float, str, Tensor, Graph, or a tuple of them.

    A STRING is a str; bytes that are no UTF-8 are surrogates, as `os.fsdecode` makes them. Values of other types
    (sparse tensors, types) are messages in bytes.
    """

    NAME = "AttributeProto"

    name: str
    type: str
    value: Any
    rest: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, value: Any) -> Attribute:
        """An attribute whose type follows from the value: a sequence gives a type of several; it must not be empty."""
        if isinstance(value, (list, tuple)):
            if not value:
                raise InputError(
                    f"attribute {quoted(name)}: an empty list has no type: use Attribute(name, type, value)"
                )
            kinds = {_type_of(name, each) for each in value}
            kind = "FLOAT" if kinds == {"INT", "FLOAT"} else kinds.pop()
            if kinds and kind != "FLOAT":
                raise InputError(f"attribute {quoted(name)}: a list of {kind} and {', '.join(sorted(kinds))}")
            return cls(name, f"{kind}S", tuple(value))
        return cls(name, _type_of(name, value), value)

    def fields(self) -> dict[str, Any]:
        """As `Message.fields`."""
        if self.type not in _FIELDS:
            known = ", ".join(_FIELDS)
            raise InputError(f"attribute {quoted(self.name)}:", expected=f"a type of {known}", found=shown(self.type))
        fields = {**self.rest, "name": self.name or None, "type": _NUMBERS[self.type]}
        if key := _FIELDS[self.type]:
            fields[key] = [_stored(v) for v in self.value] if isinstance(self.value, tuple) else _stored(self.value)
        return fields


def _type_of(name: str, value: Any) -> str:
    if isinstance(value, (bool, int, np.integer)):
        return "INT"
    if isinstance(value, (float, np.floating)):
        return "FLOAT"
    for kind, name_of_kind in ((str, "STRING"), (Tensor, "TENSOR"), (Graph, "GRAPH")):
        if isinstance(value, kind):
            return name_of_kind
    found = type(value).__name__
    raise InputError(
        f"attribute {quoted(name)}:", expected="int, float, str, Tensor, Graph or a list of them", found=found
    )


def _stored(value: Any) -> Any:
    if isinstance(value, Message):
        return value.content()
    return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value


def _read_attribute(encoded: Bytes, fetch: Fetch) -> Attribute:
    fields = _core.onnx_fields(Attribute.NAME, encoded)
    name, number = fields.pop("name", ""), fields.pop("type", 0)
    if number == 0 and "ref_attr_name" not in fields:  # files of IR version 1 state no type
        number = next((n for n, (_, key) in enumerate(_ATTRIBUTE_TYPES) if key and key in fields), 0)
    if not 0 <= number < len(_ATTRIBUTE_TYPES):
        raise FormatError(f"attribute {quoted(name)}: unknown type {number}")
    kind, key = _ATTRIBUTE_TYPES[number]
    decode = _decoder(kind, fetch)
    value: Any = None
    if "ref_attr_name" in fields:  # the value is the one of an attribute of the function around the node
        pass
    elif kind.endswith("S"):
        value = tuple(map(decode, fields.pop(key, ())))
    elif key:
        if (stored := fields.pop(key, _DEFAULTS.get(kind))) is None:
            raise FormatError(f"attribute {quoted(name)}: no {kind} in it")
        value = decode(stored)
    return with_bytes(Attribute(name, kind, value, fields), encoded)


#: Protobuf leaves out what is not set; a missing value is the type's zero.
_DEFAULTS: Mapping[str, Any] = {"FLOAT": 0.0, "INT": 0, "STRING": np.zeros(0, np.uint8)}


def _decoder(kind: str, fetch: Fetch) -> Callable[[Any], Any]:
    kind = kind.removesuffix("S")
    if kind == "STRING":
        return lambda raw: bytes(raw).decode("utf-8", "surrogateescape")
    if kind == "TENSOR":
        return lambda raw: read_tensor(raw, fetch)
    if kind == "GRAPH":
        return lambda raw: read_graph(raw, fetch)
    return lambda value: value


@dataclass(frozen=True, eq=False)
class Node(Message):
    """A NodeProto: an operator with the names of its inputs ("" for one that is left out) and outputs."""

    NAME = "NodeProto"

    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    name: str = ""
    domain: str = ""
    rest: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        op_type: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        *,
        name: str = "",
        domain: str = "",
        **attributes: Any,
    ) -> Node:
        """A node with attributes of plain values (`Attribute.of`); those that are None are left out."""
        made = {key: Attribute.of(key, value) for key, value in attributes.items() if value is not None}
        return cls(op_type, tuple(inputs), tuple(outputs), made, name, domain)

    def get(self, attribute: str, default: Any = None) -> Any:
        """The value of an attribute."""
        found = self.attributes.get(attribute)
        return default if found is None else found.value

    @property
    def operator(self) -> str:
        """The operator with its domain: "MatMul", "com.microsoft.MatMulNBits"."""
        return _operator(self.domain, self.op_type)

    @property
    def label(self) -> str:
        """What the node is called in options and reports: its name, or its first output."""
        return self.name or next(iter(self.outputs), "")

    @property
    def subgraphs(self) -> Iterator[Graph]:
        """The graphs in its attributes."""
        for attribute in self.attributes.values():
            values = attribute.value if isinstance(attribute.value, tuple) else (attribute.value,)
            yield from (value for value in values if isinstance(value, Graph))

    def fields(self) -> dict[str, Any]:
        """As `Message.fields`."""
        fields: dict[str, Any] = {**self.rest, "input": self.inputs, "output": self.outputs, "op_type": self.op_type}
        fields |= {"name": self.name or None, "domain": self.domain or None}
        return fields | {"attribute": contents([*self.attributes.values()])}


def _operator(domain: str, name: str) -> str:
    return name if domain in ("", "ai.onnx") else f"{domain}.{name}"


def _read_node(encoded: Bytes, fetch: Fetch) -> Node:
    fields = _core.onnx_fields(Node.NAME, encoded)
    attributes: dict[str, Attribute] = {}
    name = fields.pop("name", "")
    for each in fields.pop("attribute", ()):
        attribute = _read_attribute(each, fetch)
        if attribute.name in attributes:
            raise FormatError(f"node {quoted(name)}: attribute {quoted(attribute.name)} occurs twice")
        attributes[attribute.name] = attribute
    inputs, outputs = tuple(fields.pop("input", ())), tuple(fields.pop("output", ()))
    node = Node(fields.pop("op_type", ""), inputs, outputs, attributes, name, fields.pop("domain", ""), fields)
    return with_bytes(node, encoded)


@dataclass(frozen=True, eq=False)
class Value(Message):
    """A ValueInfoProto: the type of an input, an output or a value between nodes.

    `dtype`: None if the value is no tensor or has no type. `shape`: None if it is unknown; a dimension is a number, a
    name, or None if it is unknown.
    """

    NAME = "ValueInfoProto"

    name: str
    dtype: np.dtype[Any] | None = None
    shape: tuple[int | str | None, ...] | None = None
    rest: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, dtype: npt.DTypeLike, shape: Sequence[int | str | None] | None = None) -> Value:
        """A tensor's type."""
        return cls(name, element_type(dtype).dtype, None if shape is None else tuple(shape))

    def fields(self) -> dict[str, Any]:
        """As `Message.fields`."""
        fields = {**self.rest, "name": self.name or None}
        if self.dtype is not None and _read_type(fields.get("type")) != (self.dtype, self.shape):
            tensor: dict[str, Any] = {"elem_type": element_type(self.dtype).number}
            if self.shape is not None:
                tensor["shape"] = {"dim": [_dimension(dim) for dim in self.shape]}
            fields["type"] = {"tensor_type": tensor}
        return fields


def _dimension(dim: int | str | None) -> dict[str, Any]:
    return {} if dim is None else {"dim_param": dim} if isinstance(dim, str) else {"dim_value": dim}


def read_value(encoded: Bytes) -> Value:
    """A ValueInfoProto of a file."""
    fields = _core.onnx_fields(Value.NAME, encoded)
    name = fields.pop("name", "")
    dtype, shape = _read_type(fields.get("type"))
    return with_bytes(Value(name, dtype, shape, fields), encoded)


def _read_type(encoded: Bytes | None) -> tuple[np.dtype[Any] | None, tuple[int | str | None, ...] | None]:
    """The dtype and the shape of a TypeProto."""
    kind = {} if encoded is None else _core.onnx_fields("TypeProto", encoded)
    if "tensor_type" not in kind:
        return None, None
    tensor = _core.onnx_fields("TypeProto.Tensor", kind["tensor_type"])
    element = BY_NUMBER.get(tensor.get("elem_type", 0))
    if "shape" not in tensor:
        return element and element.dtype, None
    dims = _core.onnx_fields("TensorShapeProto", tensor["shape"]).get("dim", ())
    return element and element.dtype, tuple(map(_read_dimension, dims))


def _read_dimension(encoded: Bytes) -> int | str | None:
    """A dimension. Numbers below 0 are unknown: Paddle's exporter writes -1 for open dimensions."""
    fields = _core.onnx_fields("TensorShapeProto.Dimension", encoded)
    number: int | None = fields.get("dim_value")
    return fields.get("dim_param") or None if number is None or number < 0 else number


@dataclass(frozen=True, eq=False)
class Graph(Message):
    """A GraphProto. `tensors`: the initializers by name. `values`: the types of values between nodes."""

    NAME = "GraphProto"

    name: str
    nodes: tuple[Node, ...]
    tensors: Mapping[str, Tensor]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    values: tuple[Value, ...] = ()
    rest: Mapping[str, Any] = field(default_factory=dict)

    def fields(self) -> dict[str, Any]:
        """As `Message.fields`."""
        return {
            **self.rest,
            "name": self.name or None,
            "node": contents(self.nodes),
            "initializer": contents([*self.tensors.values()]),
            "input": contents(self.inputs),
            "output": contents(self.outputs),
            "value_info": contents(self.values),
        }

    def graphs(self) -> Iterator[Graph]:
        """This graph and those in attributes of its nodes, at any depth."""
        yield self
        for node in self.nodes:
            for graph in node.subgraphs:
                yield from graph.graphs()


def read_graph(encoded: Bytes, fetch: Fetch) -> Graph:
    """A graph of a file. Raises FormatError or UnsupportedError."""
    fields = _core.onnx_fields(Graph.NAME, encoded)
    tensors: dict[str, Tensor] = {}
    for each in fields.pop("initializer", ()):
        tensor = read_tensor(each, fetch)
        if tensor.name in tensors:
            raise FormatError(f"initializer {shown(tensor.name)} occurs twice", tensor=tensor.name)
        tensors[tensor.name] = tensor
    graph = Graph(
        fields.pop("name", ""),
        tuple(_read_node(each, fetch) for each in fields.pop("node", ())),
        tensors,
        tuple(map(read_value, fields.pop("input", ()))),
        tuple(map(read_value, fields.pop("output", ()))),
        tuple(map(read_value, fields.pop("value_info", ()))),
        fields,
    )
    return with_bytes(graph, encoded)


@dataclass(frozen=True, eq=False)
class Function(Message):
    """A FunctionProto: an operator that the model itself defines by nodes. `opsets` as in `Model`."""

    NAME = "FunctionProto"

    name: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    opsets: Mapping[str, int]
    rest: Mapping[str, Any] = field(default_factory=dict)

    @property
    def operator(self) -> str:
        """The operator that it defines, as `Node.operator`."""
        return _operator(self.domain, self.name)

    def fields(self) -> dict[str, Any]:
        """As `Message.fields`."""
        return {
            **self.rest,
            "name": self.name or None,
            "domain": self.domain or None,
            "input": self.inputs,
            "output": self.outputs,
            "node": contents(self.nodes),
            "opset_import": _opset_import(self.opsets),
        }


def _read_function(encoded: Bytes, fetch: Fetch) -> Function:
    fields = _core.onnx_fields(Function.NAME, encoded)
    function = Function(
        fields.pop("name", ""),
        fields.pop("domain", ""),
        tuple(fields.pop("input", ())),
        tuple(fields.pop("output", ())),
        tuple(_read_node(each, fetch) for each in fields.pop("node", ())),
        _read_opsets(fields.pop("opset_import", ())),
        fields,
    )
    return with_bytes(function, encoded)


def _opset_import(opsets: Mapping[str, int]) -> list[dict[str, Any]]:
    return [{"domain": domain, "version": version} for domain, version in opsets.items()]


def _read_opsets(entries: Sequence[Bytes]) -> dict[str, int]:
    opsets = [_core.onnx_fields("OperatorSetIdProto", each) for each in entries]
    return {each.get("domain", ""): each.get("version", 0) for each in opsets}


@dataclass(frozen=True, eq=False)
class Model(Message):
    """A ModelProto. `opsets`: domain -> version; the domain "" is ai.onnx. `metadata`: the metadata_props.

    Replace parts with `dataclasses.replace`; what is not replaced is written byte for byte as it was read.
    """

    NAME = "ModelProto"

    graph: Graph
    opsets: Mapping[str, int]
    ir_version: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    producer: str = ""
    functions: tuple[Function, ...] = ()
    rest: Mapping[str, Any] = field(default_factory=dict)
    path: str | None = None
    files: Mapping[str, FileReader] = field(default_factory=dict)  #: the files beside it that were opened, by location

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes of the graph, without those of subgraphs (`Graph.graphs`)."""
        return self.graph.nodes

    @property
    def inputs(self) -> tuple[Value, ...]:
        """The inputs that a caller must give: initializers, which old files list too, are left out."""
        return tuple(value for value in self.graph.inputs if value.name not in self.graph.tensors)

    @property
    def outputs(self) -> tuple[Value, ...]:
        """The outputs of the graph."""
        return self.graph.outputs

    @property
    def initializers(self) -> Mapping[str, npt.NDArray[Any]]:
        """Name -> array, made at each access: a read-only view of the file where the elements fill whole bytes."""
        return _Arrays(self.graph.tensors)

    @property
    def opset(self) -> int:
        """The version of ai.onnx."""
        return self.opsets.get("", self.opsets.get("ai.onnx", 1))

    def with_graph(self, graph: Graph, **opsets: int) -> Model:
        """The model with another graph and further or other opsets, by domain (`**{"com.microsoft": 1}`)."""
        return replace(self, graph=graph, opsets={**self.opsets, **opsets})

    def fields(self) -> dict[str, Any]:
        """As `Message.fields`."""
        return {
            **self.rest,
            "ir_version": self.ir_version,
            "producer_name": self.producer or None,
            "graph": self.graph.content(),
            "opset_import": _opset_import(self.opsets),
            "metadata_props": pairs(self.metadata),
            "functions": contents(self.functions),
        }

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"files": {}}  # open files stay in their process


class _Arrays(Mapping[str, npt.NDArray[Any]]):
    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self._tensors[name].array

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def read_model(encoded: Bytes, fetch: Fetch, path: str, files: Mapping[str, FileReader]) -> Model:
    """A model of a file whose bytes were checked (`_core.check_onnx`). Raises FormatError or UnsupportedError."""
    fields = _core.onnx_fields(Model.NAME, encoded)
    if "graph" not in fields:
        raise FormatError("the model has no graph")
    model = Model(
        read_graph(fields.pop("graph"), fetch),
        _read_opsets(fields.pop("opset_import", ())),
        fields.pop("ir_version", 0),
        read_pairs(fields.pop("metadata_props", ())),
        fields.pop("producer_name", ""),
        tuple(_read_function(each, fetch) for each in fields.pop("functions", ())),
        fields,
        path,
        files,
    )
    return with_bytes(model, encoded)
