"""Architectures: code that the families share, and one file per family in `families`."""

from lowbit.arch.base import Architecture
from lowbit.arch.metadata import of_metadata, spec
from lowbit.arch.registry import architectures, hf_classes, register
from lowbit.arch.table import DENSE_GLOBAL, DENSE_LAYER, Sizes, Tensor

__all__ = [
    "DENSE_GLOBAL",
    "DENSE_LAYER",
    "Architecture",
    "Sizes",
    "Tensor",
    "architectures",
    "hf_classes",
    "of_metadata",
    "register",
    "spec",
]
