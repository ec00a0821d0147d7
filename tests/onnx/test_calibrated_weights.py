"""Mode "weight-only" with calibration data, and the choice among variants."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from lowbit.onnx import Graph, Model, Node, NodeReport, OnnxOptions, Tensor, Value
from lowbit.onnx.channel_values import ChannelValues
from lowbit.onnx.variants import closest, variants
from lowbit.onnx.weight_only import weight_only

Array = npt.NDArray[Any]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def model(nodes: list[Node], **tensors: Array) -> Model:
    """All results of nodes but "t" are outputs."""
    made = {name: Tensor.of(name, np.ascontiguousarray(array)) for name, array in tensors.items()}
    values = (Value.of("x", np.float32), Value.of("i", np.int64))
    outputs = tuple(Value.of(node.outputs[0], np.float32) for node in nodes if node.outputs[0] != "t")
    return Model(Graph("graph", tuple(nodes), made, values, outputs), {"": 17}, 8)


def around(means: Array) -> ChannelValues:
    """Channels with these means, which vary more the later they are."""
    step = np.linspace(0.1, 2, len(means))
    found = ChannelValues(-1)
    found.add(np.stack([means - step, means + step]))
    return found


def weights(found: Model) -> list[bytes]:
    return [array.tobytes() for array in found.initializers.values()]


def test_importances_are_mean_squares() -> None:
    nodes = [Node.of("MatMul", ["x", "w"], ["y"], name="p")]
    given, channels = model(nodes, w=normal(64, 8)), {("x", -1): around(np.linspace(-2, 2, 64))}
    squares = np.linspace(-2, 2, 64) ** 2 + np.linspace(0.1, 2, 64) ** 2
    squares += 0.05 * squares.mean()
    importances = {"p": (squares / squares.max()).astype(np.float32)}
    fitted, _ = weight_only(given, OnnxOptions(mode="weight-only"), channels)
    explicit, _ = weight_only(given, OnnxOptions(mode="weight-only", importances=importances))
    assert weights(fitted) == weights(explicit)
    plain, _ = weight_only(given, OnnxOptions(mode="weight-only"))
    assert weights(fitted) != weights(plain)
    rounded, _ = weight_only(given, OnnxOptions(mode="weight-only", method="round"), channels)
    assert weights(rounded) == weights(weight_only(given, OnnxOptions(mode="weight-only", method="round"))[0])


@pytest.mark.parametrize("form", ["Transpose", "Gemm"])
def test_a_table_that_is_the_output_matrix_has_its_importances(form: str) -> None:
    """Stored once, with the importances of the product, although the table comes first."""
    nodes = [Node.of("Gather", ["w", "i"], ["h"], name="table")]
    if form == "Transpose":
        nodes += [Node.of("Transpose", ["w"], ["t"], perm=[1, 0]), Node.of("MatMul", ["x", "t"], ["y"], name="head")]
    else:
        nodes += [Node.of("Gemm", ["x", "w"], ["y"], name="head", transB=1)]
    given, channels = model(nodes, w=normal(100, 64)), {("x", -1): around(np.linspace(-2, 2, 64))}
    fitted, reports = weight_only(given, OnnxOptions(mode="weight-only"), channels)
    assert sum(tensor.nbytes for tensor in fitted.graph.tensors.values()) < 100 * (32 + 8) + 100
    assert [report.is_quantized for report in reports] == [True, True]
    plain, _ = weight_only(given, OnnxOptions(mode="weight-only"))
    assert weights(fitted) != weights(plain)


def test_values_that_are_not_finite_do_not_count() -> None:
    nodes = [Node.of("MatMul", ["x", "w"], ["y"])]
    channels = ChannelValues(-1)
    channels.add(np.full((1, 64), np.inf))
    given, options = model(nodes, w=normal(64, 8)), OnnxOptions(mode="weight-only")
    assert weights(weight_only(given, options, {("x", -1): channels})[0]) == weights(weight_only(given, options)[0])


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"mode": "static"}, 4),
        ({"mode": "static", "search": False}, 2),
        ({"mode": "static", "search": False, "bias_correction": False}, 1),
        ({"mode": "weight-only"}, 2),
        ({"mode": "weight-only", "method": "round"}, 1),
        ({"mode": "weight-only", "importances": {"p": np.ones(3, np.float32)}}, 1),
    ],
)
def test_what_was_asked_for_is_not_replaced(options: dict[str, Any], count: int) -> None:
    given = OnnxOptions(**options)
    found = variants(given)
    assert found[0] == given
    assert len(found) == count
    assert not any(each.search and not given.search for each in found)
    assert not any(each.bias_correction and not given.bias_correction for each in found)


@pytest.mark.parametrize(
    ("errors", "best"), [([3, 1, 2, 1], 1), ([1, 1, 1, 1], 0), ([np.inf, np.inf, np.inf, np.inf], 0)]
)
def test_the_closest_is_taken(errors: list[float], best: int) -> None:
    tried = variants(OnnxOptions(mode="static"))
    models = [model([Node.of("Relu", ["x"], [f"y{at}"])]) for at in range(4)]

    def change(options: OnnxOptions) -> tuple[Model, list[NodeReport]]:
        return models[tried.index(options)], []

    class Comparison:
        def error(self, found: Model) -> float:
            return errors[models.index(found)]

    options, (found, _) = closest(tried, change, Comparison())  # type: ignore[arg-type]
    assert options is tried[best]
    assert found is models[best]


def test_a_tied_table_that_nothing_reads() -> None:
    nodes = [
        Node.of("Gather", ["w", "i"], ["unused"], name="table"),
        Node.of("Gemm", ["x", "w"], ["y"], name="head", transB=1),
    ]
    given = model(nodes, w=normal(100, 64))
    given = given.with_graph(replace(given.graph, outputs=given.graph.outputs[1:]))
    found, _ = weight_only(given, OnnxOptions(mode="weight-only"))
    assert [node.operator for node in found.nodes] == ["com.microsoft.MatMulNBits"]
