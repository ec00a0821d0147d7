"""The corpora of tests/fuzz: each file is read, or refused with one of our errors."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "fuzz"))
from targets import CORPUS, TARGETS, accepts, make_folder


@pytest.mark.parametrize("name", TARGETS)
def test_corpus(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    folder = make_folder(tmp_path / "folder", target)
    entries = {path.name: path.read_bytes() for path in sorted((CORPUS / name).iterdir())}
    read = {entry for entry, data in entries.items() if accepts(target, folder, data)}
    valid = {entry for entry in entries if entry.startswith("valid")}
    assert valid
    assert read >= valid, valid - read
