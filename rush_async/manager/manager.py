"""The manager: starts, watches and stops workers, and empties the network."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import anyio

from rush_async.client.arguments import as_keys, as_number
from rush_async.client.client import RushClient
from rush_async.client.session import Schema
from rush_async.config import RushConfig
from rush_async.errors import RushConnectionError, RushTimeoutError, WorkerLoopError, WorkersNotReadyError, listed
from rush_async.launch.command import prepare_command
from rush_async.launch.coroutines import Coroutines
from rush_async.launch.handle import Launcher
from rush_async.launch.payload import remove_payloads
from rush_async.launch.pools import Pool, Submitter
from rush_async.manager.log import frame_of_log, log_again
from rush_async.manager.worker_group import WorkerGroup
from rush_async.model import Failure, WorkerExit
from rush_async.plan import check_levels, current_plan
from rush_async.store.workers import WorkerEntry
from rush_async.worker.loop import bind_loop

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Rush", "rsh"]

logger = logging.getLogger(__name__)

_GRACE = 1.0  # seconds that workers have to end by themselves when their manager closes or resets the network
_PATIENCE = 5.0  # seconds beyond that after which a manager that closes gives up a server that does not answer


class Rush(RushClient):
    """The manager of a network: starts, watches and stops workers; pushes tasks and reads results.

    When its block ends, the coroutine and process workers that it started are asked to stop, and killed after a second: where
    they are to finish, wait for them with `join_workers`. Tasks and results stay in the database.

    ```python
    async with Rush("branin") as rush:
        await rush.start_workers(loop, n_workers=4)
        await rush.join_workers()
        print(await rush.fetch_finished_tasks())
    ```

    Args:
        network_id: the network; a random one by default.
        config: a URL or a `RushConfig`; by default `RUSH_URL`, else `REDIS_URL`, else the embedded server.
        schema: columns that frames always have, with their dtypes.
    """

    def __init__(
        self, network_id: str | None = None, config: RushConfig | str | None = None, *, schema: Schema | None = None
    ) -> None:
        super().__init__(network_id, config, schema=schema)
        self._group_: WorkerGroup | None = None
        self._log_place = "0"  # up to where the log was printed

    @property
    def _group(self) -> WorkerGroup:
        network = self._net
        if self._group_ is None:
            self._group_ = WorkerGroup(network)
        return self._group_

    async def _leave(self, error: BaseException | None) -> None:
        if (group := self._group_) is None:
            return
        try:
            with anyio.fail_after(_GRACE + _PATIENCE, shield=True):
                if living := group.to_dismiss:
                    await self.stop_workers(living, timeout=_GRACE)
        except (RushConnectionError, TimeoutError) as gone:
            group.cut_off()
            logger.warning(
                "workers are killed, for they could not be stopped through the network: %s", str(gone) or "no answer"
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
        log_levels: Mapping[str, str | int] | None = None,
        log_dir: str | os.PathLike[str] | None = None,
        heartbeat_period: float | None = None,
        heartbeat_expire: float | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Starts workers and returns; `wait_for_workers` waits until they run. May be called again, with another loop too.

        Args:
            loop: `async def loop(rush: RushWorker, ...)`.
            n_workers: how many; that of the plan by default, else 1.
            on: where: `Coroutines()` (this event loop), `Processes(n)`, or a pool, which is anything with `submit()`; that of
                the plan by default, else coroutines.
            args: the loop's arguments by name. Coroutines get the objects themselves, processes and pools get copies by
                cloudpickle.
            log_levels: the loggers whose records `read_log` is to show, with their levels: `{"my.logger": "DEBUG"}`.
            log_dir: a directory for one stdout and one stderr file a process; by default they go when the process goes.
            heartbeat_period: seconds between two heartbeats; that of the configuration by default.
            heartbeat_expire: seconds after which a silent process is believed dead; likewise.
            kwargs: more of the loop's arguments.

        Returns:
            The workers' ids.

        Raises:
            TypeError: the loop is not `async def`, or does not take these arguments.
            EncodeError: the loop or an argument cannot be sent to another process.
        """
        group, plan = self._group, current_plan()
        bound = bind_loop(loop, args, kwargs, _OPTIONS)
        n_workers = (plan.n_workers or 1) if n_workers is None else as_number(n_workers, "n_workers")
        if n_workers < 1:
            raise ValueError(f"n_workers must be at least 1, not {n_workers}")
        config = self._for_workers(heartbeat_period, heartbeat_expire)
        launcher = _as_launcher(on if on is not None else plan.on)
        levels = check_levels(plan.log_levels if log_levels is None else log_levels)
        return await group.start(launcher, bound, n_workers, config, levels, Path(log_dir) if log_dir is not None else None)

    def _for_workers(self, heartbeat_period: float | None, heartbeat_expire: float | None) -> RushConfig:
        config = self.config.beating(heartbeat_period, heartbeat_expire)
        path = config.large_objects_path or current_plan().large_objects_path
        return replace(config, large_objects_path=path)

    async def detect_lost_workers(self) -> list[str]:
        """Looks for workers whose heartbeats have stopped, as every live process does once a heartbeat period by itself.

        What they ran is failed (kind `lost`), or queued again where it was pushed with `retries`.

        Returns:
            The workers that this call found lost.
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
        with_password: bool = False,
        allow_pickle: bool = False,
        **kwargs: Any,
    ) -> str:
        """A shell command that starts workers in one process anywhere that reaches the database: `rush-async worker ...`.

        The loop travels by name, `module:function`, and its arguments as msgpack through the database, where they stay until a
        `reset`. The command may be run any number of times.

        Args:
            loop: `async def loop(rush: RushWorker, ...)`, in a module that can be imported where the command is run.
            n_workers: how many workers the command starts; that of the plan by default, else 1.
            args: the loop's arguments by name.
            log_levels: as for `start_workers`.
            heartbeat_period: as for `start_workers`.
            heartbeat_expire: as for `start_workers`.
            with_password: whether the password stands in the command, as an assignment in front of it, which other users of a
                machine do not see; otherwise `RUSH_PASSWORD` or `RUSH_URL` is to be set where the command is run.
            allow_pickle: whether loop and arguments travel as a pickle. The command names them by their digest, so that nobody
                who can write to the database can change what it runs.
            kwargs: more of the loop's arguments.

        Returns:
            The command, quoted for a POSIX shell. It is logged too, without its password.

        Raises:
            TypeError: the loop is not `async def`, does not take these arguments, or cannot be imported by name.
            EncodeError: an argument cannot be stored, or they are larger than `max_start_args_size`.
        """
        network, plan = self._net, current_plan()
        command = prepare_command(
            bind_loop(loop, args, kwargs, _COMMAND_OPTIONS, of="worker_command"),
            self.network_id,
            self._for_workers(heartbeat_period, heartbeat_expire),
            n_workers=(plan.n_workers or 1) if n_workers is None else as_number(n_workers, "n_workers"),
            log_levels=check_levels(plan.log_levels if log_levels is None else log_levels),
            with_password=with_password,
            allow_pickle=allow_pickle,
            is_embedded=network.link.is_embedded,
        )
        # It leaves in this tick, long before anybody can run the command.
        network.link.supervisor.start(network.workers.prepare, command.start_id, command.start)
        return command.line

    # waiting

    async def wait_for_workers(
        self, n: int | None = None, *, worker_ids: str | Sequence[str] | None = None, timeout: float | None = None
    ) -> None:
        """Waits until workers run, without polling: `n` of them, or those in `worker_ids`; one of the two is needed.

        Args:
            n: how many workers of the network; with `worker_ids`, how many of those (all by default).
            worker_ids: which workers.
            timeout: seconds to wait; 0 looks once. By default the `start_worker_timeout` of the plan, else for ever.

        Raises:
            WorkersNotReadyError: the time is up, or a worker died before it was running; the message has its error.
        """
        wanted = None if worker_ids is None else list(dict.fromkeys(as_keys(worker_ids)))
        if n is None and wanted is None:
            raise ValueError("say how many workers to wait for, n=..., or which, worker_ids=[...]")
        if n is not None and wanted is not None and n > len(wanted):
            raise ValueError(f"n is {n} and only {len(wanted)} worker_ids are given: they can never be that many")
        needed = as_number(n, "n") if n is not None else len(wanted or ())
        network = self._net
        timeout = current_plan().start_worker_timeout if timeout is None else timeout
        looks_once = timeout is not None and timeout <= 0
        n_ready = 0
        try:
            with self._until_closed(), network.watched, network.end_wait(()) as wait:
                async with asyncio.timeout(None if looks_once else timeout):
                    if not looks_once:
                        await network.watch()
                    while True:
                        n_ready = self._count_ready(await network.workers.read(), wanted)
                        if n_ready >= needed:
                            self._group.unseen.clear()
                            return
                        if looks_once:
                            raise TimeoutError
                        await wait.changed()
        except WorkersNotReadyError:
            raise  # one that died: a timeout by its class, not by its cause
        except TimeoutError:
            of = f" of {listed(wanted)}" if wanted else ""
            raise WorkersNotReadyError(
                f"{n_ready} of {needed} workers{of} are running after {timeout:g} s: "
                "look at worker_info() and at what they wrote"
            ) from None

    def _count_ready(self, entries: Sequence[WorkerEntry], wanted: Sequence[str] | None) -> int:
        """How many run, or have run and ended already."""
        own = set(self._group.unseen if wanted is None else wanted)
        n_ready = 0
        for entry in entries:
            is_ours = entry.worker_id in own
            if entry.state == "running" and (wanted is None or is_ours):
                n_ready += 1
            elif is_ours and entry.ended_at is not None:
                if entry.has_entered:
                    n_ready += 1
                elif entry.state != "terminated" or wanted is not None:
                    self._group.unseen.pop(entry.worker_id, None)  # whoever waits the next time is not told of it again
                    why = entry.failure.message if entry.failure is not None else f"it was {entry.state}"
                    raise WorkersNotReadyError(f"worker {entry.worker_id} died before it was running: {why}")
        return n_ready

    async def join_workers(
        self, worker_ids: str | Sequence[str] | None = None, *, timeout: float | None = None, check: bool = True
    ) -> list[WorkerExit]:
        """Waits until workers have ended; how each did, in order. One that was killed or lost raises nothing here: its `state`
        and `failure` tell.

        Args:
            worker_ids: which; those that this manager started by default.
            timeout: seconds to wait; None waits for ever.
            check: whether to raise when a loop failed.

        Raises:
            WorkerLoopError: loops failed; the message shows each distinct traceback once.
            RushTimeoutError: they did not end in time; they go on.
        """
        wanted = self._group.worker_ids if worker_ids is None else as_keys(worker_ids)
        with self._until_closed():
            ends = await self._wait_for_ends(wanted, timeout)
        if missing := [worker_id for worker_id in wanted if worker_id not in ends]:
            raise RushTimeoutError(f"{len(missing)} workers have not ended within {timeout:g} s: {listed(missing)}")
        exits = [ends[worker_id] for worker_id in wanted]
        if check:
            _raise_failures(exits)
        return exits

    async def _wait_for_ends(self, worker_ids: Sequence[str], timeout: float | None) -> dict[str, WorkerExit]:
        """How workers ended, of those that did within `timeout`. Ours tell us themselves, others tell the network."""
        ends: dict[str, WorkerExit] = {}
        own = self._group.ends_of(worker_ids)
        others = [worker_id for worker_id in worker_ids if worker_id not in own]
        if others:
            await self._read_ends(others, ends)
        with anyio.move_on_after(timeout):
            if len(ends) < len(set(others)):
                await self._wait_for_others(others, ends)
            if own:
                await asyncio.wait(own.values())
        ends |= {worker_id: end.result() for worker_id, end in own.items() if end.done()}
        return ends

    async def _wait_for_others(self, worker_ids: Sequence[str], ends: dict[str, WorkerExit]) -> None:
        network = self._net
        with network.watched, network.end_wait(()) as wait:
            await network.watch()
            while True:
                await self._read_ends(worker_ids, ends)
                if len(ends) >= len(set(worker_ids)):
                    return
                await wait.changed()

    async def _read_ends(self, worker_ids: Sequence[str], ends: dict[str, WorkerExit]) -> None:
        entries = await self._net.workers.read_some(worker_ids)
        for worker_id in worker_ids:
            entry = entries.get(worker_id)
            if entry is None and worker_id not in ends:
                raise KeyError(f"network {self.network_id!r} has no worker {worker_id!r}")
            if entry is not None and entry.ended_at is not None:
                ends[worker_id] = WorkerExit(worker_id, entry.state, entry.failure)

    # stopping

    async def stop_workers(
        self,
        worker_ids: str | Sequence[str] | None = None,
        *,
        mode: Literal["terminate", "kill"] = "terminate",
        timeout: float | None = None,
    ) -> None:
        """Stops workers of the network, wherever they run, and returns when they have ended.

        Args:
            worker_ids: which; all by default. One that is not running is skipped with a warning.
            mode: `terminate` asks (`rush.terminated` turns true, waits for tasks end); `kill` fails what they run and shuts
                them out at once, then cancels the coroutine, or kills the process if this manager started it for that
                worker alone.
            timeout: seconds to wait for those asked; then they are killed. 0 only asks, None waits.
        """
        if mode not in ("terminate", "kill"):
            raise ValueError(f"mode is 'terminate' or 'kill', not {mode!r}")
        network = self._net
        # One that has not entered the network yet, or has left it a moment ago, is known here.
        living = set(self._group.living)
        entries = await network.workers.read()
        living.update(entry.worker_id for entry in entries if entry.state in ("starting", "running"))
        named = sorted(living) if worker_ids is None else list(dict.fromkeys(as_keys(worker_ids)))
        wanted = [worker_id for worker_id in named if worker_id in living]
        for worker_id in named:
            if worker_id not in living:
                logger.warning("worker %s is not running, so it is not stopped", worker_id)
        if mode == "kill":
            await self._group.kill(wanted)
            return
        self._group.stop(wanted, set(await network.workers.ask_to_stop(wanted)))
        if timeout == 0:
            return
        with self._until_closed():
            ends = await self._wait_for_ends(wanted, timeout)
        if late := [worker_id for worker_id in wanted if worker_id not in ends]:
            logger.warning("workers did not stop within %g s and are killed: %s", timeout, listed(late))
            await self._group.kill(late)

    async def reset(self, *, workers: bool = True) -> None:
        """Deletes every task of the network, and stops its workers first; with `workers=False` they go on.

        Other clients notice, wherever they are: their caches start anew.
        """
        if not workers:
            await self._net.tasks.reset(workers=False)
            return
        await self.stop_workers(timeout=_GRACE)
        await self._group.clear()
        await self._net.tasks.reset(workers=True)
        self._group_ = None
        if (path := self._for_workers(None, None).large_objects_path) is not None:
            await remove_payloads(self.network_id, path)

    # watching

    async def worker_info(self) -> pl.DataFrame:
        """The workers of the network, those that ended too, by the moment they registered.

        Returns:
            A frame: `worker_id` (String), `pid` (Int64), `hostname` (String), `heartbeat` (Boolean), `state` (String: starting,
            running, terminated, failed, killed, lost), `started_at`, `last_seen` (Datetime in UTC): of a running worker, when
            its event loop last answered its heartbeat; of any other, when it ended or was started.
        """
        seen = await self._net.workers.last_seen()
        entries = await self._net.workers.read()
        import polars as pl  # takes its time: it is imported for the first frame

        rows = [
            (
                entry.worker_id,
                entry.info.get("pid"),
                entry.info.get("hostname"),
                entry.info.get("heartbeat"),
                entry.state,
                entry.started_at,
                entry.ended_at or max(entry.started_at, seen.get(entry.worker_id, entry.started_at)),
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
        }
        return pl.DataFrame(rows, schema=schema, orient="row")

    async def read_log(self, worker_ids: str | Sequence[str] | None = None, *, time_difference: bool = False) -> pl.DataFrame:
        """What workers logged, in order, of those that were started with `log_levels`; about 100,000 records are kept.

        Args:
            worker_ids: of which workers; of all by default.
            time_difference: whether to add that column.

        Returns:
            A frame: `worker_id`, `level` (String), `timestamp` (Datetime in UTC), `logger`, `caller` (`module.function:line`),
            `msg` (String), and `time_difference` (Duration) to the record before of the same worker.
        """
        _, entries = await self._net.worker_log.read()
        if worker_ids is not None:
            wanted = set(as_keys(worker_ids))
            entries = [entry for entry in entries if entry.worker_id in wanted]
        return frame_of_log(entries, time_difference=time_difference)

    async def print_log(self) -> None:
        """Passes on what workers logged since this was last called, each record through the logger it came from."""
        self._log_place, entries = await self._net.worker_log.read(self._log_place)
        for entry in entries:
            log_again(entry)


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


def _raise_failures(exits: Sequence[WorkerExit]) -> None:
    failed = [how for how in exits if how.state == "failed"]
    if not failed:
        return
    by_text: dict[str, list[str]] = {}
    for how in failed:
        failure = how.failure or Failure()
        by_text.setdefault(failure.traceback or failure.message, []).append(how.worker_id)
    shown = "\n".join(f"{listed(workers)}:\n{text}" for text, workers in by_text.items())
    raise WorkerLoopError(f"the loops of {len(failed)} of {len(exits)} workers failed:\n{shown}")


async def rsh(network_id: str | None = None, config: RushConfig | str | None = None, *, schema: Schema | None = None) -> Rush:
    """Opens a manager at once, for notebooks; end with `await rush.aclose()`."""
    return await Rush(network_id, config, schema=schema)
