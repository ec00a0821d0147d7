"""docs/formats.md says what the registry and the comments of src/formats say."""

import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_formats_page_is_up_to_date(tmp_path: Path) -> None:
    """If not: `python docs/make_formats.py`."""
    subprocess.run([sys.executable, DOCS / "make_formats.py", tmp_path / "formats.md"], check=True)
    assert (tmp_path / "formats.md").read_text(encoding="utf-8") == (DOCS / "formats.md").read_text(encoding="utf-8")
