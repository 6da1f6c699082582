"""How a worker registers with its network, and how it leaves."""

from __future__ import annotations

import logging
import os
import socket

import anyio

from rush_async.config import RushConfig
from rush_async.errors import RushConnectionError, WorkerIdTakenError
from rush_async.model import Failure
from rush_async.network.network import Network
from rush_async.process import LoopValue
from rush_async.worker.guard import LoopTurns
from rush_async.worker.membership import Membership

__all__ = ["deregister", "register"]

logger = logging.getLogger(__name__)

_PATIENCE = 5.0  # seconds that deregistering may take

_turns = LoopValue(LoopTurns)


async def register(network: Network, membership: Membership, config: RushConfig) -> None:
    """Registers a worker.

    Raises:
        WorkerIdTakenError: its id is or was in use.
    """
    lease, info = None, {"pid": None, "hostname": None, "heartbeat": False}
    if not membership.is_shared:
        info = {"pid": os.getpid(), "hostname": socket.gethostname(), "heartbeat": True}
        lease = network.heartbeat.lease(config.heartbeat_period, config.heartbeat_expire)
        membership.lease_id = lease.lease_id

    if membership.worker_id in network.local_workers.by_id:
        raise _name_is_taken(membership)
    try:
        await network.register(membership)
        registration = await network.workers.register(membership.worker_id, lease, info)
        if registration.mark == 0:
            raise _name_is_taken(membership)
    except BaseException:
        network.unregister(membership)
        raise
    membership.join(network.tasks, network.workers, network.log_writer, _turns.get(), network.local_workers)
    membership.report_to(network.reports, config.max_reports)
    membership.number = registration.number
    if registration.mark == 2:  # while it was being started
        membership.request_stop()


def _name_is_taken(membership: Membership) -> WorkerIdTakenError:
    worker_id, network_id = membership.worker_id, membership.network_id
    if membership.is_shared:
        return WorkerIdTakenError(
            f"shared worker {worker_id!r} cannot be opened in network {network_id!r}: it is open in this event loop already, "
            "was killed, or its id is or was in use by a worker that is not shared: use the client that is open, or choose "
            "another id"
        )
    return WorkerIdTakenError(
        f"worker_id {worker_id!r} is or was in use in network {network_id!r}: choose another, or leave it out for a random one"
    )


async def deregister(network: Network, membership: Membership, error: BaseException | None) -> None:
    """Deregisters a worker that has ended, perhaps with an error, and fails what it still holds. A shared worker stays."""
    membership.is_registered = False
    membership.request_stop()
    if membership.is_shared:  # it stays with its tasks, for other processes
        membership.note_deregistered()
        network.unregister(membership)
        return
    if membership.end is None:
        is_own = isinstance(error, Exception)
        membership.end = ("failed", Failure.of(error)) if is_own else ("terminated", None)
    state, failure = membership.end
    has_left = False
    try:
        # The limit keeps a worker from delaying the close of its manager.
        with anyio.move_on_after(network.link.connection.patience(_PATIENCE), shield=True):
            if membership.has_logged:
                await network.log_writer.flush()
            if not membership.is_shut_out:
                await network.tasks.calls.quiet()  # calls in flight may still give it tasks
                await membership.fail_held(failure or Failure("cancelled", None, "Its worker ended"))
                await network.tasks.calls.compensated()
                await network.workers.deregister(membership.worker_id, state, failure)
            has_left = True
        if not has_left:
            logger.warning("worker %s could not deregister: no answer within %g s", membership.worker_id, _PATIENCE)
    except RushConnectionError as reason:
        logger.warning("worker %s could not deregister: %s", membership.worker_id, reason)
    finally:
        membership.note_deregistered()
        network.unregister(membership)
        if not has_left:
            network.report_as_lost(membership.worker_id, failure)
