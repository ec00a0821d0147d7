"""The table of docs/export-matrix.md is that of the stored results, in which engines agree with lowbit's."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.oracle
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def matrix() -> Any:
    specification = importlib.util.spec_from_file_location(
        "make_export_matrix", ROOT / "docs" / "make_export_matrix.py"
    )
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_table_is_up_to_date(matrix: Any) -> None:
    """If not: `python docs/make_export_matrix.py`."""
    page = matrix.PAGE.read_text(encoding="utf-8")
    record = json.loads(matrix.RESULTS.read_text(encoding="utf-8"))
    assert matrix.with_table(page, record) == page
    cells = [(e["family"], e["layout"], e["format"], e["engine"]) for e in record["results"]]
    families = [family.name for family in matrix.FAMILIES]
    assert cells == [
        (family, layout, format, engine)
        for family in families
        for layout in matrix.LAYOUTS
        for format in matrix.FORMATS
        for engine in matrix.ENGINES
    ]


def test_engines_agree(matrix: Any) -> None:
    """Models that an engine runs give lowbit's text. The page says which it refuses."""
    results = json.loads(matrix.RESULTS.read_text(encoding="utf-8"))["results"]
    refused = {(e["family"], e["layout"], e["engine"]) for e in results if "failed" in e}
    by_openvino_genai = {(family.name, "genai", "OpenVINO GenAI") for family in matrix.FAMILIES}
    assert refused == by_openvino_genai | {("Phi 4 mini (LongRoPE of a part)", "genai", "OpenVINO")}
    assert {e["tokens"] for e in results if "tokens" in e} == {40}
    assert max(e["error"] for e in results if "error" in e and not e["family"].startswith("BitNet")) < 1e-5


def test_a_cell(matrix: Any) -> None:
    good, other, failed = {"tokens": 40, "error": 2e-6}, {"tokens": 5, "error": 3e-7}, {"failed": "RuntimeError"}
    assert matrix.cell([good, good]) == "same text, 2e-06"
    assert matrix.cell([good, other]) == "5 tokens, 2e-06"
    assert matrix.cell([failed, failed]) == "no"
    assert matrix.cell([{"tokens": 40}]) == "same text"
