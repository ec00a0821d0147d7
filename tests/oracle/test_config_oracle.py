"""Every key of config.json, changed: lowbit's logits are those of transformers, or the key is refused by name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "docs"))

from make_config_table import FAMILIES, verdicts

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_are_obeyed_or_refused(family: str) -> None:
    found = verdicts(family)
    assert {label: verdict for label, verdict in found.items() if verdict.startswith("**")} == {}
    assert set(found.values()) >= {"obeyed", "refused", "no effect"}
