"""The manager: starts, watches and stops workers, and empties the network."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import anyio

from rush_async.client import RushClient, as_keys, as_number
from rush_async.config import RushConfig
from rush_async.errors import RushConnectionError, RushTimeoutError, WorkerLoopError, WorkersNotReadyError
from rush_async.launch.coroutines import Coroutines
from rush_async.launch.handle import Launch, Launcher, WorkerHandle
from rush_async.loops import bind_loop
from rush_async.model import Failure, WorkerExit
from rush_async.names import worker_name
from rush_async.network import Network
from rush_async.session import Schema
from rush_async.store.workers import WorkerEntry
from rush_async.supervisor import see_through

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Rush", "rsh"]

logger = logging.getLogger(__name__)

_GRACE = 1.0  # seconds that workers have to end by themselves when their manager closes or resets the network
_PATIENCE = 5.0  # seconds beyond that after which a manager that closes gives up a server that does not answer
_KILLED = Failure("killed", None, "Worker was killed")
_LOST = Failure("lost", None, "Worker has crashed or was killed")


class Rush(RushClient):
    """The manager of a network: starts, watches and stops workers; pushes tasks and reads results.

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
        self._handles: dict[str, WorkerHandle] = {}
        self._ends: dict[str, asyncio.Future[WorkerExit]] = {}
        self._killed: set[str] = set()
        self._is_cut_off = False  # the server is gone for good, and ends of workers are told to nobody
        self._unseen: dict[str, None] = {}  # started since somebody last waited for workers

    async def _leave(self, error: BaseException | None) -> None:
        living = [worker_id for worker_id, handle in self._handles.items() if handle.is_alive]
        try:
            with anyio.fail_after(_GRACE + _PATIENCE, shield=True):
                if living:
                    await self.stop_workers(living, timeout=_GRACE)
        except (RushConnectionError, TimeoutError) as gone:
            self._is_cut_off = True
            logger.warning(
                "workers are killed, for they could not be stopped through the network: %s", str(gone) or "no answer"
            )
        finally:
            with anyio.CancelScope(shield=True):
                await asyncio.gather(*[handle.kill() for handle in self._handles.values() if handle.is_alive])
                await asyncio.gather(*[handle.clear() for handle in self._handles.values()])

    # starting

    async def start_workers(
        self,
        loop: Callable[..., Awaitable[Any]],
        n_workers: int = 1,
        *,
        on: Launcher | None = None,
        args: Mapping[str, Any] | None = None,
        log_dir: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Starts workers and returns; `wait_for_workers` waits until they run. May be called again, with another loop too.

        Args:
            loop: `async def loop(rush: RushWorker, ...)`.
            n_workers: how many.
            on: where: `Coroutines()` (this event loop, the default) or `Processes(n)`.
            args: the loop's arguments by name. Coroutines get the objects themselves, processes get copies by cloudpickle.
            log_dir: a directory for one stdout and one stderr file a process; by default they go when the process goes.
            kwargs: more of the loop's arguments.

        Returns:
            The workers' ids.

        Raises:
            TypeError: the loop is not `async def`, or does not take these arguments.
            EncodeError: the loop or an argument cannot be sent to another process.
        """
        network = self._net
        bound = bind_loop(loop, args, kwargs, _OPTIONS)
        if as_number(n_workers, "n_workers") < 1:
            raise ValueError(f"n_workers must be at least 1, not {n_workers}")
        launcher = Coroutines() if on is None else on
        if not hasattr(launcher, "launch"):
            raise TypeError(f"on is Coroutines() or Processes(n), not {type(launcher).__name__}: {launcher!r:.80}")
        directory = Path(log_dir) if log_dir is not None else None
        worker_ids: list[str] = []
        try:
            await see_through(self._announce(network, n_workers, worker_ids))
            launch = Launch(self.network_id, self.config, bound, worker_ids, directory, network.link.supervisor, self._lose)
            handles = await launcher.launch(launch)
        except BaseException as error:
            await see_through(self._take_back(network, worker_ids, error))
            raise
        for handle in handles:
            self._handles[handle.worker_id] = handle
            self._ends[handle.worker_id] = asyncio.get_running_loop().create_future()
            handle.ended.add_done_callback(self._note_end)
        self._unseen.update(dict.fromkeys(worker_ids))
        return list(worker_ids)

    async def _announce(self, network: Network, n_workers: int, worker_ids: list[str]) -> None:
        """Registers new workers as starting, and notes their ids as it goes on."""
        while len(worker_ids) < n_workers:
            names = [worker_name() for _ in range(n_workers - len(worker_ids))]
            worker_ids += await network.workers.announce(names, {"pid": None, "hostname": None, "heartbeat": False})

    async def _take_back(self, network: Network, worker_ids: Sequence[str], error: BaseException) -> None:
        """Reports announced workers that did not start after all."""
        is_own = isinstance(error, Exception)
        state, failure = ("failed", Failure.of(error)) if is_own else ("terminated", None)
        with contextlib.suppress(RushConnectionError):
            for worker_id in worker_ids:
                await network.workers.bye(worker_id, state, failure)

    def _note_end(self, ended: asyncio.Future[WorkerExit]) -> None:
        how = ended.result()
        if how.worker_id in self._killed:
            how = WorkerExit(how.worker_id, "killed", _KILLED)  # however it took that
        network = self._network
        if how.state == "failed" and how.failure is not None:
            logger.error("the loop of worker %s failed: %s", how.worker_id, how.failure.traceback or how.failure.message)
        if network is None or self._is_cut_off or not network.link.supervisor.is_open:
            self._ends[how.worker_id].set_result(how)
        else:
            network.link.supervisor.start(self._report_end, network, how)

    async def _report_end(self, network: Network, how: WorkerExit) -> None:
        """Reports a worker that ended without having entered or without a good-bye; for any other this moves nothing."""
        try:
            await network.workers.bye(how.worker_id, how.state, how.failure)
        except RushConnectionError as gone:
            logger.warning("the end of worker %s could not be reported: %s", how.worker_id, gone)
        finally:
            self._ends[how.worker_id].set_result(how)

    async def _lose(self, worker_id: str, failure: Failure) -> None:
        network = self._network
        if network is not None and not self._is_cut_off and await network.workers.lose(worker_id, "lost", _LOST, failure):
            logger.error("worker %s is lost, its tasks have been failed: %s", worker_id, failure.message)

    # waiting

    async def wait_for_workers(
        self, n: int | None = None, *, worker_ids: str | Sequence[str] | None = None, timeout: float | None = None
    ) -> None:
        """Waits until workers run, without polling.

        Args:
            n: how many workers of the network; with `worker_ids`, how many of those (all by default).
            worker_ids: which workers.
            timeout: seconds to wait; 0 looks once, None waits for ever.

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
        looks_once = timeout is not None and timeout <= 0
        n_ready = 0
        try:
            with self._until_closed(), network.end_wait(()) as wait:
                async with asyncio.timeout(None if looks_once else timeout):
                    if not looks_once:
                        await network.watch()
                    while True:
                        n_ready = self._count_ready(await network.workers.read(), wanted)
                        if n_ready >= needed:
                            self._unseen.clear()
                            return
                        if looks_once:
                            raise TimeoutError
                        await wait.changed()
        except WorkersNotReadyError:
            raise  # one that died: a timeout by its class, not by its cause
        except TimeoutError:
            of = f" of {', '.join(wanted[:5])}" if wanted else ""
            raise WorkersNotReadyError(
                f"{n_ready} of {needed} workers{of} are running after {timeout:g} s: "
                "look at worker_info() and at what they wrote"
            ) from None

    def _count_ready(self, entries: Sequence[WorkerEntry], wanted: Sequence[str] | None) -> int:
        """How many run, or have run and ended already."""
        own = set(self._unseen if wanted is None else wanted)
        n_ready = 0
        for entry in entries:
            is_ours = entry.worker_id in own
            if entry.state == "running" and (wanted is None or is_ours):
                n_ready += 1
            elif is_ours and entry.ended_at is not None:
                if entry.info.get("pid") is not None:
                    n_ready += 1
                elif entry.state != "terminated" or wanted is not None:
                    self._unseen.pop(entry.worker_id, None)  # whoever waits the next time is not told of it again
                    why = entry.failure.message if entry.failure is not None else f"it was {entry.state}"
                    raise WorkersNotReadyError(f"worker {entry.worker_id} died before it was running: {why}")
        return n_ready

    async def join_workers(
        self, worker_ids: str | Sequence[str] | None = None, *, timeout: float | None = None, check: bool = True
    ) -> list[WorkerExit]:
        """Waits until workers have ended; how each did, in order.

        Args:
            worker_ids: which; those that this manager started by default.
            timeout: seconds to wait; None waits for ever.
            check: whether to raise when a loop failed.

        Raises:
            WorkerLoopError: loops failed; the message shows each distinct traceback once.
            RushTimeoutError: they did not end in time; they go on.
        """
        wanted = list(self._handles) if worker_ids is None else as_keys(worker_ids)
        with self._until_closed():
            ends = await self._wait_for_ends(wanted, timeout)
        if missing := [worker_id for worker_id in wanted if worker_id not in ends]:
            raise RushTimeoutError(f"{len(missing)} workers have not ended within {timeout:g} s: {', '.join(missing[:5])}")
        exits = [ends[worker_id] for worker_id in wanted]
        if check:
            _raise_failures(exits)
        return exits

    async def _wait_for_ends(
        self, worker_ids: Sequence[str], timeout: float | None, asked: set[str] | None = None
    ) -> dict[str, WorkerExit]:
        """How workers ended, of those that did within `timeout`. Ours tell us themselves, others tell the network."""
        ends: dict[str, WorkerExit] = {}
        own = {worker_id: self._ends[worker_id] for worker_id in worker_ids if worker_id in self._ends}
        others = [worker_id for worker_id in worker_ids if worker_id not in own]
        if others:
            await self._read_ends(others, ends)
        with anyio.move_on_after(timeout):
            if len(ends) < len(set(others)):
                await self._wait_for_others(others, ends, asked)
            if own:
                await asyncio.wait(own.values())
        ends |= {worker_id: end.result() for worker_id, end in own.items() if end.done()}
        return ends

    async def _wait_for_others(self, worker_ids: Sequence[str], ends: dict[str, WorkerExit], asked: set[str] | None) -> None:
        """Waits until all have ended. Those that could not be asked to stop, as they had not come in yet, are asked then."""
        network = self._net
        await network.watch()
        with network.end_wait(()) as wait:
            while True:
                await self._read_ends(worker_ids, ends)
                if asked is not None:
                    unasked = [worker_id for worker_id in worker_ids if worker_id not in asked and worker_id not in ends]
                    asked.update(await network.workers.ask_to_stop(unasked))
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
        living = {worker_id for worker_id, handle in self._handles.items() if handle.is_alive}
        entries = await network.workers.read()
        living.update(entry.worker_id for entry in entries if entry.state in ("starting", "running"))
        named = sorted(living) if worker_ids is None else list(dict.fromkeys(as_keys(worker_ids)))
        wanted = [worker_id for worker_id in named if worker_id in living]
        for worker_id in named:
            if worker_id not in living:
                logger.warning("worker %s is not running, so it is not stopped", worker_id)
        if mode == "kill":
            await self._kill(wanted)
            return
        asked = set(await network.workers.ask_to_stop(wanted))
        for worker_id in wanted:
            if worker_id not in asked and worker_id in self._handles:
                self._handles[worker_id].stop()
        if timeout == 0:
            return
        with self._until_closed():
            ends = await self._wait_for_ends(wanted, timeout, asked)
        if late := [worker_id for worker_id in wanted if worker_id not in ends]:
            logger.warning("workers did not stop within %g s and are killed: %s", timeout, ", ".join(late[:5]))
            await self._kill(late)

    async def _kill(self, worker_ids: Sequence[str]) -> None:
        # The network first: from here on nothing they do counts, whether they can be reached or not.
        workers = self._net.workers
        for worker_id in worker_ids:
            if await workers.lose(worker_id, "killed", _KILLED, _KILLED):
                self._killed.add(worker_id)
        own = [self._handles[worker_id] for worker_id in worker_ids if worker_id in self._handles]
        await asyncio.gather(*[handle.kill() for handle in own])
        await self._wait_for_ends([handle.worker_id for handle in own], None)

    async def reset(self, *, workers: bool = True) -> None:
        """Deletes every task of the network, and stops its workers first; with `workers=False` they go on.

        Other clients notice, wherever they are: their caches start anew.
        """
        if not workers:
            await self._net.tasks.reset(workers=False)
            return
        await self.stop_workers(timeout=_GRACE)
        await asyncio.gather(*[handle.clear() for handle in self._handles.values()])
        await self._net.tasks.reset(workers=True)
        self._handles.clear()
        self._ends.clear()
        self._killed.clear()
        self._unseen.clear()

    # watching

    async def worker_info(self) -> pl.DataFrame:
        """The workers of the network, those that ended too, in the order they registered.

        Returns:
            A frame: `worker_id` (String), `pid` (Int64), `hostname` (String), `heartbeat` (Boolean), `state` (String: starting,
            running, terminated, failed, killed, lost), `started_at`, `last_seen` (Datetime in UTC).
        """
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
                entry.ended_at or entry.started_at,
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


_OPTIONS = frozenset(inspect.signature(Rush.start_workers).parameters) - {"self", "kwargs"}


def _raise_failures(exits: Sequence[WorkerExit]) -> None:
    failed = [how for how in exits if how.state == "failed"]
    if not failed:
        return
    by_text: dict[str, list[str]] = {}
    for how in failed:
        failure = how.failure or Failure()
        by_text.setdefault(failure.traceback or failure.message, []).append(how.worker_id)
    shown = "\n".join(f"{', '.join(workers)}:\n{text}" for text, workers in by_text.items())
    raise WorkerLoopError(f"the loops of {len(failed)} of {len(exits)} workers failed:\n{shown}")


async def rsh(network_id: str | None = None, config: RushConfig | str | None = None, *, schema: Schema | None = None) -> Rush:
    """Opens a manager at once, for notebooks; end with `await rush.aclose()`."""
    return await Rush(network_id, config, schema=schema)
