"""Changes to JSON texts that leave them JSON, so that fuzzers get beyond the parser."""

from __future__ import annotations

import copy
import json
import random
import struct
from typing import Any

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 64, 2**31, 2**32 - 1, 2**63, 10**400, 0.0, -0.5, 1e-320, 1e308, float("nan"),
    "", "a", "0", "\ud800", "\0", "x" * 2000, [], {}, [0], [[]], [1, 2, 3], ["a"], {"a": 0}, {"": None},
]  # fmt: skip


def mutated(data: bytes, max_size: int, seed: int) -> bytes | None:
    """Another JSON text, or None if `data` is none or the result too long. A length before it (safetensors) follows."""
    begin = 0 if data[:1] in (b"{", b"[") else 8
    end = len(data) if begin == 0 else 8 + int.from_bytes(data[:8], "little")
    try:
        value = [json.loads(data[begin:end])]  # in a list, so that the whole can be replaced, too
    except (ValueError, RecursionError):
        return None
    draw = random.Random(seed)
    for _ in range(draw.choice((1, 1, 2, 4))):
        _change(value, draw)
    text = json.dumps(value[0]).encode()
    head = struct.pack("<Q", len(text)) if begin else b""
    result = head + text + data[end:]
    return result if len(result) <= max_size else None


def _places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key or index) of everything inside, in a fixed order."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        inside = waiting.pop()
        keys = list(inside) if isinstance(inside, dict) else range(len(inside)) if isinstance(inside, list) else ()
        found += [(inside, key) for key in keys]
        waiting += [inside[key] for key in keys]
    return found


def _change(value: list[Any], draw: random.Random) -> None:
    places = _places(value)
    if not places:
        return
    container, key = draw.choice(places)
    kind = draw.randrange(6)
    if kind == 0 and container is not value:
        del container[key]
    elif kind == 1:
        other, other_key = draw.choice(places)
        container[key] = copy.deepcopy(other[other_key])
    elif kind == 2 and isinstance(container, dict):
        container[draw.choice(("a", "", *(k for _, k in places if isinstance(k, str))))] = container.pop(key)
    elif kind == 3 and isinstance(container[key], (int, float)) and not isinstance(container[key], bool):
        container[key] = draw.choice((container[key] + 1, -container[key], container[key] * 2, str(container[key])))
    elif kind == 4:
        container[key] = [container[key]] if draw.random() < 0.5 else {"a": container[key]}
    else:
        container[key] = copy.deepcopy(draw.choice(VALUES))
