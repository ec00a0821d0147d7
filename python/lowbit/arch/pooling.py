"""Pooling of embedding models to one vector per text, as defined in sentence-transformers' files."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from lowbit.base.errors import FormatError, UnsupportedError
from lowbit.base.files import read_bytes
from lowbit.base.paths import is_file
from lowbit.base.quoting import quoted
from lowbit.hf.checkpoint import MAX_JSON_BYTES, parse_json_value, read_json

MODULES = "modules.json"
MEAN, CLS, LAST = 1, 2, 3  #: values of ARCH.pooling_type
#: Switches in older files: the first that is on counts.
SWITCHES = (("pooling_mode_mean_tokens", MEAN), ("pooling_mode_cls_token", CLS), ("pooling_mode_lasttoken", LAST))
MODES = {"mean": MEAN, "cls": CLS, "lasttoken": LAST}


def pooling_config(folder: Path) -> Path | None:
    """The settings of the first pooling module that modules.json names; None if there is none.

    Raises FormatError for an invalid modules.json, or one whose paths leave the folder.
    """
    path = folder / MODULES
    if not is_file(path):
        return None
    for module in _modules(path):
        if not isinstance(module, dict) or not isinstance(kind := module.get("type"), str):
            raise FormatError(path=path, expected="objects with a type", found=quoted(module))
        if not kind.endswith("Pooling"):
            continue
        place = module.get("path")
        if not isinstance(place, str) or "\0" in place or {"/", ".."} & {*PurePosixPath(place).parts}:
            raise FormatError(
                f"path is {quoted(place)}", path=path, key="path", expected="a folder inside this one", found=place
            )
        return folder / place / "config.json"
    return None


def pooling_type(config: Path) -> int:
    """The value of ARCH.pooling_type. Raises UnsupportedError for pooling without a value in GGUF."""
    values = read_json(config)
    for switch, value in SWITCHES:
        if values.get(switch):
            return value
    mode = values.get("pooling_mode")
    if isinstance(mode, str) and mode in MODES:
        return MODES[mode]
    raise UnsupportedError(path=config, expected="pooling by mean, cls or lasttoken")


def _modules(path: Path) -> list[Any]:
    modules = parse_json_value(read_bytes(path, MAX_JSON_BYTES), path)
    if not isinstance(modules, list):
        raise FormatError(path=path, expected="a list of modules", found=type(modules).__name__)
    return modules
