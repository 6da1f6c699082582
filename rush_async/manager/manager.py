"""The manager: starts, watches and stops workers, and empties the network."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, cast

import anyio

from rush_async.client.arguments import Schema, as_keys, as_number, as_seconds
from rush_async.client.client import RushClient
from rush_async.config import RushConfig, with_heartbeat
from rush_async.errors import RushConnectionError, RushTimeoutError, WorkersNotReadyError, explain_arguments, listed
from rush_async.launch.command import prepare_command
from rush_async.launch.coroutines import Coroutines
from rush_async.launch.handle import Launcher
from rush_async.launch.payload import remove_payloads
from rush_async.launch.pools import Pool, Submitter
from rush_async.manager.cells import cells
from rush_async.manager.ends import WorkerEnds
from rush_async.manager.log import log_again
from rush_async.manager.old_tasks import OldTasks
from rush_async.manager.task_failures import FailureLog
from rush_async.manager.unsaved import warn_of_unsaved
from rush_async.manager.worker_group import WorkerGroup
from rush_async.model import WorkerExit
from rush_async.network.network import Network
from rush_async.plan import check_levels, current_plan
from rush_async.store.records import NewTask
from rush_async.store.tasks import Created, Target
from rush_async.store.workers import WorkerEntry
from rush_async.worker.loop import bind_loop, with_worker_class
from rush_async.worker.worker import RushWorker

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Rush", "rsh"]

logger = logging.getLogger(__name__)

_GRACE = 1.0  # seconds that workers have to stop when their manager closes or resets the network
_PATIENCE = 5.0  # further seconds that a manager which closes waits for the server


class Rush(RushClient):
    """The manager of a network: starts, watches and stops workers; pushes tasks and reads results.

    At the end of its block the manager asks the coroutine and process workers that it started to stop, and kills them after a
    second. To let them finish, wait for them with `join_workers` first. Tasks and results stay in the database.

    Every call raises `NetworkStateError` if the manager is not open or is closed meanwhile, and `RushConnectionError` if the
    server cannot be reached within `retry_deadline`.

    ```python
    async with Rush("branin") as rush:
        await rush.start_workers(loop, n_workers=4)
        await rush.join_workers()
        print(await rush.fetch_finished_tasks())
    ```

    Args:
        network_id: the network; a random one by default.
        config: a URL or a `RushConfig`; by default `RUSH_URL`, else `REDIS_URL`, else `RUSH_DATA_DIR`, else a private server.
        data_dir: a directory where the embedded server keeps its data for the next run, instead of a `config`.
        schema: columns that frames always have, with their dtypes; also those of the workers that it starts.
        seed: the seed of the proposals of its workers.
        exist_ok: whether the network may hold tasks already. Without it, the manager logs a warning when it starts workers or
            pushes tasks in a network that held tasks when it was opened, as after an earlier run: `reset` deletes them.
        must_exist: whether the network has to exist already, as for a manager that reads the results of another program.

    Raises:
        NetworkStateError: `must_exist` is set, and nothing was ever written to the network.
    """

    def __init__(
        self,
        network_id: str | None = None,
        config: RushConfig | str | None = None,
        *,
        data_dir: str | os.PathLike[str] | None = None,
        schema: Schema | None = None,
        seed: int | None = None,
        exist_ok: bool = False,
        must_exist: bool = False,
    ) -> None:
        super().__init__(network_id, config, data_dir=data_dir, schema=schema, seed=seed, must_exist=must_exist)
        self._exist_ok = exist_ok
        self._old: OldTasks  # set when it is opened
        self._workers: WorkerGroup | None = None
        self._log_place = "0"  # the last log entry that was printed

    if not TYPE_CHECKING:  # a checker would accept every name

        def __getattr__(self, name: str) -> NoReturn:
            text = f"{type(self).__name__!r} object has no attribute {name!r}"
            if not name.startswith("_") and hasattr(RushWorker, name):
                text += (
                    ": this is a manager, and only workers run tasks. Start a loop that does, `async def loop(rush): ...` by "
                    f"`start_workers(loop)`, or open a worker here: `async with RushWorker({self._network_id!r}, rush.config)`"
                )
            raise AttributeError(text, name=name, obj=self)

    @property
    def _worker_group(self) -> WorkerGroup:
        network = self._net
        if self._workers is None:
            self._workers = WorkerGroup(network)
        return self._workers

    async def _on_open(self, network: Network) -> None:
        self._old = OldTasks(network, self.config, are_expected=self._exist_ok)
        cells.watch(self)
        if network.feed.failures is None:  # one log for all managers of the event loop
            network.feed.failures = FailureLog(network)
        network.follow()

    @property
    def _notes(self) -> dict[str, str]:
        return {"Old Tasks": old} if (old := str(self._old)) else {}

    async def _create(
        self, network: Network, target: Target, tasks: Sequence[NewTask], points: Sequence[bytes] = ()
    ) -> Created:
        self._old.warn()
        return await super()._create(network, target, tasks, points)

    async def _on_close(self, error: BaseException | None) -> None:
        await self._dismiss_workers()
        if error is not None:
            await warn_of_unsaved(self._net, error)

    async def _dismiss_workers(self) -> None:
        if (group := self._workers) is None:
            return
        try:
            with anyio.fail_after(_GRACE + _PATIENCE, shield=True):
                if living := group.to_dismiss:
                    await self.stop_workers(living, timeout=_GRACE)
        except (RushConnectionError, TimeoutError) as gone:
            group.cut_off()
            logger.warning(
                "workers are killed because they could not be stopped through the network: %s", str(gone) or "no answer"
            )
        finally:
            await group.dismiss()

    # starting

    async def start_workers(
        self,
        loop: Callable[..., Awaitable[Any]],
        n_workers: int | None = None,
        *,
        on: Launcher | Submitter | None = None,
        args: Mapping[str, Any] | None = None,
        worker_class: type[RushWorker] | None = None,
        log_levels: Mapping[str, str | int] | None = None,
        log_dir: str | os.PathLike[str] | None = None,
        heartbeat_period: float | None = None,
        heartbeat_expire: float | None = None,
        schema: Schema | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Starts workers and returns at once; `wait_for_workers` waits until they run. Each call may start another loop.

        Args:
            loop: `async def loop(rush: RushWorker, ...)`, or a loop with its arguments by `bound(loop, ...)`. An exception that
                leaves it ends its worker as `failed`, and the tasks that the worker still runs fail with it.
            n_workers: how many workers to start; by default that of the plan, else 1.
            on: where they run: `Coroutines()` (this event loop), `Processes(n)`, or a pool, which is anything with `submit()`;
                by default that of the plan, else coroutines.
            args: the loop's arguments by name. Coroutines get the objects themselves, processes and pools get copies by
                cloudpickle.
            worker_class: a subclass of `RushWorker` for the workers, with the arguments of `RushWorker`.
            log_levels: the loggers whose records the network keeps for `read_log`, with their levels:
                `{"my.logger": "DEBUG"}`; by default none of coroutines and processes, and of pools all records at WARNING and
                above.
            log_dir: a directory for a stdout and a stderr file of each process; by default they are deleted with the process.
            heartbeat_period: seconds between two heartbeats; by default that of the configuration.
            heartbeat_expire: seconds without a heartbeat after which a process counts as lost; by default that of the
                configuration.
            schema: columns that frames of the workers always have, with their dtypes; by default the manager's.
            kwargs: further arguments of the loop.

        Returns:
            The ids of the workers, in the order they were started.

        Raises:
            TypeError: the loop is not `async def` or does not take these arguments, `worker_class` is another class, or `on`
                starts no workers.
            ValueError: `n_workers` is below 1.
            EncodeError: the loop or an argument cannot be sent to another process, or is too large.
            RushConfigError: a log level or a heartbeat is invalid, or `large_objects_path` cannot be written.
            SchemaError: the schema has a dtype that no value of a task fits.
            ServerFullError: the server has no memory left to register the workers.
        """
        group, plan = self._worker_group, current_plan()
        bound = with_worker_class(bind_loop(loop, args, kwargs, _OPTIONS), worker_class, RushWorker)
        n_workers = (plan.n_workers or 1) if n_workers is None else as_number(n_workers, "n_workers")
        if n_workers < 1:
            raise ValueError(f"n_workers must be at least 1, not {n_workers}")
        config = self._for_workers(heartbeat_period, heartbeat_expire)
        launcher = _as_launcher(on if on is not None else plan.on)
        levels = check_levels(plan.log_levels if log_levels is None else log_levels)
        self._old.warn()
        directory = Path(log_dir) if log_dir is not None else None
        return await group.start(launcher, bound, n_workers, config, levels, directory, schema or self._schema)

    def _for_workers(self, heartbeat_period: float | None, heartbeat_expire: float | None) -> RushConfig:
        config = with_heartbeat(self.config, heartbeat_period, heartbeat_expire)
        path = config.large_objects_path or current_plan().large_objects_path
        return replace(config, large_objects_path=path)

    async def detect_lost_workers(self) -> list[str]:
        """Looks for workers whose leases have expired. Every process of the network does so by itself once a heartbeat period.

        After a time without any connected client, the first one renews all leases, so nothing is lost before they expire again.
        The tasks of lost workers fail with kind `lost`, or are queued again if they were pushed with `retries`.

        Returns:
            The ids of the workers that this call found lost.
        """
        return await self._net.workers.judge()

    def worker_command(
        self,
        loop: Callable[..., Awaitable[Any]],
        *,
        n_workers: int | None = None,
        args: Mapping[str, Any] | None = None,
        log_levels: Mapping[str, str | int] | None = None,
        heartbeat_period: float | None = None,
        heartbeat_expire: float | None = None,
        schema: Schema | None = None,
        with_password: bool = False,
        allow_pickle: bool = False,
        **kwargs: Any,
    ) -> str:
        """Returns the shell command `rush-async worker ...`, which starts workers on any machine that reaches the database.

        The command sends the loop by its name, `module:function`. The database keeps its arguments as msgpack until a `reset`.
        The command may be run any number of times; each run starts new workers in one process.

        Args:
            loop: `async def loop(rush: RushWorker, ...)`, in a module that can be imported where the command is run.
            n_workers: how many workers the command starts; by default that of the plan, else 1.
            args: the loop's arguments by name.
            log_levels: as for `start_workers`; by default all records at WARNING and above.
            heartbeat_period: as for `start_workers`.
            heartbeat_expire: as for `start_workers`.
            schema: as for `start_workers`.
            with_password: whether the command contains the password, as an assignment of `RUSH_URL` before it, which other
                users of the machine do not see. Otherwise set `RUSH_PASSWORD` or `RUSH_URL` where the command is run.
            allow_pickle: whether loop and arguments are sent as a pickle. The command names them by their digest, so write
                access to the database does not allow changing what the workers run.
            kwargs: further arguments of the loop.

        Returns:
            The command, quoted for a POSIX shell. It is also logged, without the password.

        Raises:
            TypeError: the loop is not `async def`, does not take these arguments, or cannot be imported by name.
            ValueError: `n_workers` is below 1.
            EncodeError: an argument cannot be stored, or the arguments are larger than `max_start_args_size`.
            RushConfigError: a log level or a heartbeat is invalid, or `large_objects_path` cannot be written.
            SchemaError: the schema has a dtype that no value of a task fits.
        """
        network, plan = self._net, current_plan()
        command = prepare_command(
            bind_loop(loop, args, kwargs, _COMMAND_OPTIONS, of="worker_command"),
            self.network_id,
            self._for_workers(heartbeat_period, heartbeat_expire),
            n_workers=(plan.n_workers or 1) if n_workers is None else as_number(n_workers, "n_workers"),
            log_levels=check_levels(plan.log_levels if log_levels is None else log_levels),
            schema=schema or self._schema,
            with_password=with_password,
            allow_pickle=allow_pickle,
            data_dir=network.link.data_dir,
            is_private=network.link.is_embedded and network.link.data_dir is None,
        )
        self._old.warn()
        # The start is sent in this tick, long before the command can be run.
        network.link.supervisor.start(network.workers.prepare, command.start_id, command.start)
        return command.line

    # waiting

    async def wait_for_workers(
        self, n: int | None = None, *, worker_ids: str | Sequence[str] | None = None, timeout: float | None = None
    ) -> None:
        """Waits until `n` workers or the workers in `worker_ids` run; one of the two is needed. Does not poll.

        Workers that ran and have ended already count as ready.

        Args:
            n: how many workers of the network; with `worker_ids`, how many of those (by default all).
            worker_ids: the workers to wait for.
            timeout: seconds to wait; 0 checks once. By default the `start_worker_timeout` of the plan, else no limit.

        Raises:
            WorkersNotReadyError: the time is up, or a worker died before it was running; the message has its error.
            ValueError: neither `n` nor `worker_ids` is given, or `n` is larger than the number of `worker_ids`.
        """
        wanted = None if worker_ids is None else list(dict.fromkeys(as_keys(worker_ids)))
        if n is None and wanted is None:
            raise ValueError("say how many workers to wait for, n=..., or which, worker_ids=[...]")
        needed = as_number(n, "n") if n is not None else len(wanted or ())
        if wanted is not None and needed > len(wanted):
            raise ValueError(f"n is {n} and only {len(wanted)} worker_ids are given: they can never be that many")
        network = self._net
        timeout = as_seconds(current_plan().start_worker_timeout if timeout is None else timeout)
        once = timeout == 0
        n_ready = 0
        try:
            with self._until_closed(), network.feed, network.feed.end_wait(()) as wait:
                async with asyncio.timeout(None if once else timeout):
                    if not once:
                        await network.feed.watch()
                    while True:
                        n_ready = self._count_ready(await network.workers.read(), wanted)
                        if n_ready >= needed:
                            self._worker_group.unseen.clear()
                            return
                        if once:
                            raise TimeoutError
                        await wait.changed()
        except WorkersNotReadyError:
            raise  # the error of a worker that died, which is a TimeoutError too
        except TimeoutError:
            of = f" of {listed(wanted)}" if wanted else ""
            raise WorkersNotReadyError(
                f"{n_ready} of {needed} workers{of} are running after {timeout:g} s: "
                "look at worker_info() and at what they wrote"
            ) from None

    def _count_ready(self, entries: Sequence[WorkerEntry], wanted: Sequence[str] | None) -> int:
        """Returns how many workers run, or have run and ended already."""
        group = self._worker_group
        own = set(group.unseen) if wanted is None else {group.latest(worker_id) for worker_id in wanted}
        n_ready = 0
        for entry in entries:
            is_ours = entry.worker_id in own
            if entry.state == "running" and (is_ours if wanted is not None else not entry.is_shared):
                n_ready += 1
            elif is_ours and entry.ended_at is not None and not group.is_replaced(entry.worker_id):
                if entry.has_run:
                    n_ready += 1
                elif entry.state != "terminated" or wanted is not None:
                    group.unseen.pop(entry.worker_id, None)  # the next wait does not raise it again
                    why = entry.failure.message if entry.failure is not None else f"it was {entry.state}"
                    raise WorkersNotReadyError(f"worker {entry.worker_id} died before it was running: {why}")
        return n_ready

    async def join_workers(
        self, worker_ids: str | Sequence[str] | None = None, *, timeout: float | None = None, check: bool = True
    ) -> list[WorkerExit]:
        """Waits until workers have ended. Where no task is left for them and they wait for more, a warning tells so after 10
        seconds. Where they have begun no task, because their budget was spent before, a warning says that.

        Args:
            worker_ids: the workers to wait for; by default those that this manager started.
            timeout: seconds to wait; 0 checks once, None waits without a limit.
            check: whether to raise an error if a loop failed or a worker died. A worker that `stop_workers` killed raises none,
                nor does one that died while all tasks that it ran are queued again (`retries=`).

        Returns:
            How each worker ended, in the order of `worker_ids`: its `state` and its `failure`. Of a worker that was started
            again (`Processes(restart=...)`) it is the end of the last one, with its id.

        Raises:
            WorkerLoopError: loops failed, or workers died. The message shows each distinct traceback once, unless the log has
                it already, and the exit code or the signal that ended a process. Without `worker_ids` each worker raises once.
            RushTimeoutError: workers did not end in time; they continue.
            KeyError: the network has no such worker.
        """
        group = self._worker_group
        wanted = group.worker_ids if worker_ids is None else as_keys(worker_ids)
        timeout = as_seconds(timeout)
        with group.failures.joined(wanted if check else ()):
            ends = await self._wait_for_ends(wanted, timeout, "join")
            if missing := [worker_id for worker_id in wanted if worker_id not in ends]:
                raise RushTimeoutError(f"{len(missing)} workers have not ended within {timeout:g} s: {listed(missing)}")
            exits = [ends[worker_id] for worker_id in wanted]
            if check:
                group.failures.check(exits, again=worker_ids is not None)
        return exits

    async def _wait_for_ends(
        self, worker_ids: Sequence[str], timeout: float | None = None, why: Literal["join", "stop"] | None = None
    ) -> dict[str, WorkerExit]:
        with self._until_closed():
            return await WorkerEnds(self._net, self._worker_group, worker_ids).wait(timeout, why)

    # stopping

    async def stop_workers(
        self,
        worker_ids: str | Sequence[str] | None = None,
        *,
        mode: Literal["terminate", "kill"] = "terminate",
        timeout: float | None = None,
    ) -> None:
        """Stops workers of the network, wherever they run, and returns when they have ended. After 10 seconds a warning names
        those that have not.

        Args:
            worker_ids: the workers to stop; by default all but shared ones. Workers that do not run are skipped with a warning.
                A shared worker that is named is asked to stop, and not waited for: only `kill` ends it.
            mode: `terminate` asks them to stop: `rush.terminated` becomes true, and their waits for tasks end. `kill` fails
                their tasks and shuts them out of the network at once. Then it cancels the coroutine, or kills the process if
                this manager started it for that worker alone.
            timeout: seconds that workers have to stop before they are killed; 0 only asks them, None waits without a limit.

        Raises:
            ValueError: the mode is unknown.
        """
        if mode not in ("terminate", "kill"):
            raise ValueError(f"mode is 'terminate' or 'kill', not {mode!r}")
        network, timeout = self._net, as_seconds(timeout)
        # The group also knows workers that have not registered yet or have just deregistered.
        living = set(self._worker_group.living)
        entries = [entry for entry in await network.workers.read() if entry.state in ("starting", "running")]
        living.update(entry.worker_id for entry in entries)
        shared = {entry.worker_id for entry in entries if entry.is_shared}
        if worker_ids is None:
            named = sorted(living - shared)
        else:
            named = list(dict.fromkeys(self._worker_group.latest(worker_id) for worker_id in as_keys(worker_ids)))
        wanted = [worker_id for worker_id in named if worker_id in living]
        for worker_id in named:
            if worker_id not in living:
                logger.warning("worker %s is not running, so it is not stopped", worker_id)
        if mode == "kill":
            await self._worker_group.kill(wanted)
            return
        self._worker_group.stop(wanted, set(await network.workers.ask_to_stop(wanted)))
        if timeout == 0:
            return
        ends = await self._wait_for_ends([worker_id for worker_id in wanted if worker_id not in shared], timeout, "stop")
        if late := [worker_id for worker_id in wanted if worker_id not in ends and worker_id not in shared]:
            logger.warning("workers did not stop within %g s and are killed: %s", timeout, listed(late))
            await self._worker_group.kill([self._worker_group.latest(worker_id) for worker_id in late])

    async def reset(self, *, workers: bool = True) -> None:
        """Stops the workers of the network, then deletes its tasks, workers and log. Other clients drop their caches.

        Args:
            workers: whether to stop and delete the workers too. With False only the tasks are deleted, and workers continue.
        """
        if not workers:
            await self._net.tasks.reset(workers=False)
            return
        await self.stop_workers(timeout=_GRACE)
        await self._worker_group.clear()
        await self._net.tasks.reset(workers=True)
        self._workers = None
        if (path := self._for_workers(None, None).large_objects_path) is not None:
            await remove_payloads(self.network_id, path)

    # watching

    async def worker_info(self) -> pl.DataFrame:
        """Reads the workers of the network, including those that have ended.

        Returns:
            A frame with a row for each worker, in the order they registered:

            - `worker_id` (String), `pid` (Int64), `hostname` (String), `heartbeat` (Boolean: whether it has registered with
                a heartbeat); `pid` and `hostname` are null until the worker has registered, and of a shared worker;
            - `state` (String): starting, running, terminated, failed, killed or lost;
            - `started_at` (Datetime in UTC, microseconds);
            - `last_seen` (Datetime in UTC, microseconds): when the event loop of a running worker, or of one that was lost
                because its heartbeats stopped, last answered; when any other worker ended or was started;
            - `number` (Int64): 0, 1, 2 ... in the order of registering; null until the worker has registered.

        Raises:
            DecodeError: an entry in the database is malformed.
        """
        seen = await self._net.workers.last_seen()
        entries = await self._net.workers.read()
        import polars as pl  # slow to import: loaded with the first frame

        rows = [
            (
                entry.worker_id,
                entry.info.get("pid"),
                entry.info.get("hostname"),
                entry.info.get("heartbeat"),
                entry.state,
                entry.started_at,
                max(entry.started_at, entry.seen_at or entry.ended_at or seen.get(entry.worker_id, entry.started_at)),
                entry.number,
            )
            for entry in entries
        ]
        when = pl.Datetime("us", "UTC")
        schema: dict[str, Any] = {
            "worker_id": pl.String(),
            "pid": pl.Int64(),
            "hostname": pl.String(),
            "heartbeat": pl.Boolean(),
            "state": pl.String(),
            "started_at": when,
            "last_seen": when,
            "number": pl.Int64(),
        }
        return pl.DataFrame(rows, schema=schema, orient="row")

    async def read_log(self, worker_ids: str | Sequence[str] | None = None, *, time_difference: bool = False) -> pl.DataFrame:
        """Reads what workers logged: by `log_levels`, and of pools and commands without it all at WARNING and above.

        The network keeps about 100,000 records.

        Args:
            worker_ids: the workers whose records to read; by default all.
            time_difference: whether to add the column `time_difference`.

        Returns:
            A frame with a row for each record, in the order they were logged: `worker_id`, `level` (String), `timestamp`
            (Datetime in UTC, microseconds), `logger`, `caller` (String: `module.function:line`), `msg` (String), and
            `time_difference` (Duration, microseconds) to the previous record of the same worker.

        Raises:
            DecodeError: a record in the database is malformed.
        """
        _, entries = await self._net.worker_log.read()
        if worker_ids is not None:
            wanted = set(as_keys(worker_ids))
            entries = [entry for entry in entries if entry.worker_id in wanted]
        from rush_async.frames.log import frame_of_log  # polars takes its time: it is imported for the first frame

        return frame_of_log(entries, time_difference=time_difference)

    async def print_log(self) -> None:
        """Logs what workers logged since the last call, each record through the logger it came from.

        Call `logging.basicConfig(level="INFO")` first, unless you have handlers: Python shows only warnings by default.

        Raises:
            DecodeError: a record in the database is malformed.
        """
        self._log_place, entries = await self._net.worker_log.read(self._log_place)
        for entry in entries:
            log_again(entry)


