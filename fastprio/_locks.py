"""Locks that a forked child does not inherit held."""

from __future__ import annotations

import os
import threading
import weakref
from contextlib import AbstractContextManager
from typing import Any

_owners: dict[str, weakref.WeakSet[Any]] = {}


def fork_safe_lock(owner: Any, attribute: str) -> AbstractContextManager[Any]:
    """A lock that one thread may take repeatedly, for ``owner.attribute``, which gets a new one in every forked child.

    A thread of the parent may have held it at the fork; in the child nobody would ever release it.
    """
    _owners.setdefault(attribute, weakref.WeakSet()).add(owner)
    return threading.RLock()


def _renew() -> None:
    for attribute, owners in _owners.items():
        for owner in list(owners):
            setattr(owner, attribute, threading.RLock())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
