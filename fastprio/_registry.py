"""Names for classes: how ``policy="loss"`` finds its class, and how one's own gets a name."""

from __future__ import annotations

import copy
import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Generic, Protocol, TypeVar


class Method(Protocol):
    """What a class in a registry says about itself."""

    name: ClassVar[str]
    example: ClassVar[Mapping[str, Any]]
    acts: ClassVar[str]
    forwards: ClassVar[str]


M = TypeVar("M", bound=Method)


def arguments_of(method: Any) -> dict[str, Any]:
    """The arguments that an object was made with, which it keeps as attributes of the same names."""
    parameters = list(inspect.signature(type(method).__init__).parameters.values())[1:]
    return {p.name: getattr(method, p.name) for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def described(method: Any) -> str:
    """The call that makes an object like it."""
    return f"{type(method).__name__}({', '.join(f'{name}={value!r}' for name, value in method.config().items())})"


def name_of(method: Any) -> str:
    """What ``Registry.find`` finds its class by."""
    return method.name or f"{type(method).__module__}:{type(method).__qualname__}"


class Registry(Generic[M]):
    """The classes of one kind, by name.

    Args:
        kind: what they are, for messages. base: the class that all are derived from.
    """

    def __init__(self, kind: str, base: type[M]) -> None:
        self._kind, self._base = kind, base
        self._known: dict[str, type[M]] = {}

    def register(self, name: str) -> Callable[[type[Any]], type[Any]]:
        """Class decorator: gives a class its name. ValueError if another class has it."""
        if not isinstance(name, str):
            raise TypeError(f'name = {name!r}: expected a string: @register("name")')

        def add(method: type[M]) -> type[M]:
            if not (isinstance(method, type) and issubclass(method, self._base)):
                raise TypeError(f"{name!r}: expected a class derived from {self._base.__name__}, got {method!r}")
            before = self._known.get(name)
            whose = (method.__module__, method.__qualname__)
            if before is not None and (before.__module__, before.__qualname__) != whose:
                raise ValueError(
                    f"{self._kind} {name!r} is {before.__module__}.{before.__qualname__} already: choose another name"
                )
            method.name = name
            self._known[name] = method
            return method

        return add

    def find(self, name: str) -> type[M]:
        """The class of a name, or of "package.module:Class". ValueError names the known ones."""
        module, colon, attribute = name.partition(":")
        if colon:
            try:
                found = getattr(importlib.import_module(module), attribute)
            except (ImportError, AttributeError, ValueError) as error:
                raise ValueError(f"{self._kind} = {name!r}: {error}") from error
            if not (isinstance(found, type) and issubclass(found, self._base)):
                raise ValueError(f"{self._kind} = {name!r}: expected a class derived from {self._base.__name__}")
            return found
        if name not in self._known:
            names = {word.lower(): known for known, of in self._known.items() for word in (known, of.__name__)}
            near = difflib.get_close_matches(name.lower(), names, 1)
            meant = f"; did you mean {names[near[0]]!r}?" if near else ""
            raise ValueError(
                f"{self._kind} = {name!r}: expected a {self._base.__name__}, 'package.module:Class', or one of "
                f"{', '.join(sorted(self._known))} (one of your own has its name once its module is imported){meant}"
            )
        return self._known[name]

    def make(self, method: str | M, **config: Any) -> M:
        """The object itself, or a new one by its class's name.

        Raises: ValueError for an unknown name, or one that needs arguments. TypeError for a class.
        """
        if isinstance(method, self._base):
            return method
        if isinstance(method, type) and issubclass(method, self._base):
            raise TypeError(
                f"{self._kind} = {method.__name__}: expected one of it, {method.__name__}(...), not the class"
            )
        if not isinstance(method, str):
            raise ValueError(f"{self._kind} = {method!r}: expected a {self._base.__name__} or its name")
        found = self.find(method)
        missing = [
            p.name
            for p in list(inspect.signature(found.__init__).parameters.values())[1:]
            if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name not in config
        ]
        if missing:
            arguments = ", ".join(f"{name}=" for name in missing)
            raise ValueError(
                f"{self._kind} = {method!r}: it has no defaults for {arguments}; make it yourself, {found.__name__}"
                f"({arguments}...)"
            )
        return found(**config)

    def inner(self, method: str | M, config: Mapping[str, Any] | None, learnt: Callable[[M], bool]) -> M:
        """One of one's own for a class that wraps another: a copy of an object, or a new one by name and arguments.

        Raises: ValueError: arguments that its class refuses, or beside an object; or an object that has ``learnt``.
        """
        if isinstance(method, str):
            try:
                return self.make(method, **({} if config is None else config))
            except (TypeError, ValueError) as error:
                raise ValueError(f"inner = {method!r}, inner_config = {config!r}: {error}") from error
        if not isinstance(method, self._base):
            raise ValueError(f"inner = {method!r}: expected a {self._base.__name__} or its name")
        if config is not None:
            raise ValueError(f"inner_config = {config!r}: {method!r} has its arguments already")
        if learnt(method):
            raise ValueError(f"inner = {method!r}: it has learnt already; make a new one")
        return copy.deepcopy(method)

    def example(self, name: str) -> M:
        """A new one by its class's name, with the example values that its class gives for some arguments."""
        found = self.find(name)
        return found(**found.example)

    def registered(self) -> dict[str, type[M]]:
        """All that have a name, by name."""
        return dict(sorted(self._known.items()))
