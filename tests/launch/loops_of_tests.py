"""Worker loops for tests; in a module, so that processes can import them, though cloudpickle would carry them too."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from rush_async import Draw, DuplicateError, RushWorker, WorkerLostError


async def do_some(rush: RushWorker, n: int = 3) -> None:
    for at in range(n):
        async with rush.task({"x": at}) as task:
            task.ys = {"y": at * 2}


async def serve(rush: RushWorker) -> None:
    async for task in rush.tasks():
        async with task:
            task.ys = {"y": task.xs["x"] * 2}


async def start_until_stopped(rush: RushWorker, finished: int) -> None:
    """Sets the rule that all set, and starts tasks in one of the four ways until the network stops. Some fail."""
    chance = random.Random(rush.worker_id)
    await rush.stop_when(finished=finished)
    way = rush.number % 4
    while not rush.terminated:
        if way == 0:
            task = await rush.pop_task(timeout=None)
        elif way == 1:
            task = await rush.task({"x": way}, budget=10 * finished).__aenter__()
        else:
            keys = await rush.push_running_tasks([{"x": way}] * (way - 1))
            await asyncio.sleep(chance.random() / 20)
            if keys and chance.random() < 0.1:
                await rush.fail_tasks(keys.pop())
            await rush.finish_tasks(keys, [{"y": 1.0}] * len(keys))
            continue
        if task is not None:
            await asyncio.sleep(chance.random() / 20)
            if chance.random() < 0.1:
                await rush.fail_tasks(task.key)
            else:
                await rush.finish_tasks(task.key, [{"y": 0.5}])


async def hold_as_study(rush: RushWorker) -> None:
    """Starts tasks as a shared worker, one of them from the queue, and one as the worker of this loop."""
    async with RushWorker(rush.network_id, rush.config, worker_id="study", shared=True) as study:
        await study.push_running_tasks([{"x": 1}])
        await study.pop_task(timeout=None)
        await rush.push_running_tasks([{"x": 2}])
        await asyncio.Event().wait()


async def hold(rush: RushWorker) -> None:
    await rush.push_running_tasks([{"pid": os.getpid()}])
    await asyncio.Event().wait()


async def block(rush: RushWorker) -> None:
    await rush.push_running_tasks([{"pid": os.getpid()}])
    time.sleep(600)  # noqa: ASYNC251 - a computation that never awaits


async def block_as_the_third(rush: RushWorker, mark: Path) -> None:
    await rush.push_running_tasks([{"pid": os.getpid()}])
    if (await rush.counts()).total == 3:
        mark.touch()  # noqa: ASYNC240 - from here on nothing awaits, on purpose
        time.sleep(600)  # noqa: ASYNC251 - a computation that never awaits
    await asyncio.Event().wait()


async def hold_three(rush: RushWorker) -> None:
    """Holds three tasks until it is asked to stop, and then finishes them."""
    keys = await rush.push_running_tasks([{"x": x} for x in range(3)])
    await rush.pop_task(timeout=None)
    await rush.finish_tasks(keys, [{"y": 0}] * 3)


async def pop_and_hold(rush: RushWorker) -> None:
    await rush.pop_task(timeout=None)
    await asyncio.Event().wait()


async def compute(rush: RushWorker) -> None:
    """Never awaits while it computes, and reads the queue with a client of its own."""
    (key,) = await rush.push_running_tasks([{"x": 0}])
    import redis

    assert rush.config.url is not None
    with redis.Redis.from_url(rush.config.url) as client:  # pyright: ignore[reportUnknownMemberType]
        while not client.exists(f"rush:{{{rush.network_id}}}:queue"):
            time.sleep(0.01)  # noqa: ASYNC251
    await rush.finish_tasks(key, [{"y": 1}])


async def compute_until_terminated(rush: RushWorker) -> None:
    async with rush.task({"x": 0}) as task:
        while not rush.terminated:
            time.sleep(0.01)  # noqa: ASYNC251
        task.ys = {"y": 1}


async def come_back(rush: RushWorker) -> None:
    """Computes until it has been stopped for a while; then finishes its task, is refused as lost, and opens a new worker."""
    last = time.monotonic()  # the test may stop it as soon as it sees the task
    (key,) = await rush.push_running_tasks([{"x": 0}])
    while time.monotonic() - last < 0.2:
        last = time.monotonic()
        time.sleep(0.01)  # noqa: ASYNC251
    try:
        await rush.finish_tasks(key, [{"y": 1}])
    except WorkerLostError as error:
        async with RushWorker(rush.network_id, rush.config) as again:
            await again.push_finished_tasks([{"x": type(error).__name__}], [{"y": 0}])


async def log_some(rush: RushWorker) -> None:
    logger = logging.getLogger("my.logger")
    logger.debug("%d of %d began", 1, 2)
    logger.getChild("child").warning("beware")
    try:
        1 / 0  # noqa: B018 # pyright: ignore[reportUnusedExpression]
    except ZeroDivisionError:
        logger.exception("it broke")
    logging.getLogger("another").error("not asked for")


async def swallow(rush: RushWorker, may_end: asyncio.Event) -> None:
    await rush.push_running_tasks([{"x": 1}])
    while not may_end.is_set():
        try:
            await may_end.wait()
        except asyncio.CancelledError:
            continue


async def raise_holding(rush: RushWorker, message: str = "the loop broke") -> None:
    await rush.push_running_tasks([{"x": 1}])
    raise RuntimeError(message)


async def shout(rush: RushWorker) -> None:
    sys.stderr.write("x" * 1_000_000)
    sys.stderr.flush()
    sys.stdout.write("said on stdout\n")
    sys.stdout.flush()
    await do_some(rush, 1)


async def talk(rush: RushWorker) -> None:
    print("printed")  # noqa: T201
    warnings.warn("an old way", stacklevel=1)
    logging.getLogger("my.logger").info("not shown")
    logging.getLogger("my.logger").warning("careful")
    sys.stderr.write("\r10 %\r20 %\n")
    sys.stdout.write("x" * 3_000_000)  # no newline, and more than any pipe takes


async def fork_and_hold(rush: RushWorker) -> None:
    pid = os.fork()
    if pid == 0:  # keeps all files and sockets of this process open
        time.sleep(600)  # noqa: ASYNC251
        os._exit(0)
    await rush.push_running_tasks([{"pid": os.getpid(), "grandchild": pid}])
    await asyncio.Event().wait()


async def print_and_end(rush: RushWorker) -> None:
    print(f"worker {rush.worker_id} was here", end="")  # noqa: T201 - not flushed


async def die_talking(rush: RushWorker) -> None:
    sys.stderr.write("x" * 3_000_000 + "\nthe device is gone\n")
    os._exit(3)


async def note_arguments(rush: RushWorker, **arguments: Any) -> None:
    logging.getLogger("my.logger").warning("noted")
    await rush.push_finished_tasks([{name: str(value) for name, value in arguments.items()}], [{"y": 0}])


class CannotBeUnpickled:
    def __reduce__(self) -> Any:
        return (_fail_to_import, ())


def _fail_to_import() -> None:
    raise ModuleNotFoundError("No module named 'missing_package'")


async def serve_until_terminated(rush: RushWorker) -> None:
    async for task in rush.tasks():
        async with task:
            while not rush.terminated:
                time.sleep(0.01)  # noqa: ASYNC251 - computes, and checks `terminated` from time to time
            task.ys = {"y": 1}


async def show_arguments(rush: RushWorker, **arguments: Any) -> None:
    await rush.push_finished_tasks([{name: repr(value) for name, value in arguments.items()}], [{"y": 0}])


async def leave_a_thread_behind(rush: RushWorker) -> None:
    asyncio.get_running_loop().run_in_executor(None, time.sleep, 600)
    await do_some(rush, 1)


async def end_a_fork(rush: RushWorker) -> None:
    is_there, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(tell, b"1")
        time.sleep(600)  # noqa: ASYNC251
        os._exit(0)
    os.read(is_there, 1)
    os.kill(pid, signal.SIGTERM)
    _, status = os.waitpid(pid, 0)  # noqa: ASYNC222
    await rush.push_finished_tasks([{"signal": os.WTERMSIG(status)}], [{"y": 0}])


async def count_threads(rush: RushWorker) -> None:
    import polars as pl

    await rush.push_finished_tasks([{"pid": os.getpid()}], [{"polars": pl.thread_pool_size()}])


async def block_loudly(rush: RushWorker) -> None:
    await rush.push_running_tasks([{"x": 0}])
    sys.stderr.write("blocked\n")
    time.sleep(600)  # noqa: ASYNC251


async def propose_points(rush: RushWorker, n_points: int, n_coroutines: int) -> None:
    """Proposes points of a discrete space, each to be taken once, and tells how that ended. The first task of every tenth point
    fails."""
    told = {"drawn": 0, "used_up": 0, "stopped": 0}

    def propose(draw: Draw) -> dict[str, int]:
        told["drawn"] += 1
        return {"x": draw.random().randrange(n_points)}

    async def run_tasks() -> None:
        try:
            async for task in rush.proposals(propose, unique=True, catch=ArithmeticError):
                async with task:
                    x = task.xs["x"]
                    if x % 10 == 0 and await rush.claim(str(x), task.key) == task.key:
                        raise ArithmeticError(x)
                    task.ys = {"y": x}
            told["stopped"] += 1
        except DuplicateError:
            told["used_up"] += 1

    await asyncio.gather(*(run_tasks() for _ in range(n_coroutines)))
    await rush.set_attrs({rush.worker_id: told})


class OwnWorker(RushWorker):
    async def push_own(self) -> None:
        await self.push_finished_tasks([{"x": 1}], [{"y": type(self).__name__}])


async def push_own(rush: OwnWorker, n: int) -> None:
    for _ in range(n):
        await rush.push_own()


async def name_dtype(rush: RushWorker) -> None:
    """Tells the dtype that a column has in the frames of this worker."""
    dtype = (await rush.fetch_finished_tasks()).schema.get("loss")
    async with rush.task({"x": 1}) as task:
        task.ys = {"dtype": str(dtype)}


async def break_once(rush: RushWorker, mark: Path) -> None:
    """Dies as the first worker, raises an exception as the second, and works as the third."""
    n = int(mark.read_text())  # noqa: ASYNC240 - a few bytes
    mark.write_text(str(n + 1))  # noqa: ASYNC240
    if n == 0:
        os._exit(3)
    if n == 1:
        raise RuntimeError("the loop broke")
    await do_some(rush, 1)
