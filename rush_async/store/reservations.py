"""Reservations: the indices of proposals in a network with a seed, before they become tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, cast

from rush_async.store.calls import Batcher
from rush_async.store.position import number_of
from rush_async.store.records import NewTask
from rush_async.store.scripts import LOST, Lost, Request, Script
from rush_async.wire.transport import Word

__all__ = ["ReservationStore", "Reserved", "Started", "Unreserved"]

RESERVE = Script(
    *("reserve",),
    keys=("reserved", "returned"),
    item=("worker", "seed", "budget", "max_failed", "queued_first"),
    memory="grows",
    merges=True,
)
START = Script(
    *("start",),
    keys=("reserved", "returned", "points"),
    item=("worker", "index", "digest", "key", "created"),
    memory="grows",
    merges=True,
)
UNRESERVE = Script(
    *("unreserve",),
    keys=("reserved", "returned"),
    item=("worker", "index"),
    merges=True,
    is_final=True,
)
SET_SEED = Script("set_seed", args=("seed",), memory="grows")

# Why a worker got no index: a queued task comes first, the network has stopped, the places of its stop rules or of the budget
# are taken, the budget is spent, or the network has another seed.
Unreserved: TypeAlias = Literal["queued", "stopped", "full", "budget", "spent", "seed"]


# What became of a reserved index: it is a task, the worker does not have it any more, it has returned because the network has
# stopped, or the worker keeps it because a task has the point.
Started: TypeAlias = Literal["started", "gone", "stopped", "duplicate"]


class Tasks(Protocol):
    """The tasks of the network."""

    @property
    def calls(self) -> Batcher: ...

    def take_back(self, target: Literal["running"], keys: Sequence[str], worker_id: str) -> None:
        """Fails tasks that were created for a caller that is gone, in the background."""


class Reserved(NamedTuple):
    """The answer of a reservation.

    Attributes:
        place: the index, or why there is none.
        seed: the seed of the network; None for none.
    """

    place: int | Unreserved
    seed: int | None


class ReservationStore:
    """The reservations of one network.

    Args:
        tasks: its tasks, whose calls go the same way.
    """

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._calls = tasks.calls

    async def set_seed(self) -> int | None:
        """Gives the seed of a client to a network that exists without one. Returns the seed that it has now; None where it has
        none, because it holds tasks."""
        answer = await self._calls.call(Request(SET_SEED, [str(self._calls.position.seed)]))
        return number_of("seed", answer) if answer else None

    async def reserve(
        self, worker_id: str, *, budget: int | None, max_failed: int | None, queued_first: bool
    ) -> Reserved | Lost:
        """Reserves an index for a worker. What is reserved for a caller that is gone returns."""
        seed = self._calls.position.creation_seed
        limits = ["" if limit is None else limit for limit in (budget, max_failed)]
        args: list[Word] = [worker_id, "" if seed is None else str(seed), *limits, int(queued_first)]
        return await self._calls.call(_Reserve(self, worker_id, args))

    async def start(self, worker_id: str, index: int, task: NewTask, point: bytes = b"") -> Started | Lost:
        """Makes a reserved index a running task; with the digest of a point, only if the point is not taken."""
        return await self._calls.call(_Start(self._tasks, worker_id, index, point, task)) or "gone"  # None after a reset

    def unreserve(self, worker_id: str, index: int) -> None:
        """Returns an index, in the background."""
        self._calls.detach(Request(UNRESERVE, [worker_id, index], survives_reset=False))


class _Reserve(Request):
    """Reserves an index."""

    __slots__ = ("_store", "_worker_id")

    def __init__(self, store: ReservationStore, worker_id: str, args: list[Word]) -> None:
        super().__init__(RESERVE, args)
        self._store = store
        self._worker_id = worker_id

    def decode(self, answer: Any, extra: list[Any]) -> Reserved | Lost:
        (index,) = answer
        if index is None:
            return LOST
        return Reserved(
            cast("Unreserved", index.decode()) if isinstance(index, bytes) else int(index), int(extra[0]) if extra[0] else None
        )

    @property
    def compensates(self) -> bool:
        return True

    def compensate(self, result: Any) -> None:
        if isinstance(result, Reserved) and isinstance(result.place, int):
            self._store.unreserve(self._worker_id, result.place)


class _Start(Request):
    """Makes a reserved index a running task."""

    __slots__ = ("_key", "_tasks", "_worker_id")

    def __init__(self, tasks: Tasks, worker_id: str, index: int, point: bytes, task: NewTask) -> None:
        super().__init__(START, [worker_id, index, point, task.key, task.created], survives_reset=False)
        self._tasks = tasks
        self._worker_id = worker_id
        self._key = task.key

    def decode(self, answer: Any, extra: list[Any]) -> Started | Lost:
        match answer:
            case [None]:
                return LOST
            case [b"stopped" | b"duplicate" as refusal]:
                return refusal.decode()
            case _:
                (mark,) = answer
                return "started" if mark == 1 else "gone"

    @property
    def compensates(self) -> bool:
        return True

    def compensate(self, result: Any) -> None:
        if result == "started":
            self._tasks.take_back("running", [self._key], self._worker_id)
