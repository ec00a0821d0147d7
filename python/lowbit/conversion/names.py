"""Names of files in a target folder: MODEL-FORMAT.gguf, as usual on the hub."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from lowbit import _core
from lowbit.base.paths import is_dir
from lowbit.conversion.open import Origin
from lowbit.gguf.splits import whole_name
from lowbit.quantization.recipes import ALIASES, MIXES

#: A snapshot in the hub's cache: .../models--ORG--NAME/snapshots/COMMIT.
_SNAPSHOT = re.compile(r"models--.*--(?P<name>[^/\\]+)[/\\]snapshots[/\\][0-9a-f]{40}$")


def checkpoint_name(origin: Origin) -> str:
    """The model's name from the hub id or the folder of a checkpoint."""
    if origin.hub_id:
        return origin.hub_id.rpartition("/")[2]
    folder = origin.folder.resolve()
    match = _SNAPSHOT.search(str(folder))
    return match["name"] if match else folder.name or "model"


def model_name(path: str) -> str:
    """The model's name from a GGUF file or folder, without the number of a split file and without the format."""
    name = whole_name(path)
    names = {*MIXES, *ALIASES, *(known.name for known in _core.formats()), "FP16", "FP32"}
    formats = "|".join(map(re.escape, names))
    return re.sub(rf"[-._](?:{formats})$", "", name, flags=re.IGNORECASE)


class Destination(NamedTuple):
    """Where a file goes. new_folder: the folder to make with it (`base.folders.made`), if that does not exist yet."""

    path: str
    new_folder: str | None = None


def destination(target: str, name: str) -> Destination:
    """`target`, or the file `name` in it if it is a folder or ends in a slash."""
    if is_dir(target):
        return Destination(os.path.join(target, name))
    if target.endswith(("/", os.sep)):
        return Destination(os.path.join(target, name), target)
    return Destination(target)
