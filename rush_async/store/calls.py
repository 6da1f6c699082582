"""Numbered calls: every change of a network is sent with a number, and the server stores its answer, so that the call may be
sent again whatever happened to the reply (the idempotent producer of Kafka, KIP-98, has an epoch and a sequence for the same).

Requests of one kind that are issued in one tick of the event loop go as one call, the batch.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import hiredis

from rush_async.errors import DecodeError, RushConnectionError, RushError
from rush_async.store import scripts
from rush_async.store.key_types import explained
from rush_async.store.numbering import WINDOW, CallerName
from rush_async.store.position import NetworkPosition, position_of
from rush_async.store.scripts import Life, Request, Script, ScriptCaller, deal, epoch_of, take_together
from rush_async.wire.connection import Connection
from rush_async.wire.refusals import forgotten, gave_up, refusal, unacknowledged
from rush_async.wire.transport import Command, Word, pack

__all__ = ["Batcher"]

logger = logging.getLogger(__name__)

REPLICAS_IN = 1_000  # milliseconds in which replicas are to acknowledge a call, before it is sent again
_PAUSE = 0.5  # seconds until a detached request is issued again where it was refused
ENOUGH = 16  # requests that are worth a call before the tick is over
_AHEAD = 100  # requests of a script that may be handed over in one tick without waiting


class _Batch(Command):
    """A call under way; where replicas are to acknowledge it, with a second reply that tells how many did."""

    __slots__ = ("asked_at", "asked_seq", "batcher", "client", "epoch", "number", "reply", "requests", "script", "wait_ends")

    def __init__(self, batcher: Batcher, script: Script, requests: list[Request]) -> None:
        super().__init__(b"", 2 if batcher.n_replicas else 1)
        self.reply: Any = None
        self.wait_ends: float | None = None
        self.batcher = batcher
        self.script = script
        self.requests = requests
        self.number = batcher.number
        self.client = batcher.name.text
        self.asked_at = batcher.position.highest_epoch
        self.asked_seq = batcher.position.seq
        self.epoch = batcher.position.epoch

    def passed(self, reply: Any) -> None:
        self.reply = reply

    def answered(self, reply: Any) -> None:
        if self.n_replies == 1:
            self.batcher.answered(self, reply)
        else:
            self.batcher.acknowledged(self, reply)

    def failed(self, error: Exception) -> None:
        self.batcher.forget(self)
        for request in self.requests:
            request.reject(error)
        self.batcher.progressed()

    def given_up(self, error: Exception) -> bool:
        # What the server may have granted already is compensated once it answers again.
        detached = (Life.DETACHED, Life.OVERDUE)
        is_kept = self.n_sent > 0 and any(request.compensates or request.life in detached for request in self.requests)
        if not is_kept:
            self.batcher.forget(self)
        for request in self.requests:
            if request.life not in detached:
                request.reject(error)
                continue
            request.life = Life.OVERDUE
            if not is_kept:
                self.batcher.issue(request)
        self.batcher.progressed()
        return is_kept


class Batcher:
    """Numbers, merges and sends the calls of one process on one network.

    Args:
        connection: the connection they go through.
        caller: writes the calls.
        position: the position of the network, which every reply carries.
    """

    def __init__(self, connection: Connection, caller: ScriptCaller, position: NetworkPosition) -> None:
        self.position = position
        self.name = CallerName()
        self.number = 0  # of the last call
        self.n_replicas = connection.config.wait_replicas
        self._wait = pack(("WAIT", self.n_replicas, REPLICAS_IN)) if self.n_replicas else b""
        self._connection = connection
        self._caller = caller
        self._token = b""  # from the server: with it a call may create the network, once
        self._unanswered: dict[int, _Batch] = {}
        self._n_under_way = 0  # requests in the unanswered batches
        self._waiting: dict[Script, deque[Request]] = {}
        self._is_due = False  # whether `fill` is to be called before the next write
        self._progress = asyncio.Event()
        self._unawaited: set[Request] = set()  # abandoned and detached ones

    def issue(self, request: Request) -> None:
        """Takes a request; it leaves at the end of this tick at the latest, merged with what else is issued until then.

        A call that has gathered as much as the server still has to do for us leaves at once, so that the server works on it
        while this process continues: both are busy, where they would take turns.
        """
        waiting = self._waiting.get(request.script)
        if waiting is None:
            waiting = deque[Request]()
            leader = {request.script: waiting} if request.script.leads else {}
            self._waiting = {**leader, **self._waiting, request.script: waiting}
        waiting.append(request)
        if not self._is_due:
            self._send_soon()
        if ENOUGH <= len(waiting) >= self._n_under_way and request.script.merges and self._connection.is_ready:
            self._connection.flush()

    def detach(self, request: Request) -> None:
        """Issues a request that no caller awaits, and that is executed in the end, however long the server is away."""
        request.life = Life.DETACHED
        self._unawaited.add(request)
        self.issue(request)

    async def hand_over(self, request: Request) -> None:
        """Issues a request without waiting for its answer. Waits only while more is issued than the connection takes.

        Raises:
            RushError: the request was refused, or given up, while this waited.
        """
        self.issue(request)
        try:
            while not request.future.done() and not self._takes(request.script):
                await self._next_progress()
        except asyncio.CancelledError:
            self._abandon(request)
            raise
        if request.future.done():
            request.future.result()

    def _takes(self, script: Script) -> bool:
        """Whether what was issued leaves at the end of this tick, and is not too much for one."""
        return self._connection.is_ready and self._has_window() and len(self._waiting[script]) < _AHEAD

    def _abandon(self, request: Request) -> None:
        """The caller is gone: what the answer grants is compensated, now or when it comes."""
        future = request.future
        if not future.done():
            future.cancel()
        elif not future.cancelled() and future.exception() is None:  # it came in the very tick of the cancellation
            request.compensate(future.result())
        if request.life is Life.AWAITED:
            request.life = Life.DETACHED if request.script.is_final else Life.ABANDONED
            self._unawaited.add(request)

    async def call(self, request: Request) -> Any:
        """Issues a request and waits for its answer. Cancelled, it leaks nothing: what the answer grants is compensated."""
        self.issue(request)
        try:
            return await request.future
        except asyncio.CancelledError:
            self._abandon(request)
            raise
        except RushError as error:
            raise await explained(self._connection, self._caller.keys, error) from error.__cause__

    async def call_all(self, requests: Sequence[Request]) -> list[Any]:
        """Issues requests together and waits for all. When one fails or the caller is cancelled, all are abandoned."""
        if len(requests) == 1:
            return [await self.call(requests[0])]
        for request in requests:
            self.issue(request)
        error: Exception | None = None
        results: list[Any] = []
        try:
            for request in requests:
                try:
                    results.append(await request.future)
                except Exception as reason:
                    error = error or reason
        except BaseException:
            for request in requests:
                self._abandon(request)
            raise
        if error is not None:
            for request in requests:
                self._abandon(request)
            raise await explained(self._connection, self._caller.keys, error)
        return results

    # waiting for what no caller awaits

    async def quiet(self) -> None:
        """Waits until every request issued before has been answered, those of cancelled callers included, and compensated.
        What others issue meanwhile is not waited for: there may be no end of it."""
        under_way = self._under_way()
        while under_way:
            await self._next_progress()
            under_way &= self._under_way()
        await asyncio.sleep(0)  # callers that were answered just now may compensate
        await self.compensated()

    async def compensated(self) -> None:
        """Waits until the requests of cancelled callers have been answered and compensated."""
        for _ in range(2):
            due = set(self._unawaited)
            while due := {request for request in due if request.life not in (Life.OVER, Life.OVERDUE)}:
                await self._next_progress()
            await asyncio.sleep(0)

    async def _next_progress(self) -> None:
        self._progress.clear()
        await self._progress.wait()

    def _under_way(self) -> set[Request]:
        batches = [batch.requests for batch in self._unanswered.values()]
        groups = (*self._waiting.values(), *batches)
        return {request for some in groups for request in some if request.life is not Life.OVERDUE}

    def progressed(self) -> None:
        """A batch is over, or nothing waits for it any more."""
        if any(self._waiting.values()):
            self._send_soon()
        if self._unawaited:
            self._unawaited = {request for request in self._unawaited if request.life not in (Life.OVER, Life.OVERDUE)}
        self._progress.set()

    # sending

    def _send_soon(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._connection.fill_soon(self)

    def fill(self) -> None:
        """Sends what was issued."""
        self._is_due = False
        for script, waiting in self._waiting.items():
            while waiting and self._has_window() and not (script.creates and self._is_creating()):
                if requests := take_together(waiting):
                    self._send(script, requests)
        if not self._connection.is_ready and any(self._waiting.values()):
            now = asyncio.get_running_loop().time()
            for waiting in self._waiting.values():
                for request in waiting:
                    request.since = request.since or now
            self._connection.fill_when_ready(self)
        self._progress.set()

    def server_lost(self, reason: Exception) -> None:
        """The server was looked for in vain: requests that have been kept back for too long fail."""
        now, patience = asyncio.get_running_loop().time(), self._connection.config.retry_deadline
        for waiting in self._waiting.values():
            for request in list(waiting):
                if request.life is Life.OVERDUE or request.since is None or now - request.since < patience:
                    continue
                if request.life is Life.DETACHED:
                    request.life, request.since = Life.OVERDUE, None
                else:
                    waiting.remove(request)
                    request.reject(gave_up(now - request.since, reason, was_sent=False))
        self.progressed()

    def _has_window(self) -> bool:
        if not self._unanswered:
            return True
        # While the server takes nothing there is no use in queueing: what waits here can still be merged, or cancelled.
        oldest = next(iter(self._unanswered))
        return self.number + 1 - oldest < WINDOW and self._connection.is_ready

    def _is_creating(self) -> bool:
        """Whether a call under way is to make the network exist: others wait for it, so that all keep their order."""
        return not self.position.epoch and any(b.script.creates and b.since != math.inf for b in self._unanswered.values())

    def _send(self, script: Script, requests: list[Request]) -> None:
        self.number += 1
        if asyncio.get_running_loop().time() > self.name.old_at:
            self.name.renew()
        batch = _Batch(self, script, requests)
        try:
            batch.payload = self._caller.call(script, self._args(batch)) + self._wait
        except (TypeError, ValueError) as error:  # such as a key with a lone surrogate, which has no bytes
            self._split(batch, error)
            return
        self._unanswered[batch.number] = batch
        self._n_under_way += len(requests)
        self._connection.send(batch, requests[0].since)

    def _args(self, batch: _Batch) -> list[Word]:
        args: list[Word] = [str(batch.epoch), batch.client, batch.number]
        if batch.script.creates:
            args.append("" if batch.epoch else self.position.origin(self._token))
        for request in batch.requests:
            args += request.args
        return args

    def forget(self, batch: _Batch) -> None:
        """A batch is not under way any more."""
        if self._unanswered.pop(batch.number, None) is not None:
            self._n_under_way -= len(batch.requests)

    # answers

    def answered(self, batch: _Batch, reply: Any) -> None:
        """Deals a reply to the requests of its batch."""
        match reply:
            case hiredis.ReplyError():
                self._refused(batch, reply)
            case [b"EPOCH", epoch, wire]:
                self.forget(batch)
                self._epoch_refused(batch, epoch, wire)
            case [b"TOKEN", bytes() as token]:
                self.forget(batch)
                self._token = token
                self._waiting[batch.script].extendleft(reversed(batch.requests))
            case [b"GONE", at]:
                self.forget(batch)
                self._forgotten(batch, float(at))
            case [b"OLD"]:
                batch.failed(RushError("the server took a call for an old one: a defect of rush_async, please report it"))
            case [_, _, _, _, _, _, _, _, answer, *extra]:
                self.forget(batch)
                try:
                    self.position.take(position_of(reply), batch.asked_seq)
                except DecodeError as error:
                    logger.error("%s", error)
                deal(batch.requests, answer, extra)
            case _:
                batch.failed(DecodeError(f"the script {batch.script.name} answered {reply!r:.200}"))
        self.progressed()

    def _epoch_refused(self, batch: _Batch, epoch: bytes, wire: bytes) -> None:
        number = epoch_of(epoch, wire)
        if isinstance(number, int):
            self.position.hear_epoch(number, batch.asked_at)
        for request in batch.requests:
            if not isinstance(number, int):
                request.reject(number)
            elif not request.survives_reset:
                request.resolve(None)
            elif request.future.done():
                request.life = Life.OVER
            else:
                self.issue(request)

    def _forgotten(self, batch: _Batch, at: float) -> None:
        """The name of the client is so old that its answers may be gone: as after a long pause of this process."""
        if batch.client == self.name.text:
            self.name.renew(at)
        if batch.n_sent > 1:
            error = forgotten(self._connection.config.where, batch.script.name)
            logger.warning("%s", error)
            batch.failed(error)
            return
        for request in batch.requests:  # it was not executed
            self.issue(request)

    def acknowledged(self, batch: _Batch, n: Any) -> None:
        """Takes how many replicas have what was written up to this call. While there are too few, the call is repeated."""
        if isinstance(batch.reply, hiredis.ReplyError) or (isinstance(n, int) and n >= self.n_replicas):
            self.answered(batch, batch.reply)
            return
        now, config = asyncio.get_running_loop().time(), self._connection.config
        batch.wait_ends = batch.wait_ends or now + config.retry_deadline
        if isinstance(n, int) and now < batch.wait_ends:
            self._connection.check_soon()
            self._connection.send(batch)
            return
        error = unacknowledged(config.where, n, self.n_replicas, config.retry_deadline)
        if isinstance(n, hiredis.ReplyError):
            error = refusal(n, config.where)
        for request in batch.requests:
            request.reject(error)
        self.answered(batch, batch.reply)  # what it granted is compensated

    def _refused(self, batch: _Batch, error: hiredis.ReplyError) -> None:
        if str(error).startswith("NOSCRIPT"):  # not executed this time
            batch.payload = self._caller.call_by_source(batch.script, self._args(batch)) + self._wait
            batch.n_sent -= 1
            self._connection.send(batch)
        elif batch.n_sent > 1:
            # It may have been executed the first time. The server refused it before the script could look that up.
            self._connection.supervisor.start(self._recall, batch, error)
        else:
            self.forget(batch)
            self._split(batch, refusal(error, self._connection.config.where))

    async def _recall(self, batch: _Batch, error: hiredis.ReplyError) -> None:
        """Asks what became of a call that the server refuses to repeat, and withdraws it where it was not executed. The caller
        gets an error, whatever ends this."""
        try:
            await self._look_up(batch, error)
        except BaseException as reason:
            batch.failed(RushConnectionError(f"it is not known whether a call was executed: {reason!r}"))
            raise

    async def _look_up(self, batch: _Batch, error: hiredis.ReplyError) -> None:
        workers = [request.args[0] for request in batch.requests if request.script.name in ("pop", "pop_named")]
        args: list[Word] = [str(batch.epoch), batch.client, batch.number, *workers]
        try:
            # The answer can be read where nothing can be written, as on a full disk.
            for script in (scripts.RECALL, scripts.WITHDRAW):
                reply = await self._connection.ask_script(*self._caller.both(script, args))
                if scripts.is_executed(reply):
                    self.answered(batch, reply)
                    return
        except RushError as unknown:
            if batch.given_up(unknown):  # what it granted is compensated once it is answered, under its number
                await asyncio.sleep(_PAUSE)
                self._connection.send(batch, math.inf)
            return
        batch.n_sent = 1
        self.answered(batch, error)

    def _split(self, batch: _Batch, reason: Exception) -> None:
        """Of a call that failed as a whole nothing was done: alone, each of its requests fails only for itself."""
        if len(batch.requests) == 1:
            (request,) = batch.requests
            is_detached = request.life in (Life.DETACHED, Life.OVERDUE)
            if not (is_detached and isinstance(reason, RushError) and self._issue_later(request)):
                request.reject(reason)
            return
        for request in reversed(batch.requests):
            request.goes_alone = True
            self._waiting[batch.script].appendleft(request)

    def _issue_later(self, request: Request) -> bool:
        """Issues a detached request again that was refused, in a while; whether there is still hope."""
        loop, config = asyncio.get_running_loop(), self._connection.config
        request.since = request.since or loop.time()
        if loop.time() - request.since > config.retry_deadline:
            logger.error("%s refused a call for too long, and it is given up: %s", config.where, request.script.name)
            return False
        loop.call_later(_PAUSE, self.issue, request)
        return True
