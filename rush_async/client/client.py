"""What manager and worker share: tasks, waiting, reading and events."""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from html import escape
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import anyio.to_thread

from rush_async.client.arguments import (
    Schema,
    as_failures,
    as_keys,
    as_number,
    as_predicate,
    as_schema,
    as_seconds,
    as_states,
    check_kinds,
)
from rush_async.client.event_stream import EventStream
from rush_async.client.export.exporting import Exporting
from rush_async.client.export.reading import Archive
from rush_async.client.malformed import Repairs
from rush_async.client.reports import ReportCache, Reports
from rush_async.client.shared_state import SharedState
from rush_async.client.snapshot import Snapshot, read_view, take_snapshot
from rush_async.client.status import status_html, status_text
from rush_async.client.stopping import Stopping
from rush_async.client.warm_start import holds_rows, rows_of
from rush_async.config import RushConfig, lacks_directory
from rush_async.errors import NetworkStateError, RushConnectionError, RushTimeoutError, ServerStartError, explain_arguments
from rush_async.events import Event, EventsMissed
from rush_async.model import CANCELLED, TASK_STATES, Counts, Failure, Task, TaskState
from rush_async.network.network import Network
from rush_async.network.waiting import describe
from rush_async.plan import locate
from rush_async.store.keys import check_network_id, random_network_id
from rush_async.store.points import Unique, all_points_of, as_unique
from rush_async.store.records import NewTask, RecordEncoder, as_records, encode_failure
from rush_async.store.scripts import Lost
from rush_async.store.task_reads import View
from rush_async.store.tasks import Created, Target
from rush_async.supervisor import run_to_completion

if TYPE_CHECKING:
    import polars as pl

    from rush_async.frames.finished import FinishedTable
    from rush_async.frames.reports import ReportTable
    from rush_async.network.results import Results

__all__ = ["RushClient"]

logger = logging.getLogger(__name__)

E = TypeVar("E")


