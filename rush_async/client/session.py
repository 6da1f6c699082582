"""The life of a client: it is opened once and closed once, in one event loop of one process."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Protocol, Self, TypeVar
from weakref import WeakSet

import anyio

from rush_async.errors import NetworkStateError, RushConnectionError
from rush_async.process import forget_in_child
from rush_async.supervisor import run_to_completion

__all__ = ["Session", "Shared"]


class Shared(Protocol):
    """The view of a network, which several clients share.

    Attributes:
        waits: what waits for changes of the network.
        ended: why its server cannot come back; None while it can.
    """

    waits: set[anyio.CancelScope]

    @property
    def ended(self) -> RushConnectionError | None: ...

    async def release(self) -> None:
        """Releases the view; the last user closes it."""


N = TypeVar("N", bound=Shared)


class _OpenClients:
    """The clients that are open in this process."""

    def __init__(self) -> None:
        self.clients: WeakSet[Session[Any]] = WeakSet()

    def forget(self) -> None:
        """Is called in a forked child: they are the parent's."""
        for client in list(self.clients):
            client._forget()  # pyright: ignore[reportPrivateUsage]


_open = _OpenClients()
forget_in_child(_open)


class Session(Generic[N]):
    """A client's stay in a network, opened by `async with` or by `await`. Another task than that may close it.

    Args:
        network_id: the network.
    """

    def __init__(self, network_id: str) -> None:
        self._network_id = network_id
        self._network: N | None = None  # while the client is open
        self._of_parent: N | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = asyncio.Lock()  # held while it is opened or closed
        self._waiting: set[anyio.CancelScope] = set()
        self._why_not_open = (
            f"{self._name} is not open yet: write `async with {self._name} as rush: ...`, "
            f"or `rush = await {self._name}` and later `await rush.aclose()`"
        )

    @property
    def _name(self) -> str:
        return f"{type(self).__name__}({self._network_id!r})"

    # what a kind of client does

    async def _acquire(self) -> N:
        """Returns the view of the network, which is released when the client is closed."""
        raise NotImplementedError

    async def _on_open(self, network: N) -> None:
        """Is called when the network is acquired, before the client counts as open: a worker registers."""

    async def _on_close(self, error: BaseException | None) -> None:
        """Is called before the network is released: a worker deregisters, a manager stops its workers."""

    # opening and closing

    if not TYPE_CHECKING:  # a checker would accept `with`, too

        def __enter__(self) -> NoReturn:
            raise TypeError(f"{self._name} is opened by `async with`, inside of a coroutine, not by `with`")

        def __exit__(self, *_: object) -> None: ...

    def __await__(self) -> Generator[Any, None, Self]:
        return self.__aenter__().__await__()

    async def __aenter__(self) -> Self:
        if self._loop is not None or self._of_parent is not None:
            raise NetworkStateError(f"{self!r} was opened before: a client is opened once, make a new one")
        self._loop = asyncio.get_running_loop()
        async with self._lock:
            try:
                network = self._network = await self._acquire()
            except BaseException:
                self._loop = None
                raise
            try:
                await self._on_open(network)
            except BaseException:
                await run_to_completion(self._release())
                raise
            _open.clients.add(self)
            return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close(error)

    async def aclose(self) -> None:
        """Closes the client, as leaving its block does. Closing it again does nothing."""
        await self._close(None)

    async def _close(self, error: BaseException | None) -> None:
        if self._loop is not None:
            self._check_loop()
            await run_to_completion(self._end_stay(error))

    async def _end_stay(self, error: BaseException | None) -> None:
        async with self._lock:  # a second call waits for the first
            if self._network is None:
                return
            try:
                await self._on_close(error)
            finally:
                await self._release()

    async def _release(self) -> None:
        _open.clients.discard(self)
        network, self._network = self._network, None
        self._why_not_open = f"{self._name} is closed: open a new one"
        for scope in self._waiting:
            scope.cancel()
        if network is not None:
            await network.release()

    def _forget(self) -> None:
        """The client is the parent's."""
        # Still referred to: finalizers would close what the parent uses.
        self._of_parent, self._network, self._loop = self._network, None, None
        self._why_not_open = f"{self._name} was opened before this process was forked: open a new client in the child"

    # while it is open

    @property
    def _net(self) -> N:
        """The network.

        Raises:
            NetworkStateError: the client is not open, or open in another event loop.
        """
        network = self._network
        if network is None:
            raise NetworkStateError(self._why_not_open)
        if asyncio.get_running_loop() is not self._loop:
            self._check_loop()
        return network

    def _check_loop(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            raise NetworkStateError(
                f"{self._name} was opened in another event loop: open one client in each loop, they share the network"
            )

    @contextmanager
    def _until_closed(self) -> Generator[None]:
        """What waits in this block ends with `NetworkStateError` when the client is closed, or was before, and with
        `RushConnectionError` when the server has ended: no event would wake it any more."""
        network = self._network
        if network is None:
            raise NetworkStateError(self._why_not_open)
        with anyio.CancelScope() as scope:
            self._waiting.add(scope)
            network.waits.add(scope)
            try:
                yield
            except asyncio.CancelledError as error:
                if not error.args:  # of `Task.cancel()`, as where a notebook interrupts a cell; anyio's has a text
                    error.args = (f"interrupted while it waited in network {self._network_id!r}",)
                raise
            finally:
                self._waiting.discard(scope)
                network.waits.discard(scope)
        if scope.cancelled_caught:
            if self._network is not None and network.ended is not None:
                raise RushConnectionError(network.ended.problem, network.ended.advice, is_final=True)
            raise NetworkStateError(self._why_not_open)
