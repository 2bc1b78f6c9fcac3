"""The process of the tests: it calls the untrusted program in its own process and compares what comes back.

Only plain data comes back, as copies: an object that calls itself equal to everything, a changed `assert` or a changed
`sorted` stay on the other side. The program can choose what its functions return, and nothing else: no file that it can
write is imported here, and no module is run because it names it.
"""

import builtins
import importlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
from typing import Any

from wmss.verifiers.interfaces import Ruling
from wmss.verifiers.sandbox.guest import MessageTooLong, decode, encode, read_message, write_message

_SUBMODULES = {
    "collections.abc",
    "concurrent.futures",
    "importlib.util",
    "os.path",
    "urllib.parse",
    "xml.dom.minidom",
    "xml.etree.ElementTree",
}
"""Of packages, what a program may make this process import. Others do things: `unittest.__main__` runs any file."""
_NOT_IMPORTED = {
    "antigravity",
    "distutils",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "readline",
    "rlcompleter",
    "test",
    "this",
    "tkinter",
    "turtle",
    "turtledemo",
    "venv",
}
"""Modules that do or read something when they are imported, and are no help to a test."""


@dataclass(frozen=True)
class Job:
    """One thing to run: a program with tests, or one whose `verify` is called."""

    source: str
    tests: tuple[str, ...] = ()
    entry_point: str | None = None
    """The function that tests call `candidate`; it may be named as a built-in one."""
    arguments: tuple[Any, ...] | None = None
    """Of `verify`, which is called in place of tests."""


class GuestGone(BaseException):
    """The program ended itself, or broke what it says; no test's `except Exception` may catch it."""


class GuestRaised(Exception):
    """Only to end a test: what the program raised is raised as the built-in exception it was."""