class RushClient(Reports[Network], SharedState[Network], Stopping[Network], Repairs[Network], Exporting[Network]):
    """A client of one network: `Rush` manages it, `RushWorker` works in it.

    Args:
        must_exist: whether the network has to exist already; see `Rush`, also for the other arguments.
    """

    def __init__(
        self,
        network_id: str | None = None,
        config: RushConfig | str | None = None,
        *,
        data_dir: str | os.PathLike[str] | None = None,
        schema: Schema | None = None,
        seed: int | None = None,
        must_exist: bool = False,
    ) -> None:
        super().__init__(random_network_id() if network_id is None else check_network_id(network_id))
        self._must_exist = must_exist
        self._seed = None if seed is None else as_number(seed, "seed", 2**63 - 1)
        self._config, self._origin = locate(config, data_dir)
        self._schema = as_schema(schema)
        self._encoder = RecordEncoder(self._config.max_record_size)
        self._n_seen = 0
        self._seen_generation = (0, 0)

    async def _acquire(self) -> Network:
        where = self._config.where
        if self._must_exist and lacks_directory(self._config):
            raise NetworkStateError(f"network {self._network_id!r} does not exist on {where}: there is no such directory")
        try:
            network = await Network.acquire(self._network_id, self._config, self._seed)
        except (RushConnectionError, ServerStartError) as error:
            if self._origin is None:
                raise
            raise type(error)(f"{str(error).rstrip('.')}. The address came from {self._origin}") from error.__cause__
        assert network.link.config.url is not None
        self._config = self._config.at(network.link.config.url)
        if self._must_exist:
            await self._check_exists(network, where)
        network.heartbeat.watch(self._config.heartbeat_period, self._config.max_loop_stall)
        if network.position.counts.total:
            logger.info("network %r holds tasks already: %s", self._network_id, describe(network.position.counts))
        return network

    async def _check_exists(self, network: Network, where: str) -> None:
        try:
            if not network.position.epoch:  # clients that opened the network before may have missed that it was created
                await network.tasks.read_position()
            if not network.position.epoch:
                raise NetworkStateError(
                    f"network {self._network_id!r} does not exist on {where}: nothing was ever written to it, or it was reset. "
                    "Check its id and where it is kept, or leave must_exist out"
                )
        except BaseException:
            await run_to_completion(network.release())
            raise

    @property
    def network_id(self) -> str:
        """The network's name."""
        return self._network_id

    @property
    def config(self) -> RushConfig:
        """The settings in use; once open, with the `url` of the server."""
        return self._config

    # counters

    def _counts(self) -> Counts:
        network = self._network
        if network is None:
            raise NetworkStateError(self._why_not_open)
        if network.feed.is_behind:
            network.follow()
        return network.position.latest_counts

    @property
    def n_queued_tasks(self) -> int:
        """Number of queued tasks, as this event loop knows it.

        Reading a counter makes no call. A manager follows the events of its network from its opening on, any other client from
        its first read of a counter, and a counter is behind the server by no more than the way of a message then. It is never
        behind what this event loop did itself. While the event loop is blocked no message comes: a counter shows what the last
        heartbeat saw, which is at most `heartbeat_period` old.
        """
        return self._counts()[0]

    @property
    def n_running_tasks(self) -> int:
        """Number of running tasks, as this event loop knows it."""
        return self._counts()[1]

    @property
    def n_finished_tasks(self) -> int:
        """Number of finished tasks, as this event loop knows it."""
        return self._counts()[2]

    @property
    def n_failed_tasks(self) -> int:
        """Number of failed tasks, as this event loop knows it."""
        return self._counts()[3]

    @property
    def n_tasks(self) -> int:
        """Number of tasks in all states, as this event loop knows it."""
        return self._counts().total

    def __repr__(self) -> str:
        if self._network is None:
            return f"<{type(self).__name__} {self._network_id!r}, not open>"
        self._network.follow()
        return status_text(type(self).__name__, self._network_id, self._network.position.latest, self._notes)

    def _repr_html_(self) -> str:
        if self._network is None:
            return f"<p>{escape(repr(self))}</p>"
        self._network.follow()
        return status_html(type(self).__name__, self._network_id, self._network.position.latest, self._notes)

    @property
    def _notes(self) -> dict[str, str]:
        """What a kind of client shows beside the network's counts."""
        return {}

    # tasks

    @overload
    async def push_tasks(
        self,
        xss: Iterable[Any],
        *,
        xss_extra: Iterable[Any] | None = None,
        retries: int = 0,
        unique: Literal[False] = False,
    ) -> list[str]: ...

    @overload
    async def push_tasks(
        self, xss: Iterable[Any], *, xss_extra: Iterable[Any] | None = None, retries: int = 0, unique: Unique
    ) -> list[str | None]: ...

    async def push_tasks(
        self, xss: Iterable[Any], *, xss_extra: Iterable[Any] | None = None, retries: int = 0, unique: Unique = False
    ) -> Sequence[str | None]:
        """Queues tasks for workers to pop, first in first out. Many inputs are encoded in slices, between which the event loop
        runs: leave them as they are until the call returns.

        Args:
            xss: the inputs, a record each: a mapping with string names, a dataclass instance, or anything with `model_dump()`.
            xss_extra: what to store beside each input, in the same order.
            retries: how often a task goes back to the head of the queue when its worker is lost or killed; 0 - 127.
            unique: whether to push only points that the network does not have: True for all inputs, or the names of those that
                make the point. A point is taken by a task that was pushed with `unique` and is queued, running or finished;
                one that has failed leaves it.

        Returns:
            The keys, in the order of `xss`; with `unique`, None for each input whose point is taken. Of equal points in one
            call the first is pushed.

        Raises:
            EncodeError: a value cannot be stored, or a record is larger than `max_record_size`.
            ServerFullError: the server is at its `maxmemory`; no task is left in the queue.
            ValueError: `unique` names what is no input.
        """
        retries = as_number(retries, "retries", 127)
        network, names = self._net, as_unique(unique)
        xss = as_records(xss, "xss") if names else xss
        tasks = await self._encoder.all_tasks(xss, xss_extra, retries=retries)
        return await self._push(network, "queued", tasks, await all_points_of(xss, names))

    @overload
    async def push_finished_tasks(
        self,
        xss: Iterable[Any] | Archive,
        yss: Iterable[Any] | None = None,
        *,
        xss_extra: Iterable[Any] | None = None,
        yss_extra: Iterable[Any] | None = None,
        unique: Literal[False] = False,
    ) -> list[str]: ...

    @overload
    async def push_finished_tasks(
        self,
        xss: Iterable[Any] | Archive,
        yss: Iterable[Any] | None = None,
        *,
        xss_extra: Iterable[Any] | None = None,
        yss_extra: Iterable[Any] | None = None,
        unique: Unique,
    ) -> list[str | None]: ...

    async def push_finished_tasks(
        self,
        xss: Iterable[Any] | Archive,
        yss: Iterable[Any] | None = None,
        *,
        xss_extra: Iterable[Any] | None = None,
        yss_extra: Iterable[Any] | None = None,
        unique: Unique = False,
    ) -> Sequence[str | None]:
        """Adds tasks that are finished already, such as results from elsewhere.

        A frame of polars or pandas and an export are taken as they are (a warm start). Then the tasks count in no stop rule,
        as imported ones do. Of a frame the fixed columns, such as `keys` and times, are left out, and so are rows whose
        `state` is another; a missing value is left out of its record. Columns that are named in none of `yss`, `xss_extra`
        and `yss_extra` are inputs; `ys.x` beside `x`, as frames of tasks have it, is the output `x`.

        Args:
            xss: the inputs, a record each; or a frame, or an export.
            yss: the outputs, in the same order; of a frame the names of its outputs.
            xss_extra: what to store beside each input; of a frame the names of these columns.
            yss_extra: what to store beside each output; of a frame the names of these columns.
            unique: as in `push_tasks`.

        Returns:
            The keys, in the order of `xss`; with `unique`, None for each input whose point is taken.

        Raises:
            ValueError: the frame has no such column, or no outputs are named.
        """
        network, names = self._net, as_unique(unique)
        given: Any = (xss, yss, xss_extra, yss_extra)
        is_warm_start = holds_rows(xss)
        if is_warm_start:
            given = await anyio.to_thread.run_sync(rows_of, *given)
        inputs, outputs, beside_inputs, beside_outputs = given
        inputs = as_records(inputs, "xss") if names else inputs
        tasks = await self._encoder.finished_tasks(inputs, outputs, beside_inputs, beside_outputs)
        target = "imported" if is_warm_start else "finished"
        return await self._push(network, target, tasks, await all_points_of(inputs, names))

    async def push_failed_tasks(
        self, xss: Iterable[Any], failures: Any = None, *, xss_extra: Iterable[Any] | None = None
    ) -> list[str]:
        """Adds tasks that have failed already. They take no point.

        Args:
            xss: the inputs.
            failures: one for all or one for each: an exception, a string or a `Failure`.
            xss_extra: what to store beside each input.

        Returns:
            The keys, in the order of `xss`.
        """
        network = self._net
        tasks = await self._encoder.all_tasks(xss, xss_extra)
        ends = [encode_failure(failure) for failure in as_failures(failures, len(tasks), "xss")]
        ended = [NewTask(task.key, task.created, end) for task, end in zip(tasks, ends, strict=True)]
        return (await self._create(network, "failed", ended)).keys

    async def _push(
        self, network: Network, target: Target, tasks: Sequence[NewTask], points: Sequence[bytes]
    ) -> Sequence[str | None]:
        created = await self._create(network, target, tasks, points)
        return list(created.entries) if points else created.keys

    async def _create(
        self, network: Network, target: Target, tasks: Sequence[NewTask], points: Sequence[bytes] = ()
    ) -> Created:
        created = await network.tasks.push(target, tasks, points=points) if tasks else Created([])
        assert not isinstance(created, Lost)
        return created

    async def empty_queue(self) -> list[str]:
        """Fails the tasks that are queued, with kind `removed` and the message "Removed from queue". Returns their keys."""
        return await self._net.tasks.empty_queue(Failure("removed", None, "Removed from queue"))

    async def retry_tasks(self, keys: str | Sequence[str] | None = None) -> list[str]:
        """Queues failed tasks again, at the end of the queue: all of them without `keys`. Returns the keys that moved."""
        return await self._net.tasks.retry(None if keys is None else as_keys(keys))

    async def cancel_tasks(self, keys: str | Sequence[str]) -> list[str]:
        """Fails tasks that are queued or running, with kind `cancelled`. Returns the keys that moved.

        Where a worker runs one in a block (`rush.task(...)` or `async with task`), the block is cancelled and ends quietly, and
        its loop continues. Of one that is run without a block, a later `finish_tasks` moves nothing.
        """
        return await self._net.tasks.cancel(as_keys(keys), CANCELLED)

    async def counts(self) -> Counts:
        """Reads from the server how many tasks are in each state, in one round trip.

        The counters, such as `n_finished_tasks`, and `repr(rush)` show them without a call.
        """
        return (await self._net.tasks.read_position()).counts

    async def get_tasks(self, keys: str | Sequence[str]) -> list[Task | None]:
        """Reads tasks by key, in the order of `keys`; None for a key that the network does not know."""
        keys = as_keys(keys)
        found = await self._net.find(keys)
        return [found.get(key) for key in keys]

    async def keys_with_state(self, *states: TaskState) -> dict[TaskState, list[str]]:
        """Reads the keys of the tasks in these states (all four without any), in one consistent view."""
        states = as_states(states)
        view = await self._snapshot(states)
        return {state: view.keys(state) for state in states}

    async def is_running_task(self, keys: str | Sequence[str]) -> list[bool]:
        """Returns for each key whether that task is running."""
        return await self._is_in(as_keys(keys), "running")

    async def is_failed_task(self, keys: str | Sequence[str]) -> list[bool]:
        """Returns for each key whether that task has failed."""
        return await self._is_in(as_keys(keys), "failed")

    async def _is_in(self, keys: list[str], state: TaskState) -> list[bool]:
        found = await self._net.tasks.find(keys)
        return [key in found and found[key][0] == state for key in keys]

    # waiting

    async def wait_until(self, predicate: Callable[[Counts], bool], *, timeout: float | None = None) -> Counts:
        """Waits, without polling, until the counts of the network satisfy `predicate`. Returns the first counts that do.

        Raises:
            RushTimeoutError: they did not within `timeout` seconds; the message shows them.
        """
        network = self._net
        with self._until_closed():
            return await network.wait_for_counts(as_predicate(predicate), as_seconds(timeout))

    async def wait_for_tasks(
        self, keys: str | Sequence[str], *, timeout: float | None = None, need_workers: bool = True
    ) -> list[Task]:
        """Waits until all these tasks are finished or failed.

        Args:
            keys: one key or several.
            timeout: seconds to wait; None waits for ever.
            need_workers: whether to give up when tasks are queued and no worker is starting or running.

        Returns:
            The tasks in the order of `keys`, each with `ys` or `failure`.

        Raises:
            KeyError: a key that the network does not know, or does not know any more.
            TasksNotDoneError: the time is up, or no worker is there to run what is queued; `pending` has the keys.
        """
        keys = as_keys(keys)
        network = self._net
        with self._until_closed():
            return await network.wait_for_ends(keys, as_seconds(timeout), need_workers=need_workers)

    # reading

    async def fetch_finished_tasks(self, *, times: bool = False, schema: Schema | None = None) -> pl.DataFrame:
        """Fetches the finished tasks in the order they finished. They are cached: only new ones are sent over the network.

        Args:
            times: whether to add `created_at`, `started_at`, `ended_at` (Datetime in UTC), `attempt` and `index` (Int64).
            schema: columns that always exist, with their dtypes; those given to the client by default.

        Returns:
            A frame of your own: `worker_id` (String), a column for each input, output and extra, `keys` (String).

        Raises:
            SchemaError: a value does not fit `schema`.
        """
        results = self._net.results
        table = _table_of(results)  # decodes while more is read
        await results.read()
        return table.frame(times=times, schema=schema or self._schema)

    async def fetch_new_tasks(
        self, *, timeout: float | None = 0.0, times: bool = False, schema: Schema | None = None
    ) -> pl.DataFrame:
        """Fetches the tasks that have finished since the last call of this client, each once.

        The first call fetches all finished tasks, and so does a call after a reset or after the server was restored from older
        data.

        Args:
            timeout: seconds to wait for one if there is none, without polling; None waits for ever.
            times: as in `fetch_finished_tasks`.
            schema: as in `fetch_finished_tasks`.
        """
        network, timeout = self._net, as_seconds(timeout)
        loop = asyncio.get_running_loop()
        deadline = math.inf if timeout is None else loop.time() + timeout
        table = _table_of(network.results)
        await network.results.read()
        while (n := len(table)) == self._first_new(network, n) and (left := deadline - loop.time()) > 0:
            generation = network.position.generation
            with suppress(RushTimeoutError):
                await self.wait_until(
                    lambda counts, n=n, generation=generation: counts.finished > n or network.position.generation != generation,
                    timeout=None if timeout is None else left,
                )
            await network.results.read()
            if len(table) <= n and network.position.generation == generation:
                break  # otherwise another call has taken the new tasks, or they have yet to be read
        first = self._first_new(network, len(table))
        frame = table.frame(first, times=times, schema=schema or self._schema)
        self._n_seen = len(table)
        return frame

    def _first_new(self, network: Network, length: int) -> int:
        if self._seen_generation != network.position.generation or self._n_seen > length:
            self._seen_generation, self._n_seen = network.position.generation, 0
        return self._n_seen

    async def fetch_tasks_with_state(
        self, *states: TaskState | Sequence[TaskState], times: bool = False, schema: Schema | None = None
    ) -> pl.DataFrame:
        """Fetches the tasks in these states (all four without any) in one consistent view: none appears twice or is left out.

        Returns:
            A frame as that of `fetch_finished_tasks` with a column `state` in front; with failed tasks also
            `condition` (Struct of kind, type, message, traceback). States come in the order of `states`.
        """
        states = as_states(states)
        return await self._frame(states, with_state=True, times=times, schema=schema)

    async def fetch_queued_tasks(self, *, times: bool = False, schema: Schema | None = None) -> pl.DataFrame:
        """Fetches the queued tasks, the next one first."""
        return await self._frame(("queued",), with_state=False, times=times, schema=schema)

    async def fetch_running_tasks(self, *, times: bool = False, schema: Schema | None = None) -> pl.DataFrame:
        """Fetches the running tasks."""
        return await self._frame(("running",), with_state=False, times=times, schema=schema)

    async def fetch_failed_tasks(self, *, times: bool = False, schema: Schema | None = None) -> pl.DataFrame:
        """Fetches the failed tasks, with `condition` (Struct of kind, type, message, traceback), the failure of each."""
        return await self._frame(("failed",), with_state=False, times=times, schema=schema)

    async def fetch_tasks(self, *, times: bool = False, schema: Schema | None = None) -> pl.DataFrame:
        """Fetches all tasks in one consistent view, with a column `state` in front."""
        return await self._frame(TASK_STATES, with_state=True, times=times, schema=schema)

    async def _frame(
        self, states: Sequence[TaskState], *, with_state: bool, times: bool, schema: Schema | None
    ) -> pl.DataFrame:
        snapshot = await self._snapshot(states)
        others, schema = snapshot.complete(), schema or self._schema
        if "finished" in states:
            table = _table_of(self._net.results)
            return table.snapshot(snapshot.n_finished, others, states, with_state=with_state, times=times, schema=schema)
        from rush_async.frames.frame import frame_of  # polars takes its time: it is imported for the first frame

        return frame_of([(state, others[state]) for state in states], with_state=with_state, times=times, schema=schema)

    async def _snapshot(self, states: Sequence[TaskState]) -> Snapshot:
        with self._until_closed():
            network = self._net
            return await take_snapshot(network.tasks, network.results, network.feed, states)

    async def _read_view(self, n_finished: int, many: Mapping[TaskState, MutableMapping[bytes, bytes]]) -> View:
        with self._until_closed():
            return await read_view(self._net.tasks, self._net.feed, TASK_STATES, n_finished, many)

    def reset_cache(self) -> None:
        """Drops the finished tasks and reports that are cached for all clients of this event loop. The next call fetches them
        again."""
        self._net.results.drop()
        self._net.report_cache.drop()

    def _report_frames(self, cache: ReportCache) -> ReportTable:
        from rush_async.frames.reports import ReportTable  # polars takes its time: it is imported for the first frame

        if not isinstance(cache.decoder, ReportTable):
            cache.decoder = ReportTable(cache.records)
        return cache.decoder

    # events

    @overload
    def events(self, *, results: bool = False, buffer: int = 10_000) -> EventStream[Event]: ...

    @overload
    def events(self, *kinds: type[E], results: bool = False, buffer: int = 10_000) -> EventStream[E | EventsMissed]: ...

    def events(self, *kinds: type[Any], results: bool = False, buffer: int = 10_000) -> EventStream[Any]:
        """Returns the stream of what happens in the network from the moment its block opens.

        ```python
        async with rush.events(TasksFinished, results=True) as events:
            async for event in events: ...
        ```

        Args:
            kinds: the classes of events; without any, all but `TaskReported`, which has a channel of its own. `EventsMissed`
                comes wherever events were missed.
            results: whether finished and failed events carry their `tasks`, which are read when an event comes; the listeners
                of an event loop share the read.
            buffer: how many events may wait for a slow listener before the rest is reported as missed.
        """
        check_kinds(kinds)
        if as_number(buffer, "buffer") < 1:
            raise ValueError(f"buffer must be at least 1, not {buffer}")
        return EventStream(self, kinds, buffer, has_results=results)


explain_arguments(RushClient, "__init__")


def _table_of(results: Results) -> FinishedTable:
    from rush_async.frames.finished import table_of  # polars takes its time: it is imported for the first frame

    return table_of(results)
