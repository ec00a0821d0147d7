"""Tensors of a GGUF file in the form of a Hugging Face checkpoint. `Architecture.hf_config` makes config.json."""

from __future__ import annotations

from collections.abc import Mapping

from lowbit.arch.base import Architecture
from lowbit.base.errors import FormatError, UnsupportedError
from lowbit.hf.config import Config
from lowbit.tensors.source import Renamed, TensorSource, read


def hf_tensors(arch: Architecture, tensors: Mapping[str, TensorSource], config: Config) -> list[TensorSource]:
    """The tensors of a GGUF file as in a checkpoint with this config.json, ordered by name.

    Raises FormatError for missing or misshapen tensors, UnsupportedError for tensors that the checkpoint cannot hold.
    """
    sizes = arch.sizes(config)
    if sizes.layers > len(tensors):
        raise FormatError(
            f"{arch.name}.block_count is {sizes.layers}, but there are only {len(tensors)} tensors",
            key=f"{arch.name}.block_count",
        )
    computed = {tensor.name: tensor for tensor in arch.extra_tensors(config)}
    places = {gguf: (entry, name) for name, (entry, gguf) in arch.table(sizes.layers).items()}
    if missing := sorted(gguf for gguf, (entry, _) in places.items() if entry.required and gguf not in tensors):
        raise FormatError(f"{len(missing)} tensors are missing: {', '.join(missing[:4])}", tensor=missing[0])
    found: list[TensorSource] = []
    for gguf_name, source in tensors.items():
        if gguf_name in computed and _same(computed[gguf_name], source):
            continue
        if gguf_name not in places:
            raise UnsupportedError(
                f"tensor {gguf_name}: a {config.text('model_type')} checkpoint cannot hold it", tensor=gguf_name
            )
        entry, name = places[gguf_name]
        shape = tuple(sizes.named[size] for size in entry.shape)
        if source.shape != shape:
            raise FormatError(
                f"tensor {gguf_name} has shape {list(source.shape)}",
                tensor=gguf_name,
                expected=f"{list(shape)} from the metadata",
                found=list(source.shape),
            )
        found.append(Renamed(name, arch.restore(source, config)))
    return sorted(found, key=lambda tensor: tensor.name)


def _same(a: TensorSource, b: TensorSource) -> bool:
    """Whether two small tensors are equal, bit for bit."""
    return a.shape == b.shape and read(a).tobytes() == read(b).tobytes()
