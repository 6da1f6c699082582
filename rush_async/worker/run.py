"""Runs the loop of one worker to its end, whatever that is."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from rush_async.errors import NetworkStoppedError, WorkerLostError
from rush_async.model import Failure, WorkerExit
from rush_async.supervisor import Supervisor
from rush_async.worker.loop import WorkerLoop
from rush_async.worker.membership import Membership

__all__ = ["end_of", "run_loop"]

logger = logging.getLogger(__name__)

_PATIENCE = 2.0  # seconds that a cancelled loop has to end


async def run_loop(worker: object, membership: Membership, loop: WorkerLoop) -> WorkerExit:
    """Runs the loop in a task of its own, which is cancelled only once, so that its clean-up may await, and which can be
    abandoned if it does not end."""
    event_loop = asyncio.get_running_loop()
    running = Supervisor.spawn(_end_of_loop(worker, membership, loop), name=f"loop of worker {membership.worker_id}")
    membership.run(running)
    expelled = Supervisor.spawn(membership.expelled())
    deadline: float | None = None
    try:
        while not running.done() and (deadline is None or event_loop.time() < deadline):
            is_cancelled = False
            try:
                left = None if deadline is None else deadline - event_loop.time()
                waited = [running] if deadline is not None else [running, expelled]
                await asyncio.wait(waited, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError:
                # Cancelling the worker cancels its loop; the caller gets the end of the loop.
                is_cancelled = True
                if (task := asyncio.current_task()) is not None:
                    task.uncancel()
            if deadline is None and (is_cancelled or expelled.done()) and not running.done():
                deadline = event_loop.time() + _PATIENCE
                membership.cancel_loop()
    finally:
        expelled.cancel()
    if running.done():
        return end_of(membership.worker_id, running)
    logger.error(
        "worker %s swallows its cancellation: it deregisters, and its loop is abandoned; "
        "let the loop end on asyncio.CancelledError",
        membership.worker_id,
    )
    running.add_done_callback(_note_late_end)
    return WorkerExit(membership.worker_id, "terminated")


async def _end_of_loop(worker: object, membership: Membership, loop: WorkerLoop) -> WorkerExit:
    """Runs the loop and returns how it ended, also for an error."""
    try:
        await loop.function(worker, **loop.arguments)
    except WorkerLostError as error:
        if not membership.is_shut_out:  # the error of another worker that the loop opened
            return WorkerExit(membership.worker_id, "failed", Failure.of(error))
    except NetworkStoppedError:
        pass  # of a block without a budget: there is nothing more to do
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        why = "the loop was cancelled from within: something it awaited had been cancelled"
        return WorkerExit(membership.worker_id, "failed", replace(Failure.of(error, "cancelled"), message=why))
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseExceptionGroup as error:
        _, others = error.split(NetworkStoppedError)  # of blocks in a task group
        if others is not None:
            return WorkerExit(membership.worker_id, "failed", Failure.of(error))
    except BaseException as error:  # `sys.exit()` in a loop ends the loop, not the process with all its workers
        return WorkerExit(membership.worker_id, "failed", Failure.of(error))
    return WorkerExit(membership.worker_id, "terminated")


def end_of(worker_id: str, running: asyncio.Task[WorkerExit]) -> WorkerExit:
    """How a worker ended whose task is done."""
    if running.cancelled():
        return WorkerExit(worker_id, "terminated")
    if (error := running.exception()) is not None:
        return WorkerExit(worker_id, "failed", Failure.of(error))
    return running.result()


def _note_late_end(running: asyncio.Task[WorkerExit]) -> None:
    if not running.cancelled():
        logger.debug("the abandoned %s has ended", running.get_name(), exc_info=running.exception())
