"""Repeats the proposals of a network with a seed, from what was stored with its tasks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rush_async.client.client import RushClient
from rush_async.client.draw import Draw, proposed
from rush_async.client.export.reading import Archive
from rush_async.client.snapshot import take_snapshot
from rush_async.errors import DecodeError, NetworkStateError
from rush_async.model import TASK_STATES, Failure, TaskState
from rush_async.store.basis import Basis
from rush_async.store.decoding import complete, decode_flat
from rush_async.store.fields import BASIS, CREATED_AT, INDEX, KEY, XS, XS_EXTRA
from rush_async.store.records import encode_created, header, stamped, stamped_failure

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Divergence", "Replay", "fetch_tasks_as_of", "replay"]


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first proposal that was not the same again.

    Attributes:
        index: the index of its task.
        key: the key of its task.
        expected: the input that is stored.
        found: the input that was proposed now.
    """

    index: int
    key: str
    expected: dict[str, Any]
    found: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Replay:
    """What a replay has found.

    Attributes:
        n_compared: how many proposals were repeated.
        divergence: the first one that was not the same again; None if all were.
    """

    n_compared: int
    divergence: Divergence | None = None

    @property
    def is_identical(self) -> bool:
        """Whether every proposal was the same again."""
        return self.divergence is None


async def replay(rush: RushClient | Archive, propose: Callable[[Draw], Any | Awaitable[Any]], *, schema: Any = None) -> Replay:
    """Calls a proposal function once more for each task that it proposed in a network with a seed, and compares the inputs.

    Each call gets the draw of that time: the same random numbers, and the tasks that it read as they were then. Nothing is
    written. The libraries that `propose` uses may differ between versions and machines; the replay shows whether they do.

    Args:
        rush: a client of the network, such as a manager; or an export of it.
        propose: the function given to `proposals`.
        schema: the `schema` given to `proposals`.

    Returns:
        How many proposals were compared, and the first divergence if there is one.

    Raises:
        NetworkStateError: the network has no seed.
        DecodeError: a record is malformed; the message has its beginning.
    """
    seed = rush.seed if isinstance(rush, Archive) else await rush._net.known_seed()  # pyright: ignore[reportPrivateUsage]
    if seed is None:
        raise NetworkStateError(f"network {rush.network_id!r} has no seed, so its proposals cannot be repeated: Rush(seed=...)")
    past = await _Past.read(rush)
    n_compared = 0
    for index, fields in sorted(past.tasks.items()):
        if fields[BASIS] is None:
            continue  # it was pushed, not proposed
        basis = Basis.decode(fields[BASIS])
        frame = past.frame(basis, schema) if basis.seen else None
        draw = Draw(seed, index, basis.worker, basis.round, basis.redraw, frame)
        xs, _ = await proposed(propose, draw)
        n_compared += 1
        key, expected = fields[KEY], fields[XS]
        if encode_created(key, xs, None) != encode_created(key, expected, None):
            return Replay(n_compared, Divergence(index, key, expected, xs))
    return Replay(n_compared)


async def fetch_tasks_as_of(rush: RushClient | Archive, key: str, *, schema: Any = None) -> pl.DataFrame:
    """Returns the tasks that the proposal of a task saw, as they were then: its `draw.tasks`. Takes an export, too.

    Raises:
        KeyError: the network has no such task, or it was not proposed in a network with a seed.
    """
    past = await _Past.read(rush)
    fields = next((fields for fields in past.tasks.values() if fields[KEY] == key), None)
    if fields is None or fields[BASIS] is None:
        raise KeyError(f"network {rush.network_id!r} has no proposal {key!r}: a network with a seed stores what each one saw")
    return past.frame(Basis.decode(fields[BASIS]), schema)


class _Past:
    """All tasks of a network at one moment.

    Args:
        finished: the records of the finished tasks, in the order they finished.
        others: those of all others, by state.
    """

    def __init__(self, finished: Sequence[bytes], others: dict[TaskState, list[bytes]]) -> None:
        self._finished = finished
        records = [*finished, *[record for records in others.values() for record in records]]
        decoded = [decode_flat(record, 1) for record in records]
        self.tasks: dict[int, list[Any]] = {fields[INDEX]: fields for fields in decoded}

    @classmethod
    async def read(cls, rush: RushClient | Archive) -> _Past:
        """Reads the tasks of a network or of an export."""
        if isinstance(rush, Archive):
            others = rush.complete_records()
            return cls(others.pop("finished"), others)
        network = rush._net  # pyright: ignore[reportPrivateUsage]
        snapshot = await take_snapshot(network.tasks, network.results, network.feed, TASK_STATES)
        return cls(network.results.records.good(0, snapshot.n_finished), snapshot.complete())

    def frame(self, basis: Basis, schema: Any) -> pl.DataFrame:
        """The tasks that a proposal saw.

        Raises:
            DecodeError: the network does not have them any more.
        """
        from rush_async.frames.frame import proposal_frame  # polars takes its time: it is imported for the first frame

        groups: list[tuple[TaskState, Sequence[bytes]]] = []
        for state, n, indices in basis.seen:
            if state == "finished":
                groups.append((state, self._finished[:n]))
            else:
                groups.append((state, [self._record(index, state) for index in indices]))
            if len(groups[-1][1]) != n:
                raise DecodeError(f"a proposal saw {n:,} {state} tasks, and the network has {len(groups[-1][1]):,} of them now")
        return proposal_frame(groups, schema=schema)

    def _record(self, index: int, state: TaskState) -> bytes:
        """The complete record that a task had in a state, as far as a proposal sees it."""
        fields = self.tasks.get(index)
        if fields is None:
            raise DecodeError(f"a proposal saw the task with the index {index}, and the network does not have it any more")
        created = encode_created(fields[KEY], fields[XS], fields[XS_EXTRA], basis=fields[BASIS])
        raw = header(created) + stamped(created, fields[CREATED_AT], index)
        if state == "failed":  # it shows that it failed, not why
            return complete(state, raw + stamped_failure(Failure(), fields[CREATED_AT]))
        return complete("queued", raw)
