"""Contexts longer than what a model was trained on."""

from pathlib import Path

import numpy as np
import pytest

import lowbit

BARD = Path(lowbit.__file__).parent / "data" / "bard"


def test_a_context_beyond_the_trained_one(caplog):
    """Is allowed with a warning, and changes nothing of what fits into the trained one."""
    ids = [1 + i % 2000 for i in range(1100)]
    model = lowbit.load(BARD, compute="f32")
    with pytest.raises(lowbit.ContextFullError, match="do not fit into 1024"):
        model.logits(ids)
    assert caplog.records == []
    expected = model.logits(ids[:1024])
    wide = lowbit.load(BARD, compute="f32", context=1100)
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("lowbit", "WARNING")
    assert "context 1100 is beyond the 1024 tokens" in record.getMessage()
    found = wide.logits(ids)
    assert len(found) == 1100
    np.testing.assert_array_equal(found[:1024], expected)
    with pytest.raises(lowbit.ContextFullError, match="do not fit into 1100"):
        wide.logits([*ids, 1])
    model.make_room(1024)
    assert (model.context, len(caplog.records)) == (1024, 1)
    model.make_room(1100)
    assert (model.context, len(caplog.records)) == (1100, 2)
    np.testing.assert_array_equal(model.logits(ids), found)
    model.make_room(5)
    assert model.context == 1100
    with pytest.raises(lowbit.InputError, match="context: expected 1 to 2147483647, got 0"):
        model.make_room(0)
