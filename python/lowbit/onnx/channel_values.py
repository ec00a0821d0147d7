"""Statistics of the channels that a product sums over, and what they are used for.

Errors of weights count as much as the input that they are multiplied with, so scales are fitted with that as
importance. Biases make up for what rounded weights do to the mean of results.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from lowbit.onnx.graph import Node

Vector = npt.NDArray[np.float64]
#: The importance of a channel that is always the same, relative to the mean one.
_LEAST_IMPORTANCE = 0.05


class ChannelValues:
    """The means, variances and largest magnitudes of the channels along an axis."""

    def __init__(self, axis: int) -> None:
        self._axis = axis
        self._sums: Vector | None = None
        self._squares: Vector = np.zeros(1)
        self._count = 0
        self.largest: Vector = np.zeros(1)

    def add(self, values: npt.NDArray[Any]) -> None:
        """The values of a run."""
        if not values.size:
            return
        rows = np.moveaxis(values, self._axis, -1).reshape(-1, values.shape[self._axis]).astype(np.float64)
        sums = rows.sum(axis=0)
        self._sums = sums if self._sums is None else self._sums + sums
        self._squares = self._squares + np.square(rows).sum(axis=0)
        self._count += len(rows)
        self.largest = np.maximum(self.largest, np.abs(rows).max(axis=0))

    @property
    def means(self) -> Vector | None:
        """The mean of each channel, None if nothing was seen."""
        return None if self._sums is None else self._sums / self._count

    @property
    def squares(self) -> Vector | None:
        """The mean square of each channel, None if nothing was seen."""
        return None if self._sums is None else self._squares / self._count


#: The statistics of products' inputs: (name, axis) -> values.
Channels = Mapping[tuple[str, int], ChannelValues]


def channels_of(node: Node, channels: Channels) -> ChannelValues | None:
    """The statistics of a product's input, if there are any."""
    axis = channel_axis(node)
    return None if axis is None else channels.get((node.inputs[0], axis))


def weight_importance(
    node: Node, shape: tuple[int, ...], channels: ChannelValues | None, is_corrected: bool
) -> Vector | None:
    """How much an error of each weight of a product counts, to be broadcast to the weight; None if it is unknown.

    is_corrected: a bias makes up for the mean of the errors, so that only what varies counts.
    """
    if channels is None or (len(shape) != 2 and node.op_type in ("MatMul", "Gemm")):
        return None
    squares, means = channels.squares, channels.means
    if squares is None or means is None or not np.isfinite(squares).all():
        return None
    values = np.maximum(squares - np.square(means), 0) if is_corrected else squares
    values = values + _LEAST_IMPORTANCE * values.mean()  # channels that were not seen may come
    if not values.any():
        return None
    values = values / values.max()
    if node.op_type in ("MatMul", "Gemm"):
        wide = values if node.get("transB", 0) else values[:, None]
    elif node.op_type == "ConvTranspose":
        wide = values.reshape(-1, *(1 for _ in shape[1:]))
    else:
        groups = values.reshape(node.get("group", 1), -1)
        wide = np.repeat(groups, shape[0] // len(groups), axis=0).reshape(shape[0], -1, *(1 for _ in shape[2:]))
    return np.asarray(wide)


def channel_axis(node: Node) -> int | None:
    """The axis of a product's input that its sum runs over; None for Gemm with transA."""
    if node.op_type in ("Conv", "ConvTranspose"):
        return 1
    return None if node.get("transA", 0) else -1


def mean_shift(node: Node, difference: npt.NDArray[Any], means: Vector) -> Vector | None:
    """The mean that a difference of the weight adds to each channel of a product's result."""
    difference = difference.astype(np.float64)
    if node.op_type in ("MatMul", "Gemm"):
        if difference.ndim != 2:
            return None
        matrix = difference.T if node.get("transB", 0) else difference
        return np.asarray(means @ matrix) if len(means) == len(matrix) else None
    taps = difference.sum(axis=tuple(range(2, difference.ndim)))
    groups = node.get("group", 1)
    if node.op_type == "Conv":
        if taps.shape[1] * groups != len(means):
            return None
        parts = zip(taps.reshape(groups, -1, taps.shape[1]), means.reshape(groups, -1), strict=True)
        sums: Vector = np.concatenate([part @ mean for part, mean in parts])
        return sums
    parts = zip(taps.reshape(groups, -1, taps.shape[1]), means.reshape(groups, -1), strict=True)
    # A position of the result gets one of the taps for each step of the stride.
    sums = np.concatenate([mean @ part for part, mean in parts])
    return np.asarray(sums / math.prod(node.get("strides", (1,))))
