"""Small networks in ONNX with random weights, and inputs for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lowbit.onnx import Graph, Model, Node, Tensor, Value

Array = npt.NDArray[Any]
Feed = dict[str, Array]


class Network:
    """Nodes and weights that are added one by one."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Node] = []
        self.tensors: dict[str, Tensor] = {}

    def weight(self, name: str, *shape: int, gain: float = 1.0, mean: float = 0.0) -> str:
        """A matrix or filter whose channels differ in size, scaled to keep the size of activations."""
        fan = int(np.prod(shape[1:])) if len(shape) != 2 else shape[0]
        values = self.rng.standard_normal(shape) * gain / np.sqrt(max(fan, 1)) + mean
        channels = shape[0] if len(shape) != 2 else shape[1]
        sizes = np.exp(0.5 * self.rng.standard_normal(channels))
        sizes = sizes.reshape(-1, *[1] * (len(shape) - 1)) if len(shape) != 2 else sizes
        return self.constant(name, (values * sizes).astype(np.float32))

    def constant(self, name: str, array: Array) -> str:
        """An initializer."""
        self.tensors[name] = Tensor.of(name, array)
        return name

    def add(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """A node with one output, which is also its name."""
        domain, _, operator = operator.rpartition(".")
        self.nodes.append(Node.of(operator, inputs, [output], name=f"{output}/{operator}", domain=domain, **attributes))
        return output

    def model(self, inputs: Sequence[Value], outputs: Sequence[Value], opset: int = 17, ir_version: int = 8) -> Model:
        """The model of all nodes."""
        graph = Graph("network", tuple(self.nodes), self.tensors, tuple(inputs), tuple(outputs))
        return Model(graph, {"": opset}, ir_version)


def conv_network(opset: int = 17) -> Model:
    """Convolutions with a residual connection, pooling, and a classifier."""
    net = Network(1)
    for name, shape in (("w1", (16, 3, 3, 3)), ("w2", (16, 16, 3, 3)), ("w3", (16, 16, 3, 3)), ("w4", (32, 16, 3, 3))):
        net.weight(name, *shape, gain=1.4)
        net.weight(f"b{name[1]}", shape[0], gain=0.1)
    pads = [1, 1, 1, 1]
    net.add("Relu", [net.add("Conv", ["x", "w1", "b1"], "c1", pads=pads)], "r1")
    net.add("MaxPool", ["r1"], "p1", kernel_shape=[2, 2], strides=[2, 2])
    net.add("Relu", [net.add("Conv", ["p1", "w2", "b2"], "c2", pads=pads)], "r2")
    net.add("Conv", ["r2", "w3", "b3"], "c3", pads=pads)
    net.add("Relu", [net.add("Add", ["c3", "p1"], "a3")], "r3")
    net.add("Relu", [net.add("Conv", ["r3", "w4", "b4"], "c4", pads=pads, strides=[2, 2])], "r4")
    net.add("GlobalAveragePool", ["r4"], "g")
    net.add("Flatten", ["g"], "f")
    net.weight("fc", 32, 10)
    net.weight("fcb", 10)
    net.add("Gemm", ["f", "fc", "fcb"], "y")
    shape = ["n", 3, 16, 16]
    return net.model([Value.of("x", np.float32, shape)], [Value.of("y", np.float32, ["n", 10])], opset)


def mixed_network(opset: int = 17) -> Model:
    """Operators between products: pools, products, sums with constants, concatenation, activations, slices."""
    net = Network(4)
    pads = [1, 1, 1, 1]
    net.add("Conv", ["x", net.weight("w1", 24, 3, 3, 3, gain=1.4)], "c1", pads=pads)
    net.add("LeakyRelu", ["c1"], "l", alpha=0.1)
    net.add(
        "Conv", ["l", net.weight("wd", 24, 1, 3, 3, gain=1.4), net.weight("bd", 24, gain=0.1)], "d", group=24, pads=pads
    )
    net.add("Sigmoid", ["d"], "s")
    net.add("Mul", ["d", "s"], "m")
    net.add("AveragePool", ["m"], "a", kernel_shape=[3, 3], strides=[2, 2], pads=pads)
    net.add("Conv", ["a", net.weight("w2", 24, 24, 1, 1, gain=1.4)], "c2")
    net.add("Concat", ["c2", "a"], "cat", axis=1)
    net.add("Add", ["cat", net.constant("shift", net.rng.standard_normal((1, 1, 8, 8)).astype(np.float32))], "sh")
    for name, values in (("begin", [8]), ("end", [40]), ("axes", [1])):
        net.constant(name, np.array(values))
    net.add("Slice", ["sh", "begin", "end", "axes"], "sl")
    net.add("ConvTranspose", ["sl", net.weight("wt", 32, 12, 2, 2), net.weight("bt", 24)], "t", strides=[2, 2], group=2)
    net.constant("low", np.array(-1, np.float32))
    net.constant("high", np.array(1, np.float32))
    net.add("Clip", ["t", "low", "high"], "cl")
    net.add("Transpose", [net.add("Conv", ["cl", net.weight("w3", 4, 24, 3, 3)], "c3")], "y", perm=[0, 2, 3, 1])
    shape = ["n", 3, 16, 16]
    return net.model([Value.of("x", np.float32, shape)], [Value.of("y", np.float32, ["n", 14, 14, 4])], opset)


def mlp(opset: int = 17) -> Model:
    """Three Gemm with Relu between; transB, alpha and beta occur."""
    net = Network(2)
    net.weight("w1", 40, 64, gain=1.4)
    net.weight("b1", 64, gain=0.2)
    net.weight("w2", 64, 48, gain=1.4)
    net.weight("b2", 64, gain=0.2)
    net.tensors["w2"] = Tensor.of("w2", np.ascontiguousarray(net.tensors["w2"].array))
    net.weight("w3", 64, 12)
    net.add("Relu", [net.add("Gemm", ["x", "w1", "b1"], "h1")], "r1")
    net.constant("w2t", np.ascontiguousarray(net.rng.standard_normal((48, 64)).astype(np.float32) / 8))
    net.weight("b2t", 48, gain=0.2)
    net.add("Relu", [net.add("Gemm", ["r1", "w2t", "b2t"], "h2", transB=1, alpha=1.5, beta=0.5)], "r2")
    net.weight("w4", 48, 12)
    net.add("Gemm", ["r2", "w4"], "y")
    for unused in ("w2", "b2", "w3"):
        del net.tensors[unused]
    return net.model([Value.of("x", np.float32, ["n", 40])], [Value.of("y", np.float32, ["n", 12])], opset)


WIDTH, HEADS, VOCABULARY = 32, 4, 50


def transformer(opset: int = 17) -> Model:
    """An embedding and two blocks of attention and Gelu, as PyTorch exports them."""
    net = Network(3)
    net.constant("table", net.rng.standard_normal((VOCABULARY, WIDTH)).astype(np.float32))
    net.constant("heads", np.array([0, 0, HEADS, WIDTH // HEADS], np.int64))
    net.constant("flat", np.array([0, 0, WIDTH], np.int64))
    net.constant("root", np.array((WIDTH // HEADS) ** -0.5, np.float32))
    for name, value in (("half", 0.5), ("one", 1.0), ("sqrt2", 2**0.5)):
        net.constant(name, np.array(value, np.float32))
    hidden = net.add("Gather", ["table", "ids"], "h")
    for layer in range(2):
        hidden = _block(net, hidden, f"l{layer}")
    net.add("MatMul", [hidden, net.weight("head", WIDTH, VOCABULARY)], "y")
    values = [Value.of("ids", np.int64, ["n", "t"])], [Value.of("y", np.float32, ["n", "t", VOCABULARY])]
    return net.model(*values, opset)


def _norm(net: Network, value: str, name: str) -> str:
    scale = net.constant(f"{name}_s", (1 + 0.3 * net.rng.standard_normal(WIDTH)).astype(np.float32))
    bias = net.constant(f"{name}_b", (0.1 * net.rng.standard_normal(WIDTH)).astype(np.float32))
    net.tensors[scale].array  # noqa: B018
    return net.add("LayerNormalization", [value, scale, bias], name, axis=-1)


def _linear(net: Network, value: str, name: str, rows: int, columns: int) -> str:
    product = net.add("MatMul", [value, net.weight(f"{name}_w", rows, columns)], f"{name}_m")
    return net.add("Add", [product, net.weight(f"{name}_b", columns, gain=0.1)], name)


def _block(net: Network, hidden: str, name: str) -> str:
    normed = _norm(net, hidden, f"{name}_n1")
    heads = []
    for part, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        linear = _linear(net, normed, f"{name}_{part}", WIDTH, WIDTH)
        split = net.add("Reshape", [linear, "heads"], f"{name}_{part}r")
        heads.append(net.add("Transpose", [split], f"{name}_{part}t", perm=perm))
    scores = net.add("Mul", [net.add("MatMul", heads[:2], f"{name}_qk"), "root"], f"{name}_sc")
    shares = net.add("Softmax", [scores], f"{name}_sm", axis=-1)
    mixed = net.add("Transpose", [net.add("MatMul", [shares, heads[2]], f"{name}_av")], f"{name}_at", perm=[0, 2, 1, 3])
    attended = _linear(net, net.add("Reshape", [mixed, "flat"], f"{name}_af"), f"{name}_o", WIDTH, WIDTH)
    hidden = net.add("Add", [hidden, attended], f"{name}_h1")
    up = _linear(net, _norm(net, hidden, f"{name}_n2"), f"{name}_up", WIDTH, 4 * WIDTH)
    erf = net.add("Erf", [net.add("Div", [up, "sqrt2"], f"{name}_g0")], f"{name}_g1")
    half = net.add("Mul", [up, net.add("Add", [erf, "one"], f"{name}_g2")], f"{name}_g3")
    gelu = net.add("Mul", [half, "half"], f"{name}_g4")
    return net.add("Add", [hidden, _linear(net, gelu, f"{name}_down", 4 * WIDTH, WIDTH)], f"{name}_h2")


def inputs(model: Model, runs: int, seed: int) -> list[Feed]:
    """Typical inputs: images with smooth parts, positive and negative vectors, ids."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(runs):
        feed = {}
        for value in model.inputs:
            shape = [dim if isinstance(dim, int) else {"n": 2, "t": 12}.get(str(dim), 1) for dim in value.shape or ()]
            if value.dtype == np.float32:
                feed[value.name] = np.abs(rng.standard_normal(shape)).cumsum(-1).astype(np.float32) / 8 - 0.5
            else:
                feed[value.name] = rng.integers(0, VOCABULARY, shape).astype(value.dtype)
        found.append(feed)
    return found


NETWORKS: dict[str, Callable[[], Model]] = {
    "conv": conv_network,
    "mixed": mixed_network,
    "mlp": mlp,
    "transformer": transformer,
}
