"""What the reference's programs gave, stored in data/ so that tests need none of them; and hashes of files."""

from __future__ import annotations

import hashlib
import json
import lzma
from pathlib import Path
from typing import Any

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