class Remote:
    """Something in the program's process: a function, a class, an instance. It is equal to itself only."""

    def __init__(self, guest: "GuestProcess", kept: int) -> None:
        self.__dict__["_guest"] = guest
        self.__dict__["_kept"] = kept

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._guest.call(self._kept, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return self._guest.get(self._kept, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self.__getattr__("__setattr__")(name, value)

    def __len__(self) -> int:
        length = self._special("__len__")
        if not isinstance(length, int):
            raise TypeError("expected a length")
        return length

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, key: Any) -> Any:
        return self._special("__getitem__", key)

    def __next__(self) -> Any:
        return self._special("__next__")

    def __iter__(self) -> Iterator[Any]:
        items = self._special("__iter__")
        while True:
            try:
                item = items.__next__()
            except StopIteration:
                return
            yield item

    def _special(self, name: str, *args: Any) -> Any:
        try:
            method = self.__getattr__(name)
        except AttributeError:
            raise TypeError(f"expected an object with {name}") from None
        return method(*args)


class GuestProcess:
    """The program's process, behind two pipes."""

    def __init__(self, requests: int, answers: int) -> None:
        self._requests = requests
        self._answers = answers
        self.gone = False

    def load(self, source: str) -> dict[str, Any]:
        """The program's global names; raises what it raises."""
        paths = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
        found = self._ask({"do": "load", "source": source, "paths": paths})["value"]
        if not isinstance(found, dict):
            raise self._is_gone()
        return found

    def get(self, kept: int, name: str) -> Any:
        return self._ask({"do": "get", "kept": kept, "name": name})["value"]

    def call(self, kept: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        arguments = encode({"args": list(args), "kwargs": kwargs}, _kept_number)
        reply = self._ask({"do": "call", "kept": kept, "arguments": arguments})
        _copy_back(args, reply.get("args"))
        return reply["value"]

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if self.gone:
            raise GuestGone
        try:
            write_message(self._requests, request)
            reply = read_message(self._answers)
            if set(reply) == {"raised"}:
                raised = getattr(builtins, reply["raised"])
            else:
                return {key: decode(value, lambda kept: Remote(self, kept), _module) for key, value in reply.items()}
        except (OSError, EOFError, ValueError, TypeError, AttributeError, KeyError, RecursionError, MessageTooLong):
            raise self._is_gone() from None
        raise raised if isinstance(raised, type) and issubclass(raised, Exception) else GuestRaised

    def _is_gone(self) -> GuestGone:
        self.gone = True
        return GuestGone()


def _kept_number(value: Any) -> int:
    if isinstance(value, Remote):
        return int(value._kept)
    raise TypeError(f"expected plain data as an argument, got {type(value).__name__}")


def _copy_back(args: tuple[Any, ...], after: Any) -> None:
    """Let a list, set or dict that the program changed in place be seen changed."""
    if not isinstance(after, list) or len(after) != len(args):
        return
    for mine, theirs in zip(args, after, strict=True):
        if type(mine) is not type(theirs):
            continue
        if isinstance(mine, list):
            mine[:] = theirs
        elif isinstance(mine, dict | set):
            mine.clear()
            mine.update(theirs)


def _module(name: str) -> Any:
    """A module of the standard library, this process's own; None for any other, and for those that do something."""
    top, _, below = name.partition(".")
    if top not in sys.stdlib_module_names:
        return None
    if name in sys.modules:
        return sys.modules[name]
    harmless = name in _SUBMODULES if below else not name.startswith("_") and name not in _NOT_IMPORTED
    return importlib.import_module(name) if harmless else None


def import_nothing_from(folder: str) -> None:
    """Import no file below a folder from now on, whatever named it: the paths, their caches, packages or finders.

    Finders of others, e.g. those of packages installed to be edited, can name any folder, and are left out.
    """

    def outside(path: str) -> bool:
        # A relative path is one below the folder that the tests run in.
        return os.path.isabs(path) and os.path.commonpath([os.path.realpath(path), folder]) != folder

    sys.path[:] = filter(outside, sys.path)
    sys.meta_path[:] = [BuiltinImporter, FrozenImporter, PathFinder]
    sys.path_importer_cache.clear()
    for module in list(sys.modules.values()):
        if hasattr(module, "__path__"):
            module.__path__ = list(filter(outside, module.__path__))


def run(job: Job, guest: GuestProcess) -> Ruling:
    """What comes of one job. Details: see `wmss.verifiers.programs`."""
    try:
        names = guest.load(job.source)
    except SyntaxError:
        return Ruling("unparseable", "syntax_error")
    except GuestGone:
        return Ruling("wrong", "exited")
    except Exception:
        return Ruling("wrong", "raised")
    return _verified(job.arguments, names) if job.arguments is not None else _tested(job, names, guest)


def _tested(job: Job, names: dict[str, Any], guest: GuestProcess) -> Ruling:
    # The tests' own `len` or `all` must not be the program's; nor `__builtins__`, where they are looked up.
    namespace = {n: value for n, value in names.items() if not n.startswith("__") and not hasattr(builtins, n)}
    namespace["__builtins__"] = builtins
    if job.entry_point is not None and job.entry_point in names:
        namespace |= {job.entry_point: names[job.entry_point], "candidate": names[job.entry_point]}
    try:
        for test in job.tests:
            exec(compile(test, "test", "exec"), namespace)
    except AssertionError:
        return Ruling("wrong", "failed_test")
    except GuestGone:
        return Ruling("wrong", "exited")
    except Exception:
        return Ruling("wrong", "raised")
    return Ruling("wrong", "exited") if guest.gone else Ruling("correct", "passed")


def _verified(arguments: tuple[Any, ...], names: dict[str, Any]) -> Ruling:
    """What the user's `verify` says; anything but True or False is its failure, not the response's."""
    try:
        accepted = names["verify"](*arguments)
    except GuestGone:
        return Ruling("error", "exited")
    except Exception:
        return Ruling("error", "raised")
    if not isinstance(accepted, bool):
        return Ruling("error", "not_bool")
    return Ruling("correct", "accepted") if accepted else Ruling("wrong", "rejected")
