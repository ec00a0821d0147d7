"""config.json of a folder with an ONNX model; without one, it is made from genai_config.json and the graph."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.arch.registry import hf_classes
from lowbit.base.errors import FileError, FormatError, UnsupportedError
from lowbit.base.paths import is_file
from lowbit.base.quoting import quoted
from lowbit.export.genai_config import REQUIRED, TYPES
from lowbit.hf.checkpoint import MAX_CONFIG_BYTES, read_json
from lowbit.hf.config import Config
from lowbit.onnx.graph import Model

FILE = "genai_config.json"
_MODEL = "model.onnx"
#: The most that angles may differ from those of one base, relative.
_MOST_DIFFERENCE = 1e-3
_ADVICE = "; put the checkpoint's config.json into the folder"


def read_genai_config(folder: Path) -> dict[str, Any] | None:
    """genai_config.json; None if there is none. Raises FormatError for one without a key that genai needs."""
    path = folder / FILE
    if not is_file(path):
        return None
    values = read_json(path, MAX_CONFIG_BYTES)
    for key, (kind, meaning) in REQUIRED.items():
        value = _at(values, key)
        if type(value) is not kind or not value:
            raise _wrong(folder, key, value, meaning, "; make the folder again, or add the key")
    return values


def model_path(folder: Path, genai: Mapping[str, Any] | None) -> Path:
    """The model's file. Raises FormatError for a name that is none in the folder, FileError if there is no file."""
    name = _MODEL if genai is None else genai["model"]["decoder"]["filename"]
    if Path(name).name != name or not name.endswith(".onnx"):
        raise FormatError(
            "'model.decoder.filename':", path=folder / FILE, key="model.decoder.filename",
            expected="the plain name of an .onnx file", found=quoted(name, 80),
        )  # fmt: skip
    if not is_file(folder / name):
        hint = "; lowbit.convert takes checkpoints" if genai is None else ""
        raise FileError(f"no {name}{hint}", path=folder, errno=errno.ENOENT)
    return folder / name


def network_config(folder: Path, genai: Mapping[str, Any] | None, model: Model) -> Config:
    """config.json. Raises FormatError or UnsupportedError if it can neither be read nor made."""
    path = folder / "config.json"
    if is_file(path):
        return Config(read_json(path, MAX_CONFIG_BYTES), str(path))
    if genai is None:
        raise FormatError("no config.json and no genai_config.json", path=folder, rest=_ADVICE)
    return Config(_made(folder, genai["model"], model), str(folder / FILE))


def _made(folder: Path, values: Mapping[str, Any], model: Model) -> dict[str, Any]:
    decoder = values["decoder"]
    architecture = next((arch for arch, kind in TYPES.items() if kind == values["type"]), None)
    hf_class = next((name for name, arch in hf_classes().items() if arch.name == architecture), None)
    if hf_class is None:
        raise UnsupportedError(
            f"model.type is {quoted(values['type'], 40)}", path=folder / FILE, key="model.type",
            expected=f"one of {', '.join(TYPES.values())}", rest=_ADVICE,
        )  # fmt: skip
    keys = ("hidden_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers")
    for key in keys:
        if type(value := decoder.get(key)) is not int or not value:
            raise _wrong(folder, f"model.decoder.{key}", value, "a positive integer", _ADVICE)
    epsilon = next((node.get("epsilon") for node in model.nodes if node.get("epsilon") is not None), None)
    return {
        "architectures": [hf_class],
        "model_type": values["type"],
        **{key: decoder[key] for key in keys},
        "head_dim": decoder["head_size"],
        "vocab_size": values["vocab_size"],
        "max_position_embeddings": values["context_length"],
        "original_max_position_embeddings": values["context_length"],  # the angles in cos_cache are not scaled
        "intermediate_size": _feed_forward(model, decoder["hidden_size"]),
        "rms_norm_eps": None if epsilon is None else float(f"{epsilon:.6g}"),
        "rope_theta": _rope_base(folder, model),
        **{f"{role}_token_id": values.get(f"{role}_token_id") for role in ("bos", "eos", "pad")},
        "tie_word_embeddings": False,
    }


def _feed_forward(model: Model, hidden: int) -> int | None:
    """The width between ffn_gate and ffn_down: the inputs of ffn_down."""
    for node in model.nodes:
        if "down_proj" in node.label or "ffn_down" in node.label:
            if (width := node.get("K")) is not None:
                return int(width)
            tensors = (model.graph.tensors.get(name) for name in node.inputs)
            shape = next((tensor.shape for tensor in tensors if tensor is not None and len(tensor.shape) == 2), None)
            if shape is not None and hidden in shape:
                return int(shape[0])
    return None


def _rope_base(folder: Path, model: Model) -> float:
    """The base of the rotary embedding's angles, from the tables of cosines and sines."""
    tables = [model.graph.tensors.get(name) for name in ("cos_cache", "sin_cache")]
    if any(table is None or len(table.shape) != 2 or table.shape[0] < 2 for table in tables):
        raise UnsupportedError(f"the graph has no table cos_cache{_ADVICE}", path=folder)
    cosines, sines = (np.asarray(table.array[1], np.float64) for table in tables if table is not None)
    angles = np.arctan2(sines, cosines)
    exponents = np.arange(angles.size) / angles.size
    with np.errstate(all="ignore"):
        base = float(angles[-1]) ** (-1 / exponents[-1]) if angles.size > 1 and angles[-1] > 0 else np.nan
        difference = np.abs(angles * np.float64(base) ** exponents - 1).max()
    if not np.isfinite(base) or not difference <= _MOST_DIFFERENCE or abs(np.hypot(cosines, sines) - 1).max() > 1e-3:
        raise UnsupportedError(f"the angles in cos_cache are scaled{_ADVICE}", path=folder)
    return float(f"{base:.4g}")


def _wrong(folder: Path, key: str, value: Any, expected: str, advice: str) -> FormatError:
    text = f"no {quoted(key)}" if value is None else f"{quoted(key)} is {quoted(value, 40)}"
    return FormatError(text, path=folder / FILE, key=key, expected=expected, found=value, rest=advice)


def _at(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values
