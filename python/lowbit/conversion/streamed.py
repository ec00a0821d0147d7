"""Logits of networks whose matrices are read in pieces. One pass of a model of any size takes a few megabytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lowbit import _core
from lowbit.arch.model_spec import ModelSpec
from lowbit.tensors.qtensor import QTensor, bytes_of, format_of

#: Takes a matrix's name, first, number, and the sequence whose tokens the rows are multiplied with. Returns the format
#: of rows [first, first + number), and their bytes or floats (number, ...).
RowSource = Callable[[str, int, int, int], tuple[str, npt.NDArray[Any]]]


class Network(NamedTuple):
    """A network before its matrices are read: description, vectors, shapes of the matrices."""

    spec: ModelSpec
    vectors: Mapping[str, QTensor | npt.NDArray[Any]]
    matrices: Mapping[str, tuple[int, ...]]

    def equals(self, other: Network) -> bool:
        """Whether the two networks are equal except for their matrices."""
        return (
            self.spec == other.spec
            and self.matrices == other.matrices
            and self.vectors.keys() == other.vectors.keys()
            and all(_same(vector, other.vectors[name]) for name, vector in self.vectors.items())
        )

    def logits(self, ids: Sequence[int], rows: RowSource, sequences: int, threads: int) -> npt.NDArray[np.float32]:
        """Logits after each of the tokens in float32, (sequences, tokens, vocabulary).

        Every sequence has the same tokens; `rows` can give each sequence other weights. Each matrix is requested once,
        in the order of the products, except the embeddings of the tokens, which are requested first.
        """
        num = len(ids)
        model = self._model(num, sequences, rows, threads)
        tokens = np.tile(np.asarray(ids, np.int32), sequences)
        positions = np.tile(np.arange(num, dtype=np.int32), sequences)
        owners = np.repeat(np.arange(sequences, dtype=np.int32), num)
        logits = model.forward(tokens, positions, owners, np.ones(len(tokens), bool), num)
        return logits.reshape(sequences, num, -1)

    def check(self) -> None:
        """Raises the errors of `lowbit.load` for tensors that are missing or do not fit the description."""
        self._model(1, 1, _no_rows, 1)

    def _model(self, length: int, sequences: int, rows: RowSource, threads: int) -> _core.Model:
        tensors: dict[str, tuple[str, list[int], npt.NDArray[Any] | None]]
        tensors = {name: (format_of(v), list(v.shape), bytes_of(v)) for name, v in self.vectors.items()}
        tensors |= {name: ("", list(shape), None) for name, shape in self.matrices.items()}
        return _core.Model(self.spec, tensors, "f32", threads, length, sequences, rows)


def _no_rows(name: str, first: int, number: int, sequence: int) -> tuple[str, npt.NDArray[Any]]:
    raise AssertionError("a network that is only checked multiplies nothing")


def _same(a: QTensor | npt.NDArray[Any], b: QTensor | npt.NDArray[Any]) -> bool:
    return format_of(a) == format_of(b) and bytes_of(a).tobytes() == bytes_of(b).tobytes()
