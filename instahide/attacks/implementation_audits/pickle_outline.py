"""What is in a pickle, without unpickling it.

A pickle is a program; loading one from elsewhere runs it. Here its opcodes are followed on a stack of
plain values: texts, numbers, bytes and containers are kept, a named global stays a name, and a call stays a
:class:`Call` with its arguments. Nothing is imported and nothing is called. The result is good for looking
through, not for use: dictionaries are lists of pairs, so that no key is ever hashed.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

MAX_OPERATIONS = 20_000_000


class Pairs(list[tuple[Any, Any]]):
    """A dictionary under construction."""


class Name(str):
    """``module.attribute`` of a global; never looked up."""

    __slots__ = ()


@dataclass
class Call:
    """A call the pickle would make, or an object it would build."""

    function: Any
    arguments: Any
    state: list[Any] = field(default_factory=list)


class _Mark:
    pass


_MARK = _Mark()
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": Pairs, "EMPTY_SET": list}
_IGNORED = {"PROTO", "FRAME", "READONLY_BUFFER"}


def outlines(data: bytes) -> Iterator[Any]:
    """The objects of the pickles that follow one another in ``data``; ends at the first byte that is none."""
    stream = io.BytesIO(data)
    budget = MAX_OPERATIONS
    while stream.tell() < len(data):
        machine = _Machine()
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                budget -= 1
                if budget < 0:
                    return
                machine.step(opcode.name, argument)
        except (ValueError, IndexError, KeyError, TypeError, OverflowError, AttributeError, EOFError):
            if machine.stack:  # a damaged end still leaves what came before it
                yield list(machine.stack)
            return
        yield machine.stack[-1] if machine.stack else None


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _IGNORED:
            return
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "STOP":
            return
        elif name in ("POP", "POP_MARK"):
            if name == "POP_MARK":
                self._to_mark()
            else:
                stack.pop()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[int(argument)] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[int(argument)])
        elif name in _CONTAINER_STEPS:
            _CONTAINER_STEPS[name](self)
        elif name in _CALL_STEPS:
            _CALL_STEPS[name](self, argument)
        elif argument is not None:
            stack.append(argument)  # numbers, texts and bytes of all sizes
        else:
            stack.append(Name(f"opcode {name}"))

    def _to_mark(self) -> list[Any]:
        items: list[Any] = []
        while (top := self.stack.pop()) is not _MARK:
            items.append(top)
        return items[::-1]

    def tuple_of(self, count: int) -> None:
        items = [self.stack.pop() for _ in range(count)][::-1]
        self.stack.append(tuple(items))

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Call):
            target.state.extend(items)
        else:
            target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        pairs = list(zip(items[::2], items[1::2], strict=False))
        target = self.stack[-1]
        if isinstance(target, Call):
            target.state.append(Pairs(pairs))
        else:
            target.extend(pairs)

    def call(self, *, with_keywords: bool = False) -> None:
        keywords = self.stack.pop() if with_keywords else None
        arguments = self.stack.pop()
        function = self.stack.pop()
        self.stack.append(called(function, arguments, keywords))

    def build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Call):
            target.state.append(state)
        else:
            self.stack[-1] = Call(Name("object"), target, [state])


def called(function: Any, arguments: Any, keywords: Any = None) -> Any:
    """A call, with the one answered here by which old pickles spell bytes: ``encode(text, "latin1")``."""
    if (
        function == "_codecs.encode"
        and isinstance(arguments, tuple)
        and len(arguments) == 2
        and isinstance(arguments[0], str)
        and arguments[1] == "latin1"
    ):
        return arguments[0].encode("latin1", "replace")
    return Call(function, arguments, [] if keywords is None else [keywords])


def _stack_global(machine: _Machine, argument: Any) -> None:
    attribute, module = machine.stack.pop(), machine.stack.pop()
    machine.stack.append(Name(f"{module}.{attribute}"))


def _instance(machine: _Machine, argument: Any) -> None:
    machine.stack.append(Call(Name(str(argument).replace(" ", ".")), tuple(machine._to_mark())))


def _object(machine: _Machine, argument: Any) -> None:
    items = machine._to_mark()
    machine.stack.append(Call(items[0], tuple(items[1:])))


def _dictionary(machine: _Machine) -> None:
    items = machine._to_mark()
    machine.stack.append(Pairs(zip(items[::2], items[1::2], strict=False)))


def _append_one(machine: _Machine) -> None:
    item = machine.stack.pop()
    machine.append([item])


def _set_one(machine: _Machine) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    machine.set_items([key, value])


_CONTAINER_STEPS: dict[str, Callable[[_Machine], None]] = {
    "LIST": lambda m: m.stack.append(m._to_mark()),
    "TUPLE": lambda m: m.stack.append(tuple(m._to_mark())),
    "FROZENSET": lambda m: m.stack.append(m._to_mark()),
    "TUPLE1": lambda m: m.tuple_of(1),
    "TUPLE2": lambda m: m.tuple_of(2),
    "TUPLE3": lambda m: m.tuple_of(3),
    "DICT": _dictionary,
    "APPEND": _append_one,
    "APPENDS": lambda m: m.append(m._to_mark()),
    "ADDITEMS": lambda m: m.append(m._to_mark()),
    "SETITEM": _set_one,
    "SETITEMS": lambda m: m.set_items(m._to_mark()),
    "REDUCE": lambda m: m.call(),
    "NEWOBJ": lambda m: m.call(),
    "NEWOBJ_EX": lambda m: m.call(with_keywords=True),
    "BUILD": lambda m: m.build(),
}
_CALL_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "GLOBAL": lambda m, argument: m.stack.append(Name(str(argument).replace(" ", "."))),
    "STACK_GLOBAL": _stack_global,
    "INST": _instance,
    "OBJ": _object,
    "PERSID": lambda m, argument: m.stack.append(Call(Name("persistent"), argument)),
    "BINPERSID": lambda m, argument: m.stack.append(Call(Name("persistent"), m.stack.pop())),
}


def named_values(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of everything inside, containers too; dictionary keys make the path.

    A container met twice, as in a circle, is gone through once. Lists of numbers are one value.
    """
    todo: list[tuple[str, Any]] = [(path, value)]
    seen: set[int] = set()
    while todo:
        path, value = todo.pop()
        yield path, value
        if not isinstance(value, Pairs | dict | Call | list | tuple) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Pairs | dict):
            pairs = value if isinstance(value, Pairs) else value.items()
            inside = [(_joined(path, key), item) for key, item in pairs]
        elif isinstance(value, Call):
            inside = [(path, value.arguments), *((path, state) for state in value.state)]
        else:
            inside = [(path, item) for item in value if not isinstance(item, int | float)]
        todo += reversed(inside)


def _joined(path: str, key: Any) -> str:
    name = key.decode("utf-8", "replace") if isinstance(key, bytes) else str(key)
    return f"{path}.{name}" if path else name
