"""What the reference's programs gave, stored in data/ so that tests need none of them; and hashes of files."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lowbit import _core

#: Digits of a SHA-256, and how many of those of a part are kept.
WHOLE, PART = 64, 4
DATA = Path(__file__).parent / "data"


def stored(name: str) -> Any:
    """The value of data/NAME.json.xz."""
    return json.loads(lzma.decompress((DATA / f"{name}.json.xz").read_bytes()))


def store(name: str, value: object) -> None:
    """Writes data/NAME.json.xz."""
    text = json.dumps(value, ensure_ascii=False)
    (DATA / f"{name}.json.xz").write_bytes(lzma.compress(text.encode(), preset=9))


def sha256(path: Path) -> str:
    """Of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def hashes(folder: Path) -> list[str]:
    """SHA-256 of the files in a folder, ordered by their names."""
    return [sha256(path) for path in sorted(folder.iterdir())]


def fingerprint(path: Path) -> str:
    """SHA-256 of a GGUF file, and the first digits of that of each key and tensor, which give a difference a name."""
    return sha256(path) + "".join(digits for _, digits in _parts(path))


def fingerprints(folder: Path) -> list[str]:
    """Those of the files in a folder, ordered by their names."""
    return [fingerprint(path) for path in sorted(folder.iterdir())]


def difference(path: Path, expected: str) -> str | None:
    """The first key or tensor in which a file differs from the one of a fingerprint; None if the files are equal."""
    if sha256(path) == expected[:WHOLE]:
        return None
    theirs = [expected[i : i + PART] for i in range(WHOLE, len(expected), PART)]
    ours = list(_parts(path))
    for (name, digits), other in zip(ours, theirs, strict=False):
        if digits != other:
            return name
    return f"{len(ours)} keys and tensors, expected {len(theirs)}" if len(ours) != len(theirs) else "between the parts"


def differences(folder: Path, expected: list[str]) -> dict[str, str]:
    """File -> its first difference, of the files in a folder, ordered by their names."""
    found = {path.name: difference(path, one) for path, one in zip(sorted(folder.iterdir()), expected, strict=True)}
    return {name: what for name, what in found.items() if what is not None}


def _parts(path: Path) -> Iterator[tuple[str, str]]:
    """Name and digits of each key and tensor in their order; a tensor's are of its type and shape, too."""
    file = _core.GgufFile.open_one(os.fsencode(path))
    header, begins = file.header(), [*file.entry_begins(), file.infos_begin]
    for key, begin, end in zip(file.keys(), begins[:-1], begins[1:], strict=True):
        yield f"key {key}", hashlib.sha256(header[begin:end]).hexdigest()[:PART]
    for index, (name, format, shape, *_) in enumerate(file.tensors()):
        whole = f"{name} {format} {shape} ".encode() + file.data(index).tobytes()
        yield f"tensor {name}", hashlib.sha256(whole).hexdigest()[:PART]
