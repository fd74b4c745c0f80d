"""Damage for readers of untrusted files: the same seed gives the same damage."""

from __future__ import annotations

import json
import random
from typing import Any

# Values at which readers of numbers, texts and containers fail.
ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**63,
    10**400,
    1.5,
    float("inf"),
    "",
    "\0",
    "\ud800",
    "\x1b[31m",
    "../x",
    "x" * 10_000,
    [],
    [[]],
    {},
    {"size": 1},
)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """`data` with flipped, overwritten, repeated, removed or inserted bytes."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        if not changed:
            return b"\0"
        at = rng.randrange(len(changed))
        length = rng.choice((1, 1, 4, 16, 256))
        kind = rng.randrange(6)
        if kind < 2:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            changed[at : at + length] = rng.randbytes(length)
        elif kind == 3:
            changed[at:at] = changed[at : at + length] * rng.choice((1, 1, 50))
        elif kind == 4:
            del changed[at : at + length]
        else:
            del changed[at:]
    return bytes(changed)


def damaged_json(value: Any, rng: random.Random) -> Any:
    """A copy of a JSON value with one odd value, missing key or deep nesting inside."""
    copy = json.loads(json.dumps(value))
    parent, key = rng.choice(list(_places(copy)))
    kind = rng.randrange(8)
    if kind == 0:
        del parent[key]
    elif kind == 1:
        for _ in range(rng.choice((10, 990, 3000))):
            parent[key] = [parent[key]]
    else:
        parent[key] = rng.choice(ODD_VALUES)
    return copy


def _places(value: Any) -> Any:
    children = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in children:
        yield value, key
        if isinstance(child, (dict, list)):
            yield from _places(child)


def damaged_xml(text: str, rng: random.Random) -> str:
    """`text` with one odd attribute, or a line removed, repeated or moved."""
    lines = text.split("\n")
    at, other = (rng.randrange(len(lines)) for _ in range(2))
    kind = rng.randrange(8)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(other, lines[at])
    elif kind == 2:
        lines[at], lines[other] = lines[other], lines[at]
    else:
        at = next(i for i in range(at, at + len(lines)) if '="' in lines[i % len(lines)])
        at %= len(lines)
        pieces = lines[at].split('"')
        value = rng.choice(
            ("-1", "0", "7", "99999999999", "", "nf4", "string", "u1", "f64", "If", "?", "1e9")
        )
        pieces[rng.randrange(1, len(pieces), 2)] = value
        lines[at] = '"'.join(pieces)
    return "\n".join(lines)
