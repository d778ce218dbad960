"""Who may use a backend now: one caller at a time, and none of what a fork took apart."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tgate_export.common.errors import InvalidRequestError


class Turns:
    """Lets callers use a backend one after another, whatever threads they are in.

    A forked child has the engines of its parent without their threads, and locks that nobody
    releases. There, whoever comes first has the engines made anew. The old ones are never freed:
    most wait for their threads when they are.
    """

    def __init__(self, renew: Callable[[], None]) -> None:
        """Take `renew`, which a forked child calls before its first turn; it may raise."""
        self._renew = weakref.WeakMethod(renew)
        self._lock = threading.Lock()
        self._owner: int | None = None
        self._users: weakref.WeakSet[Any] = weakref.WeakSet()
        self._last: weakref.ref[Any] | None = None
        self._forks = 0
        self._renewed = 0
        _ALL.add(self)

    @contextmanager
    def take(self, user: object) -> Iterator[bool]:
        """Wait until the backend is free, and have it for the block.

        Args:
            user: whose turn it is; what it bound to the backend's engines is among its attributes.

        Yields:
            whether what it bound in its last turn is still good: no other user came in between.

        Raises:
            InvalidRequestError: this thread has the backend already.
        """
        lock = self._lock
        if self._owner == threading.get_ident() and lock.locked():
            raise InvalidRequestError(
                "a callback called the pipeline that it is called by: let that call end first, or "
                "load another pipeline"
            )
        with lock:
            self._owner = threading.get_ident()
            forks = self._forks
            try:
                if self._renewed != forks:
                    renew = self._renew()
                    assert renew is not None
                    renew()
                    self._renewed = forks
                good = self._last is not None and self._last() is user
                self._users.add(user)
                self._last = weakref.ref(user)
                yield good
            finally:
                if forks == self._forks:  # else a child has another lock
                    self._owner = None

    def check(self) -> None:
        """Refuse to go on with a turn that began before a fork, in the child.

        Raises:
            InvalidRequestError: this is the child.
        """
        if self._renewed != self._forks:
            raise InvalidRequestError(
                "a callback forked the process: the run goes on in the parent alone"
            )

    def _after_fork(self) -> None:
        renew = self._renew()
        owners = [*self._users, getattr(renew, "__self__", self)]
        _keep_for_ever([dict(vars(owner)) for owner in owners])
        self._lock, self._owner, self._last = threading.Lock(), None, None
        self._forks += 1


_ALL: weakref.WeakSet[Turns] = weakref.WeakSet()


def _keep_for_ever(value: object) -> None:
    """Take a reference that not even the interpreter's end gives back."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


def _after_fork() -> None:
    for turns in list(_ALL):
        turns._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
