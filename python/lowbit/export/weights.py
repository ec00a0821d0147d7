"""The network's matrices in the form that a graph has them: what multiplies with them, and what reads their rows.

| class | product | rows of an embedding |
| --- | --- | --- |
| FloatMatrix | MatMul | Gather |
| BlocksMatrix, layout genai | com.microsoft.MatMulNBits | com.microsoft.GatherBlockQuantized |
| BlocksMatrix, layout standard | DequantizeLinear, MatMul | Gather of codes and scales, and their product |

Initializers are lazy: the writer asks for the bytes of one after the other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from lowbit.export.building import GraphBuilder, renamed
from lowbit.onnx.block_matrix import BlockMatrix, Part
from lowbit.onnx.dtypes import Bytes, pack
from lowbit.onnx.tensor import InPieces, Tensor
from lowbit.tensors.source import TensorSource, read, row_ranges

#: Weights that are converted at a time: 16 MiB as float32.
CHUNK_WEIGHTS = 4 << 20

#: The end of the name of codes that no operator of ai.onnx reads, as rows of bytes.
TABLE = "_codes_table"


class Matrix(ABC):
    """A matrix (outputs, inputs) of the network, under its GGUF name."""

    def __init__(self, source: TensorSource) -> None:
        self.source = source
        self._stored: dict[Any, Tensor] = {}

    @property
    def name(self) -> str:
        """Its GGUF name."""
        return self.source.name

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of outputs and inputs."""
        outputs, inputs = self.source.shape
        return outputs, inputs

    @property
    def nbytes(self) -> int:
        """Bytes of the initializers that the graph got."""
        return sum(tensor.nbytes for tensor in self._stored.values())

    @property
    def notes(self) -> list[str]:
        """What happened when it was written, one sentence each."""
        return []

    @property
    def error(self) -> float | None:
        """The 2-norm of the difference to the source, relative to the source's; None if it was not measured."""
        return None

    def _add(self, graph: GraphBuilder, tensor: Tensor) -> str:
        self._stored.setdefault(tensor.sharing, tensor)
        return graph.tensor(tensor)

    @abstractmethod
    def multiply(self, graph: GraphBuilder, x: str, name: str) -> str:
        """Adds the product of the rows of x with the matrix: (..., inputs) becomes (..., outputs)."""

    @abstractmethod
    def gather(self, graph: GraphBuilder, ids: str, name: str) -> str:
        """Adds the rows with these ids: (...) becomes (..., inputs)."""