explain_arguments(Rush, "__init__")


def _as_launcher(on: Launcher | Submitter | None) -> Launcher:
    if on is None:
        return Coroutines()
    if not isinstance(on, type):
        if callable(getattr(on, "launch", None)):
            return cast("Launcher", on)
        if callable(getattr(on, "submit", None)):
            return Pool(cast("Submitter", on))
    raise TypeError(f"on is Coroutines(), Processes(n) or a pool with submit(), not {type(on).__name__}: {on!r:.80}")


_OPTIONS = frozenset(inspect.signature(Rush.start_workers).parameters) - {"self", "kwargs"}
_COMMAND_OPTIONS = frozenset(inspect.signature(Rush.worker_command).parameters) - {"self", "kwargs"}


async def rsh(
    network_id: str | None = None,
    config: RushConfig | str | None = None,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    schema: Schema | None = None,
    seed: int | None = None,
    exist_ok: bool = False,
    must_exist: bool = False,
) -> Rush:
    """Opens a manager without a block, for notebooks, and returns it. Close it with `await rush.aclose()`.

    The arguments are those of `Rush`.

    Raises:
        RushConnectionError: the server cannot be reached, or refuses the connection.
        NetworkStateError: `must_exist` is set, and nothing was ever written to the network.
    """
    return await Rush(network_id, config, data_dir=data_dir, schema=schema, seed=seed, exist_ok=exist_ok, must_exist=must_exist)
