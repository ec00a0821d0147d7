"""What was probably meant by a name that does not exist."""

from __future__ import annotations

from collections.abc import Iterable

from lowbit.base.quoting import shown

#: Of a longer name nothing is near, and looking would take long.
_MOST_NAME = 200


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`, did you mean A or B?` for a name like A and B in any case, else nothing."""
    import difflib

    names = {candidate.upper(): candidate for candidate in known}
    near = difflib.get_close_matches(name[:_MOST_NAME].upper(), names, n=3, cutoff=0.75)
    return f", did you mean {' or '.join(shown(names[match]) for match in near)}?" if near else ""
