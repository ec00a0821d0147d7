"""What `lowbit.onnx.quantize` did: node by node, and in total."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields

#: The action of a node that was not quantized.
FLOAT = "float"


@dataclass(frozen=True)
class NodeReport:
    """A node of an operator that the mode can quantize.

    name: the node's name, or its first output. action: how it was quantized ("int4 block 32"), or "float".
    reason: why it stays float. bytes_before, bytes_after: of its weights.
    error: of the weights, or of the output in a sensitivity report: the 2-norm of the difference, relative to that of
        the float values.
    """

    name: str
    operator: str
    action: str
    reason: str = ""
    bytes_before: int = 0
    bytes_after: int = 0
    error: float | None = None

    def measured(self) -> NodeReport:
        """The report with its error, also if that is known only when the weights were quantized."""
        return self

    @property
    def is_quantized(self) -> bool:
        """Whether the node is not float any more."""
        return self.action != FLOAT


@dataclass(frozen=True)
class PendingReport(NodeReport):
    """The report of a node whose weights are quantized when they are written. measure: returns the error."""

    measure: Callable[[], float] = field(default=lambda: math.nan, repr=False, compare=False)

    def measured(self) -> NodeReport:
        """As in `NodeReport`. Quantizes the weights if they were not written."""
        values = {each.name: getattr(self, each.name) for each in fields(NodeReport)}
        return NodeReport(**values | {"error": self.measure()})


@dataclass(frozen=True)
class QuantizeReport:
    """The result of `lowbit.onnx.quantize`.

    bytes_before, bytes_after: the model and the files beside it. error: of the worst output, relative to its 2-norm, if
    it was measured (`max_error`).
    """

    path: str
    mode: str
    nodes: list[NodeReport]
    bytes_before: int
    bytes_after: int
    notes: list[str] = field(default_factory=list)
    error: float | None = None

    @property
    def quantized(self) -> list[NodeReport]:
        """The nodes that were quantized."""
        return [node for node in self.nodes if node.is_quantized]

    @property
    def kept(self) -> list[NodeReport]:
        """The nodes that stay float, each with a reason."""
        return [node for node in self.nodes if not node.is_quantized]
