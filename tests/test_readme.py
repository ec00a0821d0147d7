"""What the README says of formats and mixes is what the package has."""

import re
from pathlib import Path

import lowbit
from lowbit.recipes import MIXES

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_table_of_formats() -> None:
    rows = re.findall(r"^\| (\w+) \| ([\d.]+) \| (\d+) \| (\d+) \|$", README, re.MULTILINE)
    table = {name: (float(bits), int(size), int(num_bytes)) for name, bits, size, num_bytes in rows}
    assert len(table) == len(rows)
    assert table == {f.name: (f.bits_per_weight, f.block_size, f.block_bytes) for f in lowbit.formats()}


def test_list_of_mixes() -> None:
    listed = re.search(r"^Mixes, .*?llama-quantize does: (.*?)\. ", README, re.MULTILINE | re.DOTALL)
    assert listed is not None
    assert set(re.split(r",\s+", listed[1])) == set(MIXES)
