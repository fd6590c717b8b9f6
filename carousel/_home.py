"""Limits an object's use to the process that made it, until it is closed. Makes objects unpicklable."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NoReturn, TypeVar

from carousel._backoff import CLIENT_CLOSED
from carousel._exit import stay_at_exit
from carousel.errors import FailedPreconditionError

Stub = TypeVar("Stub")

_HOME = "_carousel_home"


class Home:
    """The process in which one object was made. is_closed: whether the program closed the object. Thread-safe."""

    def __init__(self, name: str) -> None:
        """name: the object's, for errors."""
        self.is_closed = False
        self._name = name
        self._pid = os.getpid()

    @property
    def is_here(self) -> bool:
        """Whether this process made the object, and was not forked from the one that did."""
        return os.getpid() == self._pid

    def check(self) -> None:
        """Raises FailedPreconditionError in a forked process, and after the object was closed."""
        if not self.is_here:
            raise FailedPreconditionError(
                f"this {self._name} was made in process {self._pid} and cannot be used in this forked process: make a"
                " client after the fork, and resume sessions there by their ids",
                reason="FORKED",
            )
        if self.is_closed:
            stay_at_exit()
            raise FailedPreconditionError(f"the {self._name} was closed: make a new one", reason=CLIENT_CLOSED)

    def guarded(self, stub: Stub) -> Stub:
        """Replaces each call of a stub by one that first runs `check`. Returns the stub; see also `check_client`."""
        for name, call in list(vars(stub).items()):
            setattr(stub, name, self._guarded(call))
        vars(stub)[_HOME] = self
        return stub

    def _guarded(self, call: Callable[..., object]) -> Callable[..., object]:
        def checked(*arguments: object, **options: object) -> object:
            self.check()
            return call(*arguments, **options)

        return checked


def check_client(stub: object) -> None:
    """Runs `Home.check` of the client that guards a stub, before a call on a stream that is there already."""
    home = vars(stub).get(_HOME)
    if home is not None:
        home.check()


class Unpicklable:
    """Base class of objects that cannot be pickled or copied, because they hold a connection."""

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Raises TypeError."""
        raise TypeError(
            f"{type(self).__name__} cannot be pickled or copied, because it holds a connection of this process: make a"
            " client in each process, and resume sessions there by their ids"
        )
