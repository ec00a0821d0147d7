"""What mode "static" makes of statistics of channels: SmoothQuant, and the means of results, against NumPy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_networks as networks
import pytest

from lowbit.onnx import Model, Node, OnnxOptions
from lowbit.onnx.channel_values import ChannelValues, mean_shift, weight_importance
from lowbit.onnx.channels import quantize_channels
from lowbit.onnx.rewriting import Scope
from lowbit.onnx.smooth import smoothed, smoothed_inputs
from lowbit.onnx.static_plan import make_plan

Array = npt.NDArray[Any]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def operators(model: Model) -> Counter[str]:
    return Counter(node.operator for node in model.nodes)


def node_of(model: Model, operator: str) -> Node:
    return next(node for node in model.nodes if node.operator == operator)


def maker(model: Model, value: str) -> Node:
    (node,) = (node for node in model.nodes if value in node.outputs)
    return node


def array(model: Model, name: str) -> Array:
    return model.initializers[name]


def brute_force(node: Node, weight: Array, means: Array) -> Array:
    """The result of a convolution, far from borders, of an input that has the channel's mean everywhere."""
    group = node.get("group", 1)
    found = np.zeros(weight.shape[0])
    for out in range(weight.shape[0]):
        first = out // (weight.shape[0] // group) * weight.shape[1]
        for channel in range(weight.shape[1]):
            found[out] += means[first + channel] * weight[out, channel].sum()
    return found


