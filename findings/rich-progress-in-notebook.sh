#!/usr/bin/env bash
# In a notebook without ipywidgets, `rich.progress` shows no bar at all and leaves its advice in the stored outputs.
#
# rich draws a live display in a notebook with a widget only. Without ipywidgets it warns, the first time. The warning
# is no text on stderr: rich redirects that while the display lives, so it becomes a display_data output of the cell,
# with the path of the environment. Each bar leaves one more output, which is empty. The full bar at the end, which
# rich prints where the output is a file, is missing too. `print` of rich works in the same notebook.
#
# Likely guess: without widgets the bar is text that is updated below the cell, or at least printed when it is full.
#
# Versions: rich 15.0.0, ipykernel 7.4.0, nbclient 0.11.0, nbformat 5.11.1. Output:
#   in a file: the bar's title True, ipywidgets named False
#   a bar in a notebook: display_data display_data, empty 1, title False, ipywidgets named True
#   a second bar: display_data, empty 1, title False, ipywidgets named False
#   print: display_data, empty 0, title True, ipywidgets named False
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  rich==15.0.0 ipykernel==7.4.0 nbclient==0.11.0 nbformat==5.11.1
cat > "$folder/show.py" <<'PYTHON'
import subprocess
import sys

from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

BAR = """
from rich.progress import Progress

with Progress() as progress:
    progress.update(progress.add_task("TITLE", total=3), completed=3)
"""

text = subprocess.run([sys.executable, "-c", BAR], capture_output=True, check=True, text=True).stdout
seen = [f"in a file: the bar's title {'TITLE' in text}, ipywidgets named {'ipywidgets' in text}"]

notebook = new_notebook(cells=[new_code_cell(code) for code in (BAR, BAR, "import rich\nrich.print('TITLE')")])
NotebookClient(notebook, kernel_name="python3", extra_arguments=["--log-level=40"]).execute()
for name, cell in zip(("a bar in a notebook", "a second bar", "print"), notebook.cells, strict=True):
    kinds = " ".join(output.output_type for output in cell.outputs)
    texts = [output.data["text/plain"] for output in cell.outputs]
    named = [any(word in text for text in texts) for word in ("TITLE", "ipywidgets")]
    seen.append(f"{name}: {kinds}, empty {texts.count('')}, title {named[0]}, ipywidgets named {named[1]}")

print("\n".join(seen))
sys.exit(
    seen
    != [
        "in a file: the bar's title True, ipywidgets named False",
        "a bar in a notebook: display_data display_data, empty 1, title False, ipywidgets named True",
        "a second bar: display_data, empty 1, title False, ipywidgets named False",
        "print: display_data, empty 0, title True, ipywidgets named False",
    ]
)
PYTHON
HOME="$folder" PYTHONUTF8=1 "$folder/venv/bin/python" "$folder/show.py"
