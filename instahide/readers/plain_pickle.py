"""Read the pickles that CIFAR ships, without unpickling.

``pickle.load`` runs whatever program the file is; the CIFAR batches are pickles all the same.
This reader goes through the opcodes itself and builds only dictionaries, lists, tuples, texts,
bytes, small numbers and one-byte numpy arrays. It imports nothing and calls nothing the file
names: the five names numpy's own arrays use are recognised and answered here, any other name,
opcode or call is an error. Keys must be text or bytes, so nothing nested is ever hashed.

Texts of Python 2 pickles are bytes; they come back as ``bytes``.
"""

from __future__ import annotations

import pickletools
from typing import Any

import numpy as np

_MARK = object()

RECONSTRUCT = frozenset(
    f"{module}.multiarray _reconstruct" for module in ("numpy.core", "numpy._core", "numpy")
)
FROM_BUFFER = frozenset(f"{module}.numeric _frombuffer" for module in ("numpy.core", "numpy._core"))
NAMES = RECONSTRUCT | FROM_BUFFER | {"numpy ndarray", "numpy dtype", "_codecs encode"}
BYTE_TYPES = frozenset({"u1", "|u1", "uint8", "B"})


class PlainPickleError(ValueError):
    """The pickle holds something other than plain containers and byte arrays."""


class _Name(str):
    """An allowed global name; never looked up."""

    __slots__ = ()


class _Dtype:
    """numpy.dtype('u1'); its BUILD state (byte order, alignment) is of no interest."""


class _Array:
    """An array under construction: empty until BUILD brings shape and bytes."""

    value: Any = None


def load_plain_pickle(data: bytes) -> Any:
    """The object in ``data``; raises PlainPickleError (or ValueError from the opcode parser)."""
    machine = _Machine()
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name == "STOP":
            return _finished(machine.pop())
        machine.step(opcode.name, argument)
    raise PlainPickleError("no end of pickle")


def _finished(value: Any) -> Any:
    """Arrays in place of their builders, in the top container only: all that CIFAR needs."""
    if isinstance(value, dict):
        return {key: item.value if isinstance(item, _Array) else item for key, item in value.items()}
    return value.value if isinstance(value, _Array) else value


class _Machine:
    """The pickle stack machine, without the opcodes that could run anything."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def pop(self) -> Any:
        if not self.stack:
            raise PlainPickleError("stack is empty")
        return self.stack.pop()

    def top(self) -> Any:
        if not self.stack:
            raise PlainPickleError("stack is empty")
        return self.stack[-1]

    def pop_to_mark(self) -> list[Any]:
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is _MARK:
                items = self.stack[place + 1 :]
                del self.stack[place:]
                return items
        raise PlainPickleError("no mark")

    def step(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _OLD_TEXTS:  # the parser gives Python 2 texts as Latin-1
            self.stack.append(argument.encode("latin-1"))
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _PUTS:
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = self.top()
        elif name in _GETS:
            if argument not in self.memo:
                raise PlainPickleError("unknown memo entry")
            self.stack.append(self.memo[argument])
        elif name not in _IGNORED:
            handler = getattr(self, f"do_{name.lower()}", None)
            if handler is None:
                raise PlainPickleError(f"opcode {name} is not allowed")
            handler(argument)

    # Containers

    def do_mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def do_empty_dict(self, _: Any) -> None:
        self.stack.append({})

    def do_empty_list(self, _: Any) -> None:
        self.stack.append([])

    def do_empty_tuple(self, _: Any) -> None:
        self.stack.append(())

    def do_dict(self, _: Any) -> None:
        items = self.pop_to_mark()
        self.stack.append({})
        self._set_items(items)

    def do_list(self, _: Any) -> None:
        self.stack.append(self.pop_to_mark())

    def do_tuple(self, _: Any) -> None:
        self.stack.append(tuple(self.pop_to_mark()))

    def do_tuple1(self, _: Any) -> None:
        self.stack.append((self.pop(),))

    def do_tuple2(self, _: Any) -> None:
        second, first = self.pop(), self.pop()
        self.stack.append((first, second))

    def do_tuple3(self, _: Any) -> None:
        third, second, first = self.pop(), self.pop(), self.pop()
        self.stack.append((first, second, third))

    def do_append(self, _: Any) -> None:
        self._extend([self.pop()])

    def do_appends(self, _: Any) -> None:
        self._extend(self.pop_to_mark())

    def do_setitem(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self._set_items([key, value])

    def do_setitems(self, _: Any) -> None:
        self._set_items(self.pop_to_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, list):
            raise PlainPickleError("append to something that is no list")
        target.extend(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, dict) or len(items) % 2:
            raise PlainPickleError("items for something that is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, (str, bytes)):
                raise PlainPickleError("a key that is no text")
            target[key] = value

    # Arrays

    def do_global(self, argument: str) -> None:
        if argument not in NAMES:
            raise PlainPickleError("a name that is not numpy's array")
        self.stack.append(_Name(argument))

    def do_stack_global(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        self.do_global(f"{module} {name}" if isinstance(module, str) and isinstance(name, str) else "")

    def do_reduce(self, _: Any) -> None:
        arguments, name = self.pop(), self.pop()
        if not isinstance(name, _Name) or not isinstance(arguments, tuple):
            raise PlainPickleError("a call that is not numpy's")
        self.stack.append(_answer(name, arguments))

    def do_build(self, _: Any) -> None:
        state, target = self.pop(), self.top()
        if isinstance(target, _Array):
            target.value = _array_from_state(state)
        elif not isinstance(target, _Dtype):
            raise PlainPickleError("state for something that is no array")


def _answer(name: str, arguments: tuple[Any, ...]) -> Any:
    """What numpy would have made of the call, for byte arrays only."""
    if name == "numpy dtype" and arguments and _as_text(arguments[0]) in BYTE_TYPES:
        return _Dtype()
    if name in RECONSTRUCT:
        return _Array()
    # Protocol 2 has no bytes: Python 3 writes them as a text to encode.
    if name == "_codecs encode" and len(arguments) == 2 and isinstance(arguments[0], str):
        return arguments[0].encode("latin-1")
    if name in FROM_BUFFER and len(arguments) == 4 and isinstance(arguments[1], _Dtype):
        array = _Array()
        array.value = _byte_array(arguments[0], arguments[2], fortran=arguments[3] == "F")
        return array
    raise PlainPickleError("an array of something other than bytes")


def _as_text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _array_from_state(state: Any) -> Any:
    if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], _Dtype):
        raise PlainPickleError("an array state that is not numpy's")
    _, shape, _, fortran, data = state
    return _byte_array(data, shape, fortran=bool(fortran))


def _byte_array(data: Any, shape: Any, *, fortran: bool) -> Any:
    if not isinstance(data, (bytes, bytearray)) or not isinstance(shape, tuple):
        raise PlainPickleError("an array without bytes")
    if not all(type(length) is int and length >= 0 for length in shape):
        raise PlainPickleError("an array of no shape")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape, order="F" if fortran else "C")


_LITERALS = frozenset(
    {"INT", "BININT", "BININT1", "BININT2", "LONG1", "FLOAT", "BINFLOAT"}
    | {"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
    | {"SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"}
)
_OLD_TEXTS = frozenset({"STRING", "BINSTRING", "SHORT_BINSTRING"})
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
_GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})
_IGNORED = frozenset({"PROTO", "FRAME"})
