"""Reads an export without a server."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from rush_async.client.arguments import Schema, as_keys, as_states
from rush_async.errors import DecodeError, RushError
from rush_async.model import TASK_STATES, Counts, TaskState
from rush_async.store.codec import decode
from rush_async.store.decoding import complete
from rush_async.store.export_item import ExportItem
from rush_async.store.log_entry import LogEntry
from rush_async.store.report_entry import Report
from rush_async.store.scripts import wire_mismatch

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Archive"]

_FORMAT = 1  # the newest that this version reads


class Archive:
    """An export, read without a server. `Archive.open(path)` opens one; there is nothing to close.

    Frames are those that the network gave when it was exported: the same rows, columns and dtypes. They are made anew at each
    call.

    Attributes:
        path: the file.
        network: what `network.json` holds: `network_id`, `exported_at`, `seed`, `counts`, `stop_rules`, `stop`, `workers`,
            `environment` with the versions of Python and of the packages, and more.
    """

    def __init__(self, path: Path, network: dict[str, Any]) -> None:
        self.path = path
        self.network = network

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Archive:
        """Opens an export.

        Raises:
            FileNotFoundError: there is no such file.
            DecodeError: it is no export.
            RushError: a newer version of this library wrote it.
        """
        path = Path(path)
        try:
            with zipfile.ZipFile(path) as packed:
                network = json.loads(packed.read("network.json"))
            version, wire = int(network["format"]), int(network["wire"])
            archive = cls(path, network)
            _ = archive.network_id, archive.counts, archive.seed, network["id"], network["columns"]
        except (zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
            raise DecodeError(f"{path} is no export of a network: {type(error).__name__}: {error}") from error
        if version > _FORMAT or wire_mismatch(wire) is not None:
            raise RushError(f"{path} was written by rush_async {network['rush_async']}: upgrade rush_async here to read it")
        return archive

    def __repr__(self) -> str:
        return f"<Archive {str(self.path)!r} of network {self.network_id!r}: {self.counts.total:,} tasks>"

    # facts

    @property
    def network_id(self) -> str:
        """The name of the network that was exported."""
        return self.network["network_id"]

    @property
    def counts(self) -> Counts:
        """How many tasks are in each state."""
        return Counts(**self.network["counts"])

    @property
    def seed(self) -> int | None:
        """The seed of the network's proposals; None without one."""
        return self.network["seed"]

    def attrs(self) -> dict[str, Any]:
        """Returns the attributes of the network, ordered by name."""
        stored = sorted([(item.name, item.data) for item in self.items("state") if item.place == "attributes"])
        return {name.decode(): decode(data) for name, data in stored}

    # tasks

    def tasks(self, *states: TaskState, times: bool = False, schema: Schema | None = None) -> pl.DataFrame:
        """Returns the tasks in these states (all four without any), with a column `state` in front.

        Args:
            states: the states, in the order in which their tasks are to come.
            times: whether to add `created_at`, `started_at`, `ended_at`, `attempt` and `index`.
            schema: columns that always exist, with their dtypes.
        """
        return self._frame(as_states(states), with_state=True, times=times, schema=schema)

    def finished_tasks(self, *, times: bool = False, schema: Schema | None = None) -> pl.DataFrame:
        """Returns the finished tasks in the order they finished, as `fetch_finished_tasks` did."""
        return self._frame(("finished",), with_state=False, times=times, schema=schema)

    def failed_tasks(self, *, times: bool = False, schema: Schema | None = None) -> pl.DataFrame:
        """Returns the failed tasks, with `condition` (Struct of kind, type, message, traceback), the failure of each."""
        return self._frame(("failed",), with_state=False, times=times, schema=schema)

    def queued_tasks(self, *, times: bool = False, schema: Schema | None = None) -> pl.DataFrame:
        """Returns the tasks that were queued, the next one first."""
        return self._frame(("queued",), with_state=False, times=times, schema=schema)

    def running_tasks(self, *, times: bool = False, schema: Schema | None = None) -> pl.DataFrame:
        """Returns the tasks that ran when the network was exported."""
        return self._frame(("running",), with_state=False, times=times, schema=schema)

    def _frame(self, states: Sequence[TaskState], *, with_state: bool, times: bool, schema: Schema | None) -> pl.DataFrame:
        from rush_async.frames.frame import frame_of  # polars takes its time: it is imported for the first frame

        found = self.complete_records(states)
        return frame_of([(state, found[state]) for state in states], with_state=with_state, times=times, schema=schema)

    # reports and log

    def reports(self, keys: str | Sequence[str] | None = None) -> pl.DataFrame:
        """Returns what workers reported on tasks while they ran, as `fetch_reports` did: those of these tasks, or of all."""
        import polars as pl

        from rush_async.frames.parts import ReportParts

        parts, entries = ReportParts(), [item.data for item in self.items("reports")]
        parts.note(entries)
        frame = parts.frame([b""] * len(entries), entries).drop(parts.entry_columns)
        return frame if keys is None else frame.filter(pl.col("keys").is_in(as_keys(keys)))

    def log(self, worker_ids: str | Sequence[str] | None = None) -> pl.DataFrame:
        """Returns what workers logged, as `read_log` did: these workers, or all."""
        from rush_async.frames.log import frame_of_log

        wanted = None if worker_ids is None else set(as_keys(worker_ids))
        entries = [LogEntry.of(item.data) for item in self.items("logs")]
        return frame_of_log([each for each in entries if wanted is None or each.worker_id in wanted], time_difference=False)

    # as it is stored

    def complete_records(self, states: Sequence[TaskState] = TASK_STATES) -> dict[TaskState, list[bytes]]:
        """Returns the complete records of the tasks in these states."""
        found: dict[TaskState, list[bytes]] = {state: [] for state in states}
        for item in self.items("tasks"):
            if (state := cast("TaskState", item.place)) in found:
                found[state].append(complete(state, item.data))
        return found

    def items(self, table: Literal["tasks", "state", "reports", "logs"]) -> Iterator[ExportItem]:
        """Yields what the network stored: tasks with their state, key and record, what its clients shared, or the entries of
        a stream with their id."""
        columns = {
            "tasks": ["state", "keys", *self.network["columns"]["tasks"]],
            "state": ["place", "name", "data", "detail"],
            "reports": self.network["columns"]["reports"],
            "logs": ["id", "record"],
        }[table]
        for part in self._parts(table, columns):
            for row in part.select(columns).iter_rows():
                match table:
                    case "tasks":
                        yield ExportItem(row[0], row[1].encode(), row[2])
                    case "state":
                        yield ExportItem(*row)
                    case "reports":
                        yield ExportItem(table, row[0].encode(), row[1], b"%d" % Report.of(row[1]).number)
                    case "logs":
                        yield ExportItem("log", row[0].encode(), row[1])

    def _parts(self, table: str, columns: list[str]) -> Iterator[pl.DataFrame]:
        import polars as pl  # slow to import: loaded with the first frame

        with zipfile.ZipFile(self.path) as packed:
            for name in sorted(packed.namelist()):
                if name.startswith(f"{table}/"):
                    yield pl.read_parquet(BytesIO(packed.read(name)), columns=columns)
