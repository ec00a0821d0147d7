"""docs/formats.md says what the registry and the comments of src/formats say; links lead somewhere, options exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lowbit
from lowbit.cli.app import root_command

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.glob("*.md")), ROOT / "findings" / "README.md"]


def test_formats_page_is_up_to_date(tmp_path: Path) -> None:
    """If not: `python docs/make_formats.py`."""
    subprocess.run([sys.executable, DOCS / "make_formats.py", tmp_path / "formats.md"], check=True)
    assert (tmp_path / "formats.md").read_text(encoding="utf-8") == (DOCS / "formats.md").read_text(encoding="utf-8")


def anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http://", "https://")):
            continue
        name, _, heading = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        if heading:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in map(anchor, headings), link
    for name in re.findall(r"`((?:python|src|docs|tests|benchmarks|notebooks|cmake)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name


def walk(command: Any) -> list[Any]:
    inner = getattr(command, "commands", {}).values()
    return [command, *(found for each in inner for found in walk(each))]


def written_commands(root: Any) -> list[str]:
    """Those of the pages, in blocks and in sentences, and the examples that --help shows."""
    found = [line.strip() for command in walk(root) for line in (command.epilog or "").splitlines()]
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            found += block.replace("\\\n", " ").splitlines()
        found += re.findall(r"`(lowbit [a-z][^`]*)`", text)
    return sorted({line for line in found if line.startswith("lowbit ")})


def test_commands_have_the_options_that_they_are_shown_with() -> None:
    root = root_command()
    lines = written_commands(root)
    assert len(lines) > 60
    for line in lines:
        command, words = root, shlex.split(re.split(" [|<] ", line)[0], comments=True)[1:]
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        command.make_parser(command.context_class(command)).parse_args(words)  # raises for an option that is unknown


@pytest.mark.parametrize("format", lowbit.formats(), ids=lambda format: format.name)
def test_format_files_say_where_fit_packing_and_product_are(format: lowbit.Format) -> None:
    folder = ROOT / "src" / "formats"
    (source,) = folder.glob(f"*/{format.name.lower()}.cc")
    comments = source.read_text(encoding="utf-8").split("\n#")[0]
    words = comments.split("\n\n")[1].replace("\n//", "")
    assert re.match(r"// (Fit and packing: |Fit: .* Packing: ).* Product: ", words) is not None
    for name in re.findall(r"[\w/-]+\.(?:cc|h)\b", words):
        assert (folder / name).exists() or (ROOT / name).exists(), name
