"""Takes an export into a network, new or existing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, Literal, Protocol

import anyio.to_thread

from rush_async.model import Failure
from rush_async.store.codec import ends_of
from rush_async.store.decoding import attempt_end
from rush_async.store.export_item import ExportItem
from rush_async.store.fields import BASIS, HEADER, INDEX, NIL
from rush_async.store.records import encode_failure, encode_time
from rush_async.store.scripts import MOST_BYTES, MOST_TASKS
from rush_async.supervisor import run_to_completion

__all__ = ["ImportingNetwork", "import_into"]

# What becomes of a task that ran: its worker is gone.
_GONE = encode_failure(Failure("lost", None, "It ran on a worker when its network was exported"))
_OF_NETWORK = ("attributes", "claims", "ranking")


class Import(Protocol):
    """An import that has begun."""

    @property
    def keeps_indices(self) -> bool: ...

    async def add(self, items: Sequence[ExportItem]) -> list[bool]:
        """Adds those that are not there; returns for each whether it was added."""
        ...


class Imports(Protocol):
    """Takes exports in."""

    async def begin(self, archive: str, next_index: int, next_number: int, indices: Sequence[int]) -> Import:
        """Begins to take one in."""
        ...


class ImportingNetwork(Protocol):
    """A network that takes exports in."""

    @property
    def tasks(self) -> Any: ...

    @property
    def imports(self) -> Imports: ...

    async def adopt_seed(self, seed: int | None) -> None:
        """Takes the seed of its proposals."""
        ...


class Archived(Protocol):
    """An export."""

    @property
    def network(self) -> dict[str, Any]: ...

    @property
    def seed(self) -> int | None: ...

    def items(self, table: Literal["tasks", "state", "reports", "logs"]) -> Iterator[ExportItem]:
        """What it holds."""
        ...


async def import_into(network: ImportingNetwork, archive: Archived) -> list[str]:
    """Adds what the network does not have. Returns the keys of the tasks that were added."""
    facts = archive.network
    if not (await network.tasks.read_position()).counts.total:
        await network.adopt_seed(archive.seed)
    begun = await network.imports.begin(facts["id"], facts["next_index"], facts["next_number"], facts["returned"])
    added, known = list[str](), set[bytes]()
    batches = _batches(_tasks(archive, begun, known))
    while batch := await _next(batches):
        marks = await begun.add(batch)
        added += [item.name.decode() for item, is_new in zip(batch, marks, strict=True) if is_new]
    batches = _batches(_shared(archive, known, keeps_all=begun.keeps_indices))
    while batch := await _next(batches):
        await begun.add(batch)
    return added


async def _next(batches: Iterator[list[ExportItem]]) -> list[ExportItem]:
    """The next batch, which a thread reads: a part of the file may take the time of many calls. Nothing behind the last one."""
    nothing = list[ExportItem]()
    return await run_to_completion(anyio.to_thread.run_sync(next, batches, nothing))


def _tasks(archive: Archived, begun: Import, known: set[bytes]) -> Iterator[ExportItem]:
    """The tasks: those that ran first, so that those of them with retries left are the next in the queue."""
    ended = encode_time(datetime.fromisoformat(archive.network["exported_at"]).timestamp())
    for is_first in (True, False):
        for item in archive.items("tasks"):
            if (item.place == "running") == is_first:
                known.add(item.name)
                yield _task(item, ended, keeps_index=begun.keeps_indices)


def _task(item: ExportItem, ended: bytes, *, keeps_index: bool) -> ExportItem:
    """A task as it is imported."""
    place, key, raw, _ = item
    if place == "running":
        place, raw = _without_worker(raw, ended)
    if keeps_index:
        return ExportItem(place, key, raw)
    head = 0 if place == "finished" else HEADER.size
    ends = ends_of(raw[head:], INDEX + 1)
    first, behind, end = [head + at for at in (ends[BASIS - 1], ends[BASIS], ends[INDEX])]
    if raw[first:behind] != NIL:  # what the proposal saw has other indices here
        raw, end = raw[:first] + NIL + raw[behind:], end - (behind - first - 1)
        if head:
            attempt, retries, _ = HEADER.unpack_from(raw)
            raw = HEADER.pack(attempt, retries, end - head) + raw[head:]
    return ExportItem(place, key, raw, b"%d" % end)


def _without_worker(raw: bytes, ended: bytes) -> tuple[str, bytes]:
    """The record of a running task whose worker is gone: queued with one retry less, or failed where none is left."""
    attempt, retries, length = HEADER.unpack_from(raw)
    if retries:
        created = raw[HEADER.size : HEADER.size + length]
        return "queued", HEADER.pack(attempt, retries - 1, length) + created + NIL * 3 + _GONE + NIL
    return "failed", raw[: attempt_end("running", raw)] + _GONE + ended


def _shared(archive: Archived, known: set[bytes], *, keeps_all: bool) -> Iterator[ExportItem]:
    """What belongs to the tasks; and where the network takes the export over, what the clients shared."""
    for item in archive.items("state"):
        # Tasks that were pushed while the export read these are not in it.
        if (item.name if item.place == "task_attributes" else item.data) in known or (keeps_all and item.place in _OF_NETWORK):
            yield item
    if keeps_all:
        yield from archive.items("reports")
        yield from archive.items("logs")


def _batches(items: Iterable[ExportItem]) -> Iterator[list[ExportItem]]:
    """The items in calls of at most 1,000 and 1 MiB; a larger one goes alone."""
    batch, size = list[ExportItem](), 0
    for item in items:
        length = len(item.name) + len(item.data)
        if batch and (len(batch) == MOST_TASKS or size + length > MOST_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += length
    if batch:
        yield batch
