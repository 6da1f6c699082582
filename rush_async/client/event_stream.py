"""Streams of events: what a listener gathers, for `async for`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from typing import Any, Generic, Self, TypeVar, cast

from rush_async.errors import NetworkStateError
from rush_async.events import TasksFailed, TasksFinished
from rush_async.model import Task
from rush_async.network.listener import Listener
from rush_async.network.network import Network

__all__ = ["EventStream"]

E_co = TypeVar("E_co", covariant=True)


class EventStream(Generic[E_co]):
    """Events as they come; what `rush.events()` gives. Ends with its block."""

    def __init__(
        self,
        network: Callable[[], Network],
        until_closed: Callable[[], AbstractContextManager[None]],
        kinds: tuple[type[Any], ...],
        buffer: int,
        tasks_of: Callable[[TasksFinished | TasksFailed], Awaitable[Sequence[Task]]] | None,
    ) -> None:
        self._network = network
        self._until_closed = until_closed
        self._kinds = kinds
        self._buffer = buffer
        self._tasks_of = tasks_of
        self._stack = ExitStack()
        self._listener: Listener | None = None
        self._is_opened = False

    async def __aenter__(self) -> Self:
        if self._is_opened:
            raise NetworkStateError("this stream of events was opened before: make a new one with `rush.events(...)`")
        self._is_opened = True
        network = self._network()
        with ExitStack() as stack, self._until_closed():
            stack.enter_context(network.watched)
            await network.watch()
            # First gather, then look where the network stands: what comes in between is neither missed nor seen twice.
            listener = stack.enter_context(network.listening(self._kinds, self._buffer))
            position = await network.tasks.look()
            listener.begin(position.epoch, position.seq)
            self._stack.push(stack.pop_all())
            self._listener = listener
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stack.close()
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> E_co:
        listener = self._listener
        if listener is None:
            raise NetworkStateError("this stream of events is not open: write `async with rush.events(...) as events:`")
        with self._until_closed():
            event = await listener.next()
        if event is None:
            raise StopAsyncIteration
        if self._tasks_of is not None and isinstance(event, TasksFinished | TasksFailed):
            try:
                event = replace(event, tasks=tuple(await self._tasks_of(event)))
            except BaseException:
                listener.put_back(event)  # a cancelled reader, or a server that is gone, loses no event
                raise
        return cast("E_co", event)
