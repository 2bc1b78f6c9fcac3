"""The process of the untrusted code: it answers calls with plain data, and knows neither the tests nor the token.

It runs in a fresh interpreter that has this file's text and nothing else of the package, so it imports none of it.
"""

import builtins
import json
import os
import sys
import types
from collections.abc import Callable
from typing import Any

MAX_MESSAGE_BYTES = 8 << 20
"""What one call may take or give; more is refused."""
LARGEST_PLAIN_INT = 1 << 63


class MessageTooLong(Exception):
    """A message above `MAX_MESSAGE_BYTES`."""


def write_message(fd: int, message: Any) -> None:
    """A JSON value behind its length in 4 bytes."""
    data = json.dumps(message).encode()
    if len(data) > MAX_MESSAGE_BYTES:
        raise MessageTooLong
    rest = memoryview(len(data).to_bytes(4, "big") + data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def read_message(fd: int) -> Any:
    """What `write_message` wrote; raises EOFError where the other side is gone, ValueError for what is no message."""
    length = int.from_bytes(_read(fd, 4), "big")
    if length > MAX_MESSAGE_BYTES:
        raise MessageTooLong
    return json.loads(_read(fd, length))


def _read(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = os.read(fd, size - len(data))
        if not part:
            raise EOFError
        data += part
    return data


def encode(value: Any, keep: Callable[[Any], int]) -> Any:
    """A value as JSON: plain data by its content, a module by its name, anything else by the number `keep` gives."""
    if value is None or isinstance(value, bool):
        return value
    for kind, write in _WRITERS.items():
        if isinstance(value, kind):
            return write(value, keep)
    return {"kept": keep(value)}


def _encode_int(value: int, keep: Callable[[Any], int]) -> Any:
    return int(value) if abs(value) < LARGEST_PLAIN_INT else {"int": hex(value)}


def _items(tag: str) -> Callable[[Any, Callable[[Any], int]], Any]:
    return lambda value, keep: {tag: [encode(item, keep) for item in value]}


_WRITERS: dict[type, Callable[[Any, Callable[[Any], int]], Any]] = {
    int: _encode_int,
    float: lambda value, keep: float(value),
    str: lambda value, keep: str(value),
    complex: lambda value, keep: {"complex": [value.real, value.imag]},
    bytes: lambda value, keep: {"bytes": value.hex()},
    list: _items("list"),
    tuple: _items("tuple"),
    set: _items("set"),
    frozenset: _items("frozenset"),
    range: lambda value, keep: {"range": [value.start, value.stop, value.step]},
    dict: lambda value, keep: {"dict": [[encode(k, keep), encode(v, keep)] for k, v in dict.items(value)]},
    types.ModuleType: lambda value, keep: {"module": value.__name__},
}
"""Subclasses, e.g. a Counter, are written as what they extend."""


def decode(data: Any, kept: Callable[[int], Any], module: Callable[[str], Any]) -> Any:
    """What `encode` was given, with `kept` and `module` to find what is no plain data."""
    if not isinstance(data, dict):
        return data
    [(tag, content)] = data.items()
    if tag == "kept":
        return kept(content)
    if tag == "module":
        return module(content)
    return _READERS[tag](content, lambda item: decode(item, kept, module))


_READERS: dict[str, Callable[[Any, Callable[[Any], Any]], Any]] = {
    "int": lambda content, read: int(content, 16),
    "complex": lambda content, read: complex(*content),
    "bytes": lambda content, read: bytes.fromhex(content),
    "list": lambda content, read: [read(item) for item in content],
    "tuple": lambda content, read: tuple(read(item) for item in content),
    "set": lambda content, read: {read(item) for item in content},
    "frozenset": lambda content, read: frozenset(read(item) for item in content),
    "range": lambda content, read: range(*content),
    "dict": lambda content, read: {read(key): read(value) for key, value in content},
}


class Guest:
    """The untrusted program, and what it has handed out."""

    def __init__(self) -> None:
        self._program = types.ModuleType("solution")
        self._kept: list[Any] = []

    def keep(self, value: Any) -> int:
        self._kept.append(value)
        return len(self._kept) - 1

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """{"value": ...}, with the arguments as the call left them, or {"raised": name of a built-in exception}."""
        try:
            return self._answer(request)
        except BaseException as error:
            names = (kind.__name__ for kind in type(error).__mro__ if getattr(builtins, kind.__name__, None) is kind)
            return {"raised": next(names, "Exception")}

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        match request["do"]:
            case "load":
                sys.path.extend(request["paths"])
                sys.modules["solution"] = self._program
                code = compile(request["source"], "solution", "exec")
                exec(code, self._program.__dict__)
                found = {k: v for k, v in self._program.__dict__.items() if not k.startswith("__")}
                return {"value": encode(found, self.keep)}
            case "get":
                return {"value": encode(getattr(self._kept[request["kept"]], request["name"]), self.keep)}
            case "call":
                arguments = decode(request["arguments"], self._kept.__getitem__, __import__)
                value = self._kept[request["kept"]](*arguments["args"], **arguments["kwargs"])
                return {"value": encode(value, self.keep), "args": encode(arguments["args"], self.keep)}
        raise ValueError(request["do"])


def serve(requests: int, answers: int) -> None:
    """Answer until the tester is gone."""
    sys.argv = ["solution"]
    guest = Guest()
    while True:
        try:
            write_message(answers, guest.answer(read_message(requests)))
        except EOFError:
            return
        except Exception:
            write_message(answers, {"raised": "MemoryError"})
