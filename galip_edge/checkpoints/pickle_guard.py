"""A scan of pickles before loading: deeply nested tuples crash the interpreter.

C computes the hash of a tuple by unlimited recursion. A pickle of a megabyte with a million nested
tuples as a dictionary key causes a segmentation fault, even if no class may be loaded. Checkpoints
nest tuples about five levels deep.
"""

from __future__ import annotations

import pickletools
from typing import IO

MAX_TUPLE_DEPTH = 100

_BUILD_TUPLE = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET"}
_PUT = {"PUT", "BINPUT", "LONG_BINPUT"}
_GET = {"GET", "BINGET", "LONG_BINGET"}
_Stack = list["int | None"]  # depth of each object; None is a mark


def scan_pickle(file: IO[bytes]) -> set[str]:
    """Scan the pickle that starts at the file's position, and leave the position at its end.

    Returns:
        Dotted names of the referenced classes and functions.

    Raises:
        ValueError: tuples are nested deeper than `MAX_TUPLE_DEPTH`, or the pickle is damaged.
    """
    stack: _Stack = []
    memo: dict[int, int] = {}
    names: set[str] = set()
    texts = ["?", "?"]  # the last two, to which STACK_GLOBAL usually refers
    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        if name in ("GLOBAL", "INST"):
            names.add(str(argument).replace(" ", "."))
        elif name == "STACK_GLOBAL":
            names.add(".".join(texts))
        elif isinstance(argument, str):
            texts = [texts[1], argument]
        if name in _PUT:
            memo[int(argument or 0)] = _top(stack)
        elif name == "MEMOIZE":
            memo[len(memo)] = _top(stack)
        elif name in _GET:
            stack.append(memo.get(int(argument or 0), 0))
        elif name == "MARK":
            stack.append(None)
        elif name == "DUP":
            stack.append(_top(stack))
        else:
            depth = _pop(stack, opcode) + (name in _BUILD_TUPLE)
            if depth > MAX_TUPLE_DEPTH:
                raise ValueError(f"tuples are nested more than {MAX_TUPLE_DEPTH} levels deep")
            stack += [depth] * len(opcode.stack_after)
    return names


def _top(stack: _Stack) -> int:
    return (stack[-1] or 0) if stack else 0


def _pop(stack: _Stack, opcode: pickletools.OpcodeInfo) -> int:
    """Remove the operands of the opcode from the stack; returns their greatest depth."""
    depth, before = 0, opcode.stack_before
    count = len(before)
    if pickletools.markobject in before:
        count = before.index(pickletools.markobject)
        while stack and (top := stack.pop()) is not None:
            depth = max(depth, top)
    for _ in range(min(count, len(stack))):
        depth = max(depth, stack.pop() or 0)
    return depth
