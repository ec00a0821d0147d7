"""The table of docs/onnx.md is that of the stored results."""

import importlib.util
import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.oracle
ROOT = Path(__file__).resolve().parents[2]


def test_table_is_up_to_date() -> None:
    """If not: `python docs/make_onnx.py`."""
    specification = importlib.util.spec_from_file_location("make_onnx", ROOT / "docs" / "make_onnx.py")
    assert specification is not None
    assert specification.loader is not None
    made = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(made)
    page = made.PAGE.read_text(encoding="utf-8")
    record = json.loads(made.RESULTS.read_text(encoding="utf-8"))
    assert made.with_table(page, record) == page
    assert {entry["model"] for entry in record["results"]} == set(made.MODELS)
    assert not [entry["name"] for entry in record["results"] if "failed" in entry["ours"]]
