"""What lives in a process and in an event loop: values of each event loop, and owners that a forked child makes forget."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any, Generic, Protocol, TypeVar, cast
from weakref import WeakSet

__all__ = ["LoopValue", "forget_in_child", "is_in_event_loop", "process_generation"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_ATTRIBUTE = "_rush_async"


class Owner(Protocol):
    """Owns what belongs to one process."""

    def forget(self) -> None:
        """Is called in a forked child: gives up what is the parent's."""


_owners: WeakSet[Owner] = WeakSet()
_generation = 0


def forget_in_child(owner: Owner) -> None:
    """Lets `owner` forget what is its process's own whenever that is forked. It is not kept alive for that."""
    _owners.add(owner)


def process_generation() -> int:
    """A number that differs in a forked child, where nothing that the parent opened can be used."""
    return _generation


def _forget_all() -> None:
    global _generation
    _generation += 1
    for owner in list(_owners):
        try:
            owner.forget()
        except Exception:
            logger.exception("a forked process could not give up what is its parent's")


def is_in_event_loop() -> bool:
    """Whether an event loop runs in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


os.register_at_fork(after_in_child=_forget_all)


class LoopValue(Generic[T]):
    """A value of each event loop, kept on the loop itself: the two are collected together, however the loop ends.

    A `WeakKeyDictionary` would keep a loop alive for ever, because its values refer to the loop.

    Args:
        kind: the class of the value; called without arguments on the first use in a loop.
    """

    def __init__(self, kind: type[T]) -> None:
        self._kind = kind

    def get(self) -> T:
        """The value of the running event loop."""
        loop = asyncio.get_running_loop()
        values = cast("dict[Any, Any] | None", getattr(loop, _ATTRIBUTE, None))
        if values is None:
            values = {}
            setattr(loop, _ATTRIBUTE, values)
        if self not in values:
            values[self] = self._kind()
        return values[self]
