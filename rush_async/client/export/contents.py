"""What an export holds, read from the network into temporary files, so that it need not fit into memory."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, closing, suppress
from datetime import UTC, datetime
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import anyio.to_thread

from rush_async.client.export.provenance import environment
from rush_async.client.export.spool import SpooledRecords, SpooledRows
from rush_async.errors import DecodeError
from rush_async.model import TASK_STATES, Counts, TaskState
from rush_async.store.codec import decode
from rush_async.store.decoding import complete, decode_records
from rush_async.store.exports import ExportReads, SharedData
from rush_async.store.keys import NetworkKeys
from rush_async.store.log_entry import LogEntry
from rush_async.store.malformed import MalformedRecords
from rush_async.store.position import number_of
from rush_async.store.report_entry import Report
from rush_async.store.task_reads import TaskReads, View
from rush_async.supervisor import run_to_completion

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Contents", "ExportedNetwork"]

_BATCH = 1_000  # records that are decoded together
_BATCH_BYTES = 16 * 1024 * 1024
_STALE = 128  # a bit of the second byte of a record: the queue has a stale entry of the task


class ExportedNetwork(Protocol):
    """A network that is exported."""

    @property
    def keys(self) -> NetworkKeys: ...

    @property
    def tasks(self) -> TaskReads: ...

    @property
    def exports(self) -> ExportReads: ...

    @property
    def malformed(self) -> MalformedRecords: ...

    @property
    def workers(self) -> Any: ...

    @property
    def stop_rules(self) -> Any: ...


class Contents:
    """All that an export holds.

    Args:
        folder: where the temporary files are.
        stack: closes them.

    Attributes:
        epoch: the epoch of the network; 0 where it does not exist.
        records: takes the records of tasks that are not finished, by state and key, where they are many.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        from rush_async.frames.parts import ReportParts, TaskParts  # polars takes its time: it is imported for the first frame

        self.epoch = 0
        self.records: dict[TaskState, MutableMapping[bytes, bytes]] = {}
        self._spooled: dict[TaskState, SpooledRecords] = {
            state: stack.enter_context(closing(SpooledRecords())) for state in TASK_STATES if state != "finished"
        }
        self.records.update(self._spooled)
        self._counts = Counts()
        self._shared = SharedData({}, {}, {}, {}, [], [])
        self._workers: list[dict[str, Any]] = []
        self._rules: dict[str, Any] = {}
        self._task_parts, self._report_parts = TaskParts(), ReportParts()
        # States, each with a record as it is stored; parts of the shared state; ids of the streams, each with the entry.
        self._tasks, self._state, self._reports, self._log = [
            stack.enter_context(closing(SpooledRows(folder, width))) for width in (2, 4, 2, 2)
        ]

    async def read(self, network: ExportedNetwork, n_finished: int, view: View) -> bool:
        """Reads a network.

        Args:
            network: the network.
            n_finished: how many tasks had finished before the view.
            view: the tasks at one moment, of finished ones those behind `n_finished`.

        Returns:
            False where the network was reset or rolled back meanwhile: then nothing here is of use.
        """
        self.epoch = view.epoch
        n_finished += len(view.finished)
        start = n_good = 0
        ahead = network.tasks.read_finished(0) if n_finished else None
        while ahead is not None:
            chunk = await ahead.chunk()
            records = chunk.records[: n_finished - start]
            if chunk.epoch != view.epoch or not records:
                return False
            end = start + len(records)
            ahead = network.tasks.read_finished(end) if end < n_finished else None
            n_good += self._take_finished(start, records, network.malformed)
            start = end
        n = await run_to_completion(anyio.to_thread.run_sync(self._take_others, view, network.malformed))
        self._counts = Counts(n["queued"], n["running"], n_good, n["failed"])
        await self._read_shared(network)
        await self._read_streams(network)
        position = await network.tasks.read_position()
        return position.epoch == view.epoch and position.seq >= view.seq

    def _take_finished(self, start: int, records: Sequence[bytes], notes: MalformedRecords) -> int:
        try:
            decode_records("finished", b"".join(records), len(records))
        except DecodeError:
            records = [raw for place, raw in enumerate(records, start) if _is_good(place, raw, notes)]
        self._task_parts.note("finished", records)
        for raw in records:
            self._tasks.add(b"finished", raw)
        return len(records)

    def _take_others(self, view: View, notes: MalformedRecords) -> dict[TaskState, int]:
        n: dict[TaskState, int] = {}
        for state, stored in view.records.items():
            records = self._spooled[state]
            if stored is not records:  # all were read in one step, not into the temporary file
                records.update(stored)
                stored.clear()
            n[state] = 0
            rows = records.in_order(view.queue) if state == "queued" else records.by_index()
            while batch := dict(islice(rows, _BATCH)):
                sifted = notes.sift(state, batch)
                self._task_parts.note(state, sifted.records)
                for key in sifted.keys:
                    raw = batch[key.encode()]
                    # An export has no stale entries of the queue, so the bit is cleared.
                    self._tasks.add(state.encode(), b"%b%c%b" % (raw[:1], raw[1] % _STALE, raw[2:]))
                n[state] += len(sifted.keys)
        return n

    async def _read_shared(self, network: ExportedNetwork) -> None:
        self._shared = shared = await network.exports.shared()
        for place, pairs in ((b"attributes", shared.attributes), (b"claims", shared.claims)):
            for name, data in pairs.items():
                self._state.add(place, name, data, b"")
        for name, direction in shared.directions.items():
            for key, score in (await network.exports.ranking(name)).items():
                self._state.add(b"ranking", direction + b" " + name, key, score)
        for place, hashed in ((b"task_attributes", network.keys.task_attributes), (b"points", network.keys.points)):
            async for pairs in network.exports.pairs(hashed):
                for name, data in pairs.items():
                    self._state.add(place, name, data, b"")
        self._rules = (await network.stop_rules.read()).arguments()
        self._workers = [
            {"worker_id": entry.worker_id, "state": entry.state, "number": entry.number, "started_at": entry.started_at}
            | {"ended_at": entry.ended_at, "pid": entry.info.get("pid"), "hostname": entry.info.get("hostname")}
            for entry in await network.workers.read()
        ]

    async def _read_streams(self, network: ExportedNetwork) -> None:
        async for entries in network.exports.entries(network.keys.reports):
            good: list[bytes] = []
            for place, packed in entries:
                with suppress(DecodeError):
                    Report.of(packed)
                    good.append(packed)
                    self._reports.add(place, packed)
            self._report_parts.note(good)
        async for entries in network.exports.entries(network.keys.log):
            for place, packed in entries:
                try:
                    LogEntry.of(packed)
                except DecodeError as error:
                    network.malformed.note("log", place, packed, error)
                else:
                    self._log.add(place, packed)

    # as it is written

    def tables(self) -> Iterator[tuple[str, str, Iterator[tuple[pl.DataFrame, int]]]]:
        """The tables: a name, what it holds, and its frames, each with the bytes of its records."""
        yield "tasks", "Tasks of all states: the columns of a frame with times, and each record as stored", self._task_frames()
        yield "state", "Attributes, claims, rankings, points and attributes of tasks, as stored", self._state_frames()
        yield "reports", "Reports of running tasks: the columns of a frame, and each as stored", self._report_frames()
        yield "logs", "The worker log: the columns of a frame, and each entry as stored", self._log_frames()

    def _task_frames(self) -> Iterator[tuple[pl.DataFrame, int]]:
        yield self._task_parts.frame("finished", [], []), 0  # a table without rows has columns, too
        for name, rows in groupby(self._tasks, key=itemgetter(0)):
            state = cast("TaskState", name.decode())
            for _, stored in _columns(rows, 2):
                yield self._task_parts.frame(state, [complete(state, raw) for raw in stored], stored), sum(map(len, stored))

    def _state_frames(self) -> Iterator[tuple[pl.DataFrame, int]]:
        import polars as pl

        schema = {"place": pl.String, "name": pl.Binary, "data": pl.Binary, "detail": pl.Binary}
        yield pl.DataFrame(schema=schema), 0
        for places, names, data, details in _columns(self._state, 4):
            columns = ([place.decode() for place in places], names, data, details)
            yield pl.DataFrame(dict(zip(schema, columns, strict=True)), schema=schema), sum(map(len, data))

    def _report_frames(self) -> Iterator[tuple[pl.DataFrame, int]]:
        yield self._report_parts.frame([], []), 0
        for ids, entries in _columns(self._reports, 2):
            yield self._report_parts.frame(ids, entries), sum(map(len, entries))

    def _log_frames(self) -> Iterator[tuple[pl.DataFrame, int]]:
        from rush_async.frames.log import stored_log

        yield stored_log([], []), 0
        for ids, entries in _columns(self._log, 2):
            yield stored_log(ids, entries), sum(map(len, entries))

    def network(self, network_id: str, version: str, schema: Mapping[str, Any] | None) -> dict[str, Any]:
        """The facts of the network, for people and for an import."""
        meta = self._shared.meta

        def number(field: str) -> int:
            return number_of(field, meta.get(field.encode()))

        return {
            "format": 1,
            "id": secrets.token_hex(16),
            "network_id": network_id,
            "exported_at": datetime.now(UTC).isoformat(),
            "rush_async": version,
            "wire": number("wire"),
            "epoch": self.epoch,
            "seq": number("seq"),
            "counts": self._counts._asdict(),
            "seed": number("seed") if b"seed" in meta else None,
            "next_index": number("next_index"),
            "next_number": number("next_number"),
            "returned": self._shared.returned,
            "stop": _shown(meta.get(b"stop") or b"\xc0"),
            "stop_rules": self._rules,
            "schema": None if schema is None else {name: str(dtype) for name, dtype in schema.items()},
            "attributes": {_text(name): _shown(raw) for name, raw in sorted(self._shared.attributes.items())},
            "claims": {_text(name): _shown(raw) for name, raw in sorted(self._shared.claims.items())},
            "rankings": {_text(name): _text(direction) for name, direction in self._shared.directions.items()},
            "reports": self._reports.n_rows,
            "log": self._log.n_rows,
            "workers": self._workers,
            "starts": self._shared.starts,
            "columns": {"tasks": [self._task_parts.record_column], "reports": list(self._report_parts.entry_columns)},
            "environment": environment(),
        }


def _is_good(place: int, raw: bytes, notes: MalformedRecords) -> bool:
    try:
        decode_records("finished", raw, 1)
    except DecodeError as error:
        if raw:  # an empty one was removed
            notes.note("finished", str(place), raw, error)
        return False
    return True


def _columns(rows: Iterable[Sequence[bytes]], n: int) -> Iterator[list[list[bytes]]]:
    """The columns of rows, a batch of rows at a time."""
    columns, size = [list[bytes]() for _ in range(n)], 0
    for row in rows:
        for column, cell in zip(columns, row, strict=True):
            column.append(cell)
        size += len(row[1])
        if len(columns[0]) == _BATCH or size > _BATCH_BYTES:
            yield columns
            columns, size = [list[bytes]() for _ in range(n)], 0
    if columns[0]:
        yield columns


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def _shown(raw: bytes) -> Any:
    """A value for people: JSON has no NaN, no bytes and no dates, which are shown as texts."""
    value: Any = raw
    try:
        value = decode(raw)
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):  # `DecodeError` is one
        return repr(value)
    return value
