"""Suggestions for unknown names."""

from __future__ import annotations

from collections.abc import Iterable

from lowbit.base.quoting import shown

#: Longer names get no suggestions, because the search would be slow.
_MOST_NAME = 200


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`, did you mean A or B?` if known names (in any case) are similar, else an empty text."""
    import difflib

    names = {candidate.upper(): candidate for candidate in known}
    near = difflib.get_close_matches(name[:_MOST_NAME].upper(), names, n=3, cutoff=0.75)
    return f", did you mean {' or '.join(shown(names[match]) for match in near)}?" if near else ""
