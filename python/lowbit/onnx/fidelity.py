"""How close the values of a converted matrix are to those of its source."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fidelity:
    """The label of a conversion, and what is known of the differences.

    | label | meaning |
    | --- | --- |
    | exact | All finite values are equal; only the sign of a zero may differ. `bound`, `error` and `max_error` are 0. |
    | bounded | No value differs by more than `bound` times the size of its terms, |scale * level| + |minimum|. \
Without a minimum that is the size of the value. |
    | lossy | There is no bound. |

    error: the 2-norm of the differences, relative to that of the values. max_error: the largest difference. Both are
    measured if the label is lossy, and may be None else.
    """

    label: str
    bound: float | None = None
    error: float | None = None
    max_error: float | None = None


#: From the best to the worst.
LABELS = ("exact", "bounded", "lossy")
EXACT = Fidelity("exact", 0.0, 0.0, 0.0)
