"""Streams of events for `async for`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from typing import Any, Generic, Protocol, Self, TypeVar, cast

from rush_async.errors import NetworkStateError
from rush_async.events import TaskReported, TasksFailed, TasksFinished
from rush_async.model import Task
from rush_async.network.event_feed import EventFeed, Listener
from rush_async.network.results import Results

__all__ = ["EventStream"]

E_co = TypeVar("E_co", covariant=True)


class ReportFeed(Protocol):
    """The events of reports."""

    def listening(self, listener: Listener) -> AbstractContextManager[None]: ...

    async def begin(self, listener: Listener) -> None: ...


class Network(Protocol):
    """The network of the client."""

    network_id: str

    @property
    def report_feed(self) -> ReportFeed: ...

    @property
    def feed(self) -> EventFeed: ...

    @property
    def results(self) -> Results: ...

    async def find(self, keys: Sequence[str], *, skips_malformed: bool = False) -> dict[str, Task]:
        """Tasks by key."""
        ...


class Client(Protocol):
    """The client whose stream it is."""

    @property
    def _net(self) -> Network: ...

    def _until_closed(self) -> AbstractContextManager[None]: ...


class EventStream(Generic[E_co]):
    """The stream of events that `rush.events()` returns. It is open within its block."""

    def __init__(self, client: Client, kinds: tuple[type[Any], ...], buffer: int, *, has_results: bool) -> None:
        self._client = client
        self._kinds = kinds
        self._buffer = buffer
        self._has_results = has_results
        self._stack = ExitStack()
        self._listener: Listener | None = None
        self._is_opened = False

    async def __aenter__(self) -> Self:
        if self._is_opened:
            raise NetworkStateError("this stream of events was opened before: make a new one with `rush.events(...)`")
        self._is_opened = True
        network = self._client._net  # pyright: ignore[reportPrivateUsage]
        with ExitStack() as stack, self._client._until_closed():  # pyright: ignore[reportPrivateUsage]
            stack.enter_context(network.feed)  # notices a silent connection, also for a listener of reports alone
            await network.feed.watch()
            listener = None
            if set(self._kinds) != {TaskReported}:
                listener = stack.enter_context(network.feed.listening(self._kinds, self._buffer))
                await network.feed.begin(listener)
            if TaskReported in self._kinds:  # reports have a channel and numbers of their own
                reports = Listener(network.network_id, (TaskReported,), self._buffer, into=listener)
                stack.enter_context(network.report_feed.listening(reports))
                await network.report_feed.begin(reports)
                listener = reports if listener is None else listener
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
        with self._client._until_closed():  # pyright: ignore[reportPrivateUsage]
            event = await listener.next()
        if event is None:
            raise StopAsyncIteration
        if self._has_results and isinstance(event, TasksFinished | TasksFailed):
            try:
                event = replace(event, tasks=await self._tasks_of(event))
            except BaseException:
                listener.put_back(event)  # a cancelled reader, or a server that is gone, loses no event
                raise
        return cast("E_co", event)

    async def _tasks_of(self, event: TasksFinished | TasksFailed) -> tuple[Task, ...]:
        network = self._client._net  # pyright: ignore[reportPrivateUsage]
        is_finished = isinstance(event, TasksFinished)
        found = await (network.results.find(event.keys) if is_finished else network.find(event.keys, skips_malformed=True))
        return tuple([found[key] for key in event.keys if key in found])