class FloatMatrix(Matrix):
    """Floats. dtype: of the initializer; it is cast to the graph's dtype where they differ.

    as_rows: stored as (outputs, inputs) in any case. A Transpose makes an operand of it, which runtimes fold or fuse:
    so an output matrix is written row by row, and can be the embedding, too. Other matrices are stored as (inputs,
    outputs).
    """

    def __init__(self, source: TensorSource, dtype: np.dtype[Any], as_rows: bool) -> None:
        super().__init__(source)
        self.dtype = dtype
        self.as_rows = as_rows
        self._row_tensor: Tensor | None = None
        self._infinite = 0
        self._lost = self._total = 0.0

    @property
    def notes(self) -> list[str]:
        """Weights that exceed float16."""
        n = self._infinite
        return [f"{self.name}: {n} weights exceed float16 and became infinite"] if n else []

    @property
    def error(self) -> float | None:
        """Of weights that were rounded to fewer bits."""
        return (self._lost / self._total) ** 0.5 if self._total else None

    def multiply(self, graph: GraphBuilder, x: str, name: str) -> str:
        """MatMul."""
        if self.as_rows:
            weights = graph.node("Transpose", [self._rows(graph)], f"{self.name}/transposed", perm=[1, 0])
        else:
            tensor = Tensor(self.name, self.dtype, self.shape[::-1], self.columns)
            weights = self._add(graph, tensor)
        if self.dtype != graph.dtype:
            weights = graph.cast(weights, graph.dtype, f"{self.name}/cast")
        return graph.node("MatMul", [x, weights], name)

    def gather(self, graph: GraphBuilder, ids: str, name: str) -> str:
        """Gather."""
        if self.dtype == graph.dtype:
            return graph.node("Gather", [self._rows(graph), ids], name)
        rows = graph.node("Gather", [self._rows(graph), ids], f"{name}/rows")
        return graph.cast(rows, graph.dtype, name)

    def _rows(self, graph: GraphBuilder) -> str:
        if self._row_tensor is None:
            self._row_tensor = Tensor(self.name, self.dtype, self.shape, InPieces(self.row_pieces))
        return self._add(graph, self._row_tensor)

    def _floats(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The values in the dtype of the initializer."""
        with np.errstate(over="ignore"):
            floats = array.astype(self.dtype, copy=False)
        if self.dtype == np.float16 and array.dtype != np.float16:
            self._infinite += np.count_nonzero(np.isinf(floats)) - np.count_nonzero(np.isinf(array))
        if self.dtype not in (np.float32, array.dtype):
            wide, finite = array.astype(np.float64), np.isfinite(floats)
            self._lost += float(
                np.square(wide - floats.astype(np.float64), where=finite, out=np.zeros_like(wide)).sum()
            )
            self._total += float(np.square(wide).sum())
        return floats

    def row_pieces(self) -> Iterator[Bytes]:
        """The bytes in the order of rows, in pieces."""
        rows, columns = self.shape
        for start, stop in row_ranges(0, rows, columns, CHUNK_WEIGHTS):
            yield pack(self._floats(self.source.rows(start, stop)))

    def columns(self) -> Bytes:
        """The bytes in the order of columns."""
        return pack(np.ascontiguousarray(self._floats(read(self.source)).T))


class WithFloatRows(Matrix):
    """A matrix whose rows are read from floats, because the operator that reads rows cannot hold its blocks."""

    def __init__(self, product: Matrix, rows: FloatMatrix) -> None:
        super().__init__(product.source)
        self._product, self._rows = product, rows

    @property
    def nbytes(self) -> int:
        """Bytes of both forms, if the graph has both."""
        return self._product.nbytes + self._rows.nbytes

    @property
    def error(self) -> float | None:
        """That of the product."""
        return self._product.error

    def multiply(self, graph: GraphBuilder, x: str, name: str) -> str:
        """As the form in blocks."""
        return self._product.multiply(graph, x, name)

    def gather(self, graph: GraphBuilder, ids: str, name: str) -> str:
        """As floats."""
        return self._rows.gather(graph, ids, name)


class BlocksMatrix(Matrix):
    """A matrix in blocks. form: returns it for a layout of BlockMatrix, with names of tensors that begin with a text.

    is_standard: operators of ai.onnx, else those of com.microsoft, which hold a matrix with both uses once.
    """

    def __init__(
        self,
        source: TensorSource,
        form: Callable[[str, str], BlockMatrix],
        is_standard: bool,
        accuracy_level: int,
        measure: Callable[[], float | None],
    ) -> None:
        super().__init__(source)
        self._form = form
        self._is_standard = is_standard
        self._accuracy_level = accuracy_level
        self._measure = measure

    @cached_property
    def rows(self) -> BlockMatrix:
        """Codes in the order of rows."""
        return self._form("MatMulNBits", f"{self.name}_rows" if self._is_standard else self.name)

    @cached_property
    def columns(self) -> BlockMatrix:
        """Codes in the order of columns."""
        return self._form("DequantizeLinear", self.name)

    @property
    def error(self) -> float | None:
        """The error of the blocks; None if they are the source's."""
        return self._measure()

    def multiply(self, graph: GraphBuilder, x: str, name: str) -> str:
        """MatMulNBits, or DequantizeLinear and MatMul, which runtimes fuse."""
        form = self.columns if self._is_standard else self.rows
        return self._added(graph, form.product(x, name, accuracy_level=self._accuracy_level, name=name), name)

    def gather(self, graph: GraphBuilder, ids: str, name: str) -> str:
        """GatherBlockQuantized, or rows of bytes, from which codes are taken by arithmetic."""
        if not self._is_standard:
            return self._added(graph, self.rows.gather(ids, name, name=name), name)
        return self._standard_rows(graph, ids, name)

    def _standard_rows(self, graph: GraphBuilder, ids: str, name: str) -> str:
        """ai.onnx has no Gather of small integers."""
        form, (outputs, inputs) = self.rows, self.shape
        assert form.scales is not None
        blocks, size = form.num_blocks, form.block_size
        table = self._add(graph, renamed(form.codes, f"{self.rows.name}{TABLE}", (outputs, inputs * form.bits // 8)))
        codes = _unpacked(graph, table, ids, form.bits, f"{name}/codes")
        codes = graph.node("Reshape", [codes, graph.integers(0, 0, blocks, size)], f"{name}/codes_in_blocks")
        if form.zero_points is None:
            zeros = graph.number(1 << (form.bits - 1))
        else:
            zeros = _unpacked(graph, self._add(graph, form.zero_points), ids, form.bits, f"{name}/zeros")
            if 8 * form.zero_points.shape[1] != blocks * form.bits:
                ends = graph.integers(0), graph.integers(blocks), graph.integers(2)
                zeros = graph.node("Slice", [zeros, *ends], f"{name}/zeros_used")
            zeros = graph.node("Unsqueeze", [zeros, graph.integers(-1)], f"{name}/zeros_in_blocks")
        values = graph.node("Sub", [codes, zeros], f"{name}/shifted")
        values = graph.node(
            "Mul", [values, self._of_blocks(graph, form.scales, ids, f"{name}/scales")], f"{name}/parts"
        )
        if form.offsets is not None:
            offsets = self._of_blocks(graph, form.offsets, ids, f"{name}/offsets")
            values = graph.node("Add", [values, offsets], f"{name}/sums")
        return graph.node("Reshape", [values, graph.integers(0, 0, inputs)], name)

    def _of_blocks(self, graph: GraphBuilder, tensor: Tensor, ids: str, name: str) -> str:
        """The rows of a tensor (outputs, blocks) as (..., blocks, 1)."""
        rows = graph.node("Gather", [self._add(graph, tensor), ids], f"{name}_of_rows")
        return graph.node("Unsqueeze", [rows, graph.integers(-1)], name)

    def _added(self, graph: GraphBuilder, part: Part, name: str) -> str:
        graph.add(part)
        for tensor in part.tensors:
            if tensor.name.startswith(self.name):
                self._add(graph, tensor)
        return name


def _unpacked(graph: GraphBuilder, table: str, ids: str, bits: int, name: str) -> str:
    """Rows of a table of bytes as floats, (batch, tokens, codes): one for each code."""
    rows = graph.node("Gather", [table, ids], f"{name}_bytes")
    values = graph.cast(rows, graph.dtype, f"{name}_values" if bits < 8 else name)
    parts: list[str] = []
    for _ in range(8 // bits - 1):  # the lowest bits first
        at = f"{name}_{len(parts)}"
        quotient = graph.node("Mul", [values, graph.number(2.0**-bits)], f"{at}_quotient")
        rest = graph.node("Floor", [quotient], f"{at}_rest")
        without = graph.node("Mul", [rest, graph.number(2.0**bits)], f"{at}_without")
        parts.append(graph.node("Sub", [values, without], at))
        values = rest
    if not parts:
        return values
    parts = [graph.node("Unsqueeze", [part, graph.integers(-1)], f"{part}_last") for part in [*parts, values]]
    values = graph.node("Concat", parts, f"{name}_pairs", axis=-1)
    return graph.node("Reshape", [values, graph.integers(0, 0, -1)], name)
