"""The proposals of a worker: each turn takes a queued task, or waits for a place, proposes a task and starts it."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

from rush_async.client.draw import Draw, proposed
from rush_async.client.snapshot import take_snapshot
from rush_async.errors import DuplicateError
from rush_async.model import Catch, Task, TaskHolder, TaskState
from rush_async.network.network import Network
from rush_async.network.waiting import BudgetLine, Line
from rush_async.store.basis import Basis, Seen
from rush_async.store.points import Unique, as_unique, points_of
from rush_async.store.records import NewTask, RecordEncoder
from rush_async.store.scripts import Lost
from rush_async.worker.membership import Membership

__all__ = ["Proposals"]

_MOST_REDRAWS = 100  # points that are drawn under one index


class Blocks(TaskHolder, Protocol):
    """The blocks of the worker's tasks: the holder of each."""

    @property
    def membership(self) -> Membership: ...

    @property
    def encoder(self) -> RecordEncoder: ...

    async def pop(self, network: Network) -> Task | None:
        """Pops the next queued task, if there is one."""

    async def watch(self, network: Network) -> None:
        """Waits until the client receives the events of the network."""


class Proposals:
    """The proposals of one worker.

    Args:
        network: the network.
        blocks: the worker that takes the tasks.
        propose: makes a proposal of a draw.
        read: the states of the tasks that a proposal sees.
        budget: how many tasks may be queued, running, reserved or finished; None for no limit.
        max_failed: with a budget, how many tasks may have failed.
        queued: whether queued tasks come first.
        unique: what makes the point of a task that the network is to have only once; None where it may have it again.
        retries: how often a task goes back to the queue when its worker is lost.
        catch: exceptions that fail a task and are suppressed by its block.
        schema: columns that `draw.tasks` always has.
    """

    def __init__(
        self,
        network: Network,
        blocks: Blocks,
        propose: Callable[[Draw], Any | Awaitable[Any]],
        *,
        read: Sequence[TaskState],
        budget: int | None,
        max_failed: int | None,
        queued: bool,
        unique: Unique,
        retries: int,
        catch: Catch,
        schema: Any,
    ) -> None:
        self._network = network
        self._blocks = blocks
        self._membership: Membership = blocks.membership
        self._propose = propose
        self._read = read
        self._budget = budget
        self._max_failed = max_failed
        self._takes_queued = queued
        self._unique = as_unique(unique)
        self._retries = retries
        self._catch = catch
        self._schema = schema
        self._worker_seed = secrets.randbits(63)

    async def next(self) -> Task | None:
        """Returns the next task, which the worker now runs. None once the network has stopped or the budget is spent, or the
        worker was asked to stop."""
        network, membership = self._network, self._membership
        membership.check()
        with network.feed, self._line() as line:
            await self._blocks.watch(network)
            task = None
            while task is None and not membership.terminated and not self._is_spent():
                seed = await network.known_seed()
                if not await line.turn(None, membership.waits):
                    break
                reservation = None
                try:
                    if not (membership.terminated or self._is_spent()):
                        if seed is None:
                            task = await self._turn(line)
                        else:
                            task, reservation = await self._seeded_turn(line)
                except _SpentError:
                    break
                finally:
                    line.done()
                if reservation is not None and seed is not None:  # it has its place: others may have a turn
                    task = await self._take(seed, reservation)
        if task is None:
            await membership.raise_if_lost()
        else:
            task._catch = self._catch  # pyright: ignore[reportPrivateUsage]
        return task

    @contextmanager
    def _line(self) -> Generator[Line]:
        """The line in which the worker waits for a place."""
        lines = self._network.lines
        if self._budget is None:
            yield lines.places
        else:
            with lines.budget(self._budget, self._max_failed, takes_queued=self._takes_queued) as line:
                yield line

    def _is_spent(self) -> bool:
        """Whether the budget is spent, as far as is known here."""
        counts = self._network.position.counts
        is_spent = self._budget is not None and counts.finished >= self._budget
        return is_spent or (self._max_failed is not None and counts.failed >= self._max_failed)

    # without a seed

    async def _turn(self, line: Line) -> Task | None:
        lines = self._network.lines
        if self._takes_queued and lines.n_poppable and (task := await self._blocks.pop(self._network)) is not None:
            return task
        mark = lines.mark
        if not lines.n_places:
            return None  # the pop has found that the network is full
        for redraw in range(_MOST_REDRAWS):
            task, basis = await self._proposal(None, None, redraw)
            new, point = self._new(task, basis)
            pushed = await self._network.tasks.push_one(new, self._membership.worker_id, self._budget, self._max_failed, point)
            if isinstance(pushed, Lost):
                raise self._membership.lost_error()
            if pushed.n:
                line.place_taken(mark)
                return self._started(task, pushed.first_index)
            if pushed.refusal == "full":
                lines.found_full(mark)
            elif pushed.refusal is None and isinstance(line, BudgetLine):
                line.found_full(mark)
            if pushed.refusal != "duplicate":
                return None
        raise self._duplicate_error()

    # with a seed

    async def _seeded_turn(self, line: Line) -> tuple[Task | None, _Reservation | None]:
        """Takes a queued task or reserves an index. Neither where there is no place."""
        network, lines = self._network, self._network.lines
        queued_first = self._takes_queued
        while True:
            mark, epoch = lines.mark, network.position.epoch
            reserved = await network.reservations.reserve(
                self._membership.worker_id, budget=self._budget, max_failed=self._max_failed, queued_first=queued_first
            )
            if isinstance(reserved, Lost):
                raise self._membership.lost_error()
            match reserved.place:
                case int(index):
                    line.place_taken(mark)
                    return None, _Reservation(index, epoch)
                case "queued":
                    if (task := await self._blocks.pop(network)) is not None:
                        return task, None
                    queued_first = False  # others took it, or no entry of the queue leads to it
                case "full":
                    lines.found_full(mark)
                    return None, None
                case "budget":
                    assert isinstance(line, BudgetLine)
                    line.found_full(mark)
                    return None, None
                case "seed":
                    network.forget_seed()  # it is read again, and compared
                    return None, None
                case "spent" | "stopped":
                    raise _SpentError

    async def _take(self, seed: int, reservation: _Reservation) -> Task | None:
        """Proposes and starts the task of a reserved index. None if the network has stopped, or the reservation is gone."""
        network, worker_id = self._network, self._membership.worker_id
        reservations, index = network.reservations, reservation.at
        is_reserved = True
        try:
            for redraw in range(_MOST_REDRAWS):
                task, basis = await self._proposal(seed, index, redraw)
                if network.position.epoch != reservation.epoch:
                    return None  # after a reset, the worker may have this index for another proposal
                started = await reservations.start(worker_id, index, *self._new(task, basis))
                if started != "duplicate":
                    is_reserved = False
                    if isinstance(started, Lost):
                        raise self._membership.lost_error()
                    return self._started(task, index) if started == "started" else None
            raise self._duplicate_error()
        finally:  # the proposal failed, was cancelled, or found no new point
            if is_reserved and network.position.epoch == reservation.epoch:
                reservations.unreserve(worker_id, index)

    # a proposal

    async def _proposal(self, seed: int | None, index: int | None, redraw: int) -> tuple[Task, Basis | None]:
        """Asks for a proposal. Returns its task, and its basis in a network with a seed."""
        membership = self._membership
        assert membership.number is not None
        number = membership.n_proposals if redraw == 0 else membership.n_proposals - 1
        membership.n_proposals = number + 1
        seen: tuple[Seen, ...] = ()
        frame = None
        if self._read:
            snapshot = await take_snapshot(self._network.tasks, self._network.results, self._network.feed, self._read)
            from rush_async.frames.finished import table_of  # polars takes its time: it is imported for the first frame

            table = table_of(self._network.results)
            frame = table.proposal_frame(snapshot.n_finished, snapshot.complete(), self._read, schema=self._schema)
            seen = snapshot.seen(self._read)
        draw = Draw(seed, index, membership.number, number, redraw, frame, self._worker_seed)
        xs, extra = await proposed(self._propose, draw)
        task = Task("", "running", xs, extra, attempt=1, worker_id=membership.worker_id, _holder=self._blocks)
        return task, None if seed is None else Basis(membership.number, number, redraw, seen)

    def _new(self, task: Task, basis: Basis | None) -> tuple[NewTask, bytes]:
        """Returns the task encoded, and the digest of its point where it is to be unique."""
        packed = None if basis is None else basis.encode()
        new = self._blocks.encoder.task(task.xs, task.xs_extra, "xs", self._retries, basis=packed)
        task.key = new.key
        points = points_of([task.xs], self._unique)
        return new, points[0] if points else b""

    def _duplicate_error(self) -> DuplicateError:
        return DuplicateError(
            f"{_MOST_REDRAWS} proposals in a row are points that network {self._network.network_id!r} has: the space may be "
            "used up; propose with unique=False, or stop the network"
        )

    def _started(self, task: Task, index: int) -> Task:
        task.index = index
        self._membership.hold([task.key])
        return task


class _Reservation(NamedTuple):
    """A reserved index, and the epoch in which it was reserved."""

    at: int
    epoch: int


class _SpentError(Exception):
    """The network has stopped, or the budget is spent."""
