"""What was probably meant by a name that does not exist."""

from __future__ import annotations

from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`, did you mean A or B?` for a name like A and B in any case, else nothing."""
    import difflib

    names = {candidate.upper(): candidate for candidate in known}
    near = difflib.get_close_matches(name.upper(), names, n=3, cutoff=0.75)
    return f", did you mean {' or '.join(names[match] for match in near)}?" if near else ""
