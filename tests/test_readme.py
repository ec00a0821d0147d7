"""What the README says of mixes is what the package has."""

import re
from pathlib import Path

from lowbit.recipes import MIXES

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_list_of_mixes() -> None:
    listed = re.search(r"^Mixes, .*?llama-quantize does: (.*?)\.$", README, re.MULTILINE | re.DOTALL)
    assert listed is not None
    assert set(re.split(r",\s+", listed[1])) == set(MIXES)
