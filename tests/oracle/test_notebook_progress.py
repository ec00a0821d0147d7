"""Progress in a real kernel, which has no ipywidgets: one display a part, updated in place, and nothing on stderr."""

from __future__ import annotations

import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

pytestmark = pytest.mark.oracle

CODE = """
import lowbit.base.progress as progress
progress.PATIENCE_SECONDS = -1.0
with progress.steps("verify", "weights", True) as outer:
    outer(0, None)
    with progress.steps("write Q4_K_M", "B", True) as advance:
        for done in (1_000_000, 2_000_000):
            advance(done, 2_000_000)
    outer(7, 7)
"""


def test_bars_of_a_kernel() -> None:
    notebook = new_notebook(cells=[new_code_cell(CODE)])
    NotebookClient(notebook, kernel_name="python3").execute()
    outputs = notebook.cells[0].outputs
    assert [output.output_type for output in outputs] == ["display_data", "display_data"]
    assert [output.data["text/plain"] for output in outputs] == [
        "verify: 7 of 7 weights, 0 s",
        "write Q4_K_M: 2.0 of 2.0 MB, 0 s",
    ]
    assert all(output.data["text/html"].startswith('<progress value="1.0000">') for output in outputs)
