"""The architecture and the network of a GGUF file, from its metadata."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lowbit.arch.base import Architecture
from lowbit.arch.model_spec import ModelSpec
from lowbit.arch.registry import architectures
from lowbit.arch.rope import Tensors
from lowbit.base import arguments
from lowbit.base.errors import FormatError, UnsupportedError

#: general.type of GGUF files that are not models.
_OTHER_TYPES = {
    "adapter": "a LoRA adapter: use --lora with the PEFT adapter that it was made from",
    "imatrix": "an importance matrix: use it with --imatrix",
    "mmproj": "the image encoder of a multimodal model",
}


def spec(metadata: Mapping[str, Any], tensors: Tensors) -> ModelSpec:
    """The network that a GGUF file describes, by its metadata and the tensors that scale rotary embeddings.

    Raises UnsupportedError for an unknown architecture or settings that its graph cannot express, FormatError for
    missing or wrong keys.
    """
    return of_metadata(metadata, arguments.mapping("tensors", tensors)).spec(metadata, tensors)


def of_metadata(metadata: Mapping[str, Any], tensors: Iterable[str] = ()) -> Architecture:
    """The architecture of a GGUF file. tensors: names, for the error about an unknown architecture.

    Raises UnsupportedError for an unknown architecture and for files that are not models, FormatError if the key
    is missing.
    """
    name = arguments.mapping("metadata", metadata).get("general.architecture")
    kind = metadata.get("general.type")
    if isinstance(kind, str) and kind in _OTHER_TYPES:
        raise UnsupportedError("general.type:", key="general.type", expected="a model", found=_OTHER_TYPES[kind])
    if not isinstance(name, str):
        raise FormatError("metadata has no general.architecture", key="general.architecture")
    arch = architectures().get(name)
    if arch is None:
        from lowbit.arch.unknown import unknown_name

        raise unknown_name(name, tensors)
    return arch