@pytest.mark.parametrize("group", [1, 2])
def test_the_mean_of_a_convolution(group: int) -> None:
    node = Node.of("Conv", ["x", "w"], ["y"], group=group)
    weight, means = normal(6, 4 // group, 3, 3), normal(4).astype(np.float64)
    np.testing.assert_allclose(mean_shift(node, weight, means), brute_force(node, weight, means), rtol=1e-4)


def test_the_mean_of_a_transposed_convolution() -> None:
    """Upsampling by 2 with a filter of 2 x 2: each position of the result sees one tap."""
    node = Node.of("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], group=2)
    weight, means = normal(4, 3, 2, 2), normal(4).astype(np.float64)
    tiles = np.einsum("c,cokl->cokl", means, weight)
    expected = np.concatenate([tiles[:2].sum(axis=0).mean(axis=(1, 2)), tiles[2:].sum(axis=0).mean(axis=(1, 2))])
    np.testing.assert_allclose(mean_shift(node, weight, means), expected, rtol=1e-6)


def smooth(model: Model, largest: Mapping[str, Array], share: float = 0.5) -> Model:
    scope = Scope(model)
    scope.enter(model.graph)
    plan = make_plan(model, OnnxOptions(mode="static"), scope, {})
    groups = {name: nodes for name, nodes in smoothed_inputs(plan, scope).items() if name in largest}
    assert {*groups} == {*largest}
    return smoothed(model, plan, scope, largest, groups, share)


def test_smoothing_goes_into_the_normalization() -> None:
    base = networks.transformer()
    largest = np.exp(np.random.default_rng(0).normal(size=networks.WIDTH))
    model = smooth(base, {"l0_n1": largest})
    assert operators(model) == operators(base)
    norm = maker(model, "l0_n1")
    factors = array(base, "l0_n1_s") / array(model, norm.inputs[1])
    np.testing.assert_allclose(array(base, "l0_n1_b") / array(model, norm.inputs[2]), factors, rtol=1e-5)
    rows = []
    for part in "qkv":
        product = maker(model, f"l0_{part}_m")
        weight = array(base, f"l0_{part}_w")
        rows.append(np.abs(weight).max(axis=1))
        np.testing.assert_allclose(array(model, product.inputs[1]), weight * factors[:, None], rtol=1e-5)
    np.testing.assert_allclose(factors, np.sqrt(largest / np.max(rows, axis=0)), rtol=1e-5)


def test_smoothing_needs_a_product_where_nothing_can_take_it() -> None:
    base = networks.mlp()
    largest = np.linspace(0, 3, 40)
    model = smooth(base, {"x": largest}, share=0.8)
    assert operators(model) - operators(base) == {"Mul": 1}
    inverse = array(model, node_of(model, "Mul").inputs[1]).astype(np.float64)
    assert node_of(model, "Gemm").inputs[0] == node_of(model, "Mul").outputs[0]
    weight = array(model, node_of(model, "Gemm").inputs[1])
    np.testing.assert_allclose(inverse[:, None] * weight, array(base, "w1"), rtol=1e-5)
    assert inverse[0] == 1  # a channel that is always zero


def test_values_of_channels() -> None:
    values = [normal(2, 3, 4), normal(1, 3, 5, seed=1)]
    found = ChannelValues(1)
    for each in values:
        found.add(each)
    rows = np.concatenate([each.transpose(0, 2, 1).reshape(-1, 3) for each in values])
    assert found.means is not None
    np.testing.assert_allclose(found.means, rows.mean(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(found.largest, np.abs(rows).max(axis=0))


def seen(values: Array, axis: int = -1) -> ChannelValues:
    found = ChannelValues(axis)
    found.add(values)
    return found


@pytest.mark.parametrize("per_channel", [True, False])
def test_errors_count_as_much_as_the_input_varies(per_channel: bool) -> None:
    """The error of results, less the part that bias correction takes away, is smaller than with equal counts."""
    rng = np.random.default_rng(0)
    weight = normal(64, 16)
    inputs = rng.standard_normal((1000, 64)) * np.exp(1.5 * rng.standard_normal(64)) + 1
    counts = weight_importance(Node.of("MatMul", ["x", "w"], ["y"]), weight.shape, seen(inputs), True)
    assert counts is not None
    errors = []
    for each in (counts, None):
        found = quantize_channels(weight, (0,) if per_channel else (0, 1), True, each)
        assert found is not None
        lost = inputs @ (found.codes(weight) * found.scales - weight)
        errors.append(np.square(lost - lost.mean(axis=0)).sum())
    assert errors[0] < 0.97 * errors[1]


@pytest.mark.parametrize(
    ("operator", "shape", "attributes", "axis"),
    [
        ("MatMul", (4, 6), {}, -1),
        ("Gemm", (6, 4), {"transB": 1}, -1),
        ("Conv", (6, 4, 3, 3), {}, 1),
        ("Conv", (6, 2, 3), {"group": 2}, 1),
        ("ConvTranspose", (4, 3, 2, 2), {"group": 2}, 1),
    ],
)
@pytest.mark.parametrize("is_corrected", [True, False])
def test_importance_of_each_weight(
    operator: str, shape: tuple[int, ...], attributes: dict[str, int], axis: int, is_corrected: bool
) -> None:
    """Weights get the variance, or mean square, of the input channel that they are multiplied with."""
    values = (normal(50, 4) + np.array([2, 0, 1, 0])) * [1, 2, 3, 4]
    channels = seen(values[..., None] if axis == 1 else values, axis)
    counts = weight_importance(Node.of(operator, ["x", "w"], ["y"], **attributes), shape, channels, is_corrected)
    assert counts is not None
    expected = values.var(axis=0) if is_corrected else np.square(values).mean(axis=0)
    expected += 0.05 * expected.mean()
    expected /= expected.max()
    wide = np.broadcast_to(counts, shape)
    for index in np.ndindex(shape):
        if operator == "Conv":
            channel = index[1] + index[0] // (shape[0] // attributes.get("group", 1)) * shape[1]
        else:
            channel = index[1] if attributes.get("transB") else index[0]
        assert wide[index] == pytest.approx(expected[channel])


def test_inputs_that_never_vary_leave_the_counts_equal() -> None:
    node = Node.of("MatMul", ["x", "w"], ["y"])
    assert weight_importance(node, (4, 6), seen(np.ones((3, 4))), True) is None
    assert weight_importance(node, (4, 6), ChannelValues(-1), True) is None
    assert weight_importance(node, (2, 4, 6), seen(normal(3, 4)), True) is None


def test_the_scale_is_the_best_one_for_its_codes() -> None:
    weight, counts = normal(4, 200), np.exp(2 * normal(200, seed=1)).astype(np.float64)
    found = quantize_channels(weight, (1,), True, counts)
    assert found is not None
    codes = found.codes(weight).astype(np.float64)
    best = (counts * weight * codes).sum(axis=1) / (counts * codes * codes).sum(axis=1)
    np.testing.assert_allclose(found.scales[:, 0], best, rtol=1e-5)
