"""Numbered calls: every change of a network is sent with a number and its answer kept by the server, so that it may be sent
again whatever happened to the reply. Calls of one kind that are issued in one tick of the loop go as one, a group each."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import hiredis

from rush_async.errors import RushConnectionError, RushError
from rush_async.model import Counts
from rush_async.store.keys import client_id
from rush_async.store.scripts import WIRE_VERSION, Script, ScriptCaller
from rush_async.wire.connection import Connection, gave_up
from rush_async.wire.refusals import refusal
from rush_async.wire.transport import Command, Word, pack

__all__ = ["Answer", "Calls", "Group", "Position"]

logger = logging.getLogger(__name__)

WINDOW = 64  # calls of a client that may be unanswered; the scripts keep as many answers
MOST_TASKS = 1_000
MOST_BYTES = 1024 * 1024
MOST_BYTES_MERGED = 16 * 1024
REPLICAS_IN = 1_000  # milliseconds in which replicas are to acknowledge a call, before it is sent again
_PAUSE = 0.5  # seconds until a call that must arrive is made again where it was refused
ENOUGH = 16  # groups that are worth a call before the tick is over


class Position(NamedTuple):
    """Where a network stood when a reply or an event left the server."""

    epoch: int
    seq: int
    counts: Counts
    n_workers: int


class Answer(NamedTuple):
    """What a script answered beside the position."""

    text: bytes
    extra: list[Any]


class Group:
    """One caller's part of a call.

    Args:
        script: what is called.
        args: this group's arguments.
        n_tasks: how many tasks it moves at the most.
        size: how many bytes its arguments take, about; counted by default.
        survives_reset: whether the call is issued again when the network was reset before it was executed; if not, it
            resolves to `None`, which means that nothing moved.
        give_back: what to do with the result when the caller was cancelled meanwhile.
    """

    __slots__ = (
        *("args", "future", "give_back", "goes_alone", "is_late", "must_arrive", "n_tasks"),
        *("orphans", "script", "since", "size", "survives_reset"),
    )

    def __init__(
        self,
        script: Script,
        args: Sequence[Word],
        *,
        n_tasks: int = 1,
        size: int | None = None,
        survives_reset: bool = True,
        give_back: Callable[[Any], None] | None = None,
    ) -> None:
        self.script = script
        self.args = args
        self.n_tasks = n_tasks
        self.size = sum([len(arg) for arg in args if not isinstance(arg, int)]) if size is None else size
        self.survives_reset = survives_reset
        self.give_back = give_back
        self.goes_alone = False
        self.must_arrive = False  # nobody would say it again
        self.is_late = False  # must arrive, and nobody waits for it any longer
        self.since: float | None = None  # since when it has been kept back, because the server takes nothing
        self.orphans: set[Group] | None = None  # of the calls it was issued by, until it is over
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def abandon(self) -> None:
        """Nobody wants the answer any more: what it grants is given back, now or when it comes."""
        future = self.future
        if not future.done():
            future.cancel()
        elif not future.cancelled() and future.exception() is None:  # it came in the very tick of the cancellation
            self._return(future.result())
        if self.orphans is not None:
            self.orphans.add(self)
            self.must_arrive = self.script.ends

    def be_late(self) -> None:
        """It is still to arrive, and nobody waits for that any longer."""
        self.is_late, self.since = True, None
        self.end()

    def end(self) -> None:
        """Nothing more will come of it that anybody waits for."""
        orphans, self.orphans = self.orphans, None
        if orphans:
            orphans.discard(self)

    def _return(self, value: Any) -> None:
        give_back, self.give_back = self.give_back, None
        if give_back is not None and value is not None:
            give_back(value)

    def resolve(self, value: Any) -> None:
        self.end()
        if not self.future.done():
            self.future.set_result(value)
        elif self.future.cancelled() or self.future.exception() is not None:  # nobody wants it any more
            self._return(value)

    def reject(self, error: Exception) -> None:
        self.end()
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()  # whoever waits sees it; nobody may be waiting any more


class _Call(Command):
    """A numbered call under way; where replicas are to acknowledge it, with a second reply that tells how many did."""

    __slots__ = ("asked_at", "calls", "groups", "number", "patience_ends", "reply", "script")

    def __init__(self, calls: Calls, script: Script, groups: list[Group], number: int) -> None:
        super().__init__(b"", 2 if calls.n_replicas else 1)
        self.reply: Any = None
        self.patience_ends: float | None = None
        self.calls = calls
        self.script = script
        self.groups = groups
        self.number = number
        self.asked_at = calls.highest_epoch

    def passed(self, reply: Any) -> None:
        self.reply = reply

    def answered(self, reply: Any) -> None:
        if self.n_replies == 1:
            self.calls.answered(self, reply)
        else:
            self.calls.acknowledged(self, reply)

    def failed(self, error: Exception) -> None:
        self.calls.forget(self)
        for group in self.groups:
            group.reject(error)

    def given_up(self, error: Exception) -> bool:
        # What the server may have granted already is given back once it answers again.
        if self.was_sent and any(group.give_back is not None or group.must_arrive for group in self.groups):
            for group in self.groups:
                group.be_late() if group.must_arrive else group.reject(error)
            self.calls.go_on()
            return True
        self.calls.forget(self)
        for group in self.groups:
            if group.must_arrive:
                group.be_late()
                self.calls.issue(group)
            else:
                group.reject(error)
        return False


class Calls:
    """Numbers, merges and sends the calls of one process on one network.

    Args:
        connection: the connection they go through.
        caller: writes the calls.
        split: for each script how its answer to several groups is dealt to them.
        on_position: told where the network stands, by every reply and event of the present epoch.
        on_epoch: told when another epoch began, before any position of it.
    """

    def __init__(
        self,
        connection: Connection,
        caller: ScriptCaller,
        split: dict[Script, Callable[[Answer, list[Group]], list[Any]]],
        on_position: Callable[[Position], None],
        on_epoch: Callable[[int], None],
    ) -> None:
        self.epoch: int = 0
        self.highest_epoch = 0
        self.client = client_id()
        self.n_replicas = connection.config.wait_replicas
        self._wait = pack(("WAIT", self.n_replicas, REPLICAS_IN)) if self.n_replicas else b""
        self._connection = connection
        self._caller = caller
        self._split = split
        self._on_position = on_position
        self._on_epoch = on_epoch
        self._number = 0
        self._unanswered: dict[int, _Call] = {}
        self._n_under_way = 0  # groups in them
        self._waiting: dict[Script, deque[Group]] = {}
        self._is_due = False
        self._progress = asyncio.Event()
        self._orphans: set[Group] = set()

    def issue(self, group: Group) -> Group:
        """Takes a group; it leaves at the end of this tick at the latest, merged with what else is issued until then.

        A call that has gathered as much as the server still has to do for us leaves at once, so that the server works on it
        while this process goes on: both are busy, where they would take turns.
        """
        group.orphans = self._orphans
        waiting = self._waiting.get(group.script)
        if waiting is None:
            waiting = self._waiting[group.script] = deque()
        waiting.append(group)
        if not self._is_due:
            self._send_soon()
        if ENOUGH <= len(waiting) >= self._n_under_way and group.script.merges and self._connection.is_ready:
            self._connection.flush()
        return group

    def give_back(self, group: Group) -> None:
        """Issues a group whose answer nobody awaits, and which arrives in the end, however long the server is away."""
        group.must_arrive = True
        self._orphans.add(group)
        self.issue(group)

    async def call(self, group: Group) -> Any:
        """Issues a group and waits for its answer. Cancelled, it leaks nothing: what the answer grants is given back."""
        self.issue(group)
        try:
            return await group.future
        except asyncio.CancelledError:
            group.abandon()
            raise

    async def call_all(self, groups: Sequence[Group]) -> list[Any]:
        """Issues groups together and waits for all. When one fails or the caller is cancelled, all are abandoned."""
        if len(groups) == 1:
            return [await self.call(groups[0])]
        for group in groups:
            self.issue(group)
        error: Exception | None = None
        results: list[Any] = []
        try:
            for group in groups:
                try:
                    results.append(await group.future)
                except Exception as reason:
                    error = error or reason
        except BaseException:
            for group in groups:
                group.abandon()
            raise
        if error is not None:
            for group in groups:
                group.abandon()
            raise error
        return results

    async def quiet(self) -> None:
        """Waits until every call issued before this one has been answered, those of cancelled callers included, and what
        was given back then too. What others issue meanwhile is not waited for: there may be no end of it."""
        await self._until_over(self._under_way)
        await self.settled()

    async def settled(self) -> None:
        """Waits until the calls of cancelled callers have been answered, and what they were granted was given back."""
        for _ in range(2):
            await self._until_over(self._orphans.copy)

    async def _until_over(self, under_way: Callable[[], set[Group]]) -> None:
        due = under_way()
        while due:
            self._progress.clear()
            await self._progress.wait()
            due &= under_way()
        await asyncio.sleep(0)  # who was answered just now may give back what it was granted

    def _under_way(self) -> set[Group]:
        calls = [call.groups for call in self._unanswered.values()]
        return {group for groups in (*self._waiting.values(), *calls) for group in groups if not group.is_late}

    def _send_soon(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._connection.fill_at_tick_end(self._fill)

    def _fill(self) -> None:
        self._is_due = False
        for script, waiting in self._waiting.items():
            while waiting and self._has_window():
                if groups := _take_together(waiting):
                    self._send(script, groups)
        if not self._connection.is_ready and any(self._waiting.values()):
            now = asyncio.get_running_loop().time()
            for waiting in self._waiting.values():
                for group in waiting:
                    group.since = group.since or now
            self._connection.fill_when_ready(self._fill, self._fail_overdue)
        self._progress.set()

    def _fail_overdue(self, reason: Exception) -> None:
        """The server was looked for in vain: groups that have been kept back for too long fail."""
        now, patience = asyncio.get_running_loop().time(), self._connection.config.retry_deadline
        for waiting in self._waiting.values():
            for group in list(waiting):
                if not group.is_late and group.since is not None and now - group.since >= patience:
                    if group.must_arrive:
                        group.be_late()
                    else:
                        waiting.remove(group)
                        group.reject(gave_up(now - group.since, reason, was_sent=False))
        self._progress.set()

    def _has_window(self) -> bool:
        if not self._unanswered:
            return True
        # While the server takes nothing there is no use in queueing: what waits here can still be merged, or cancelled.
        oldest = next(iter(self._unanswered))
        return self._number + 1 - oldest < WINDOW and self._connection.is_ready

    def _send(self, script: Script, groups: list[Group]) -> None:
        self._number += 1
        call = _Call(self, script, groups, self._number)
        try:
            call.payload = self._caller.call(script, self._args(call)) + self._wait
        except (TypeError, ValueError) as error:  # such as a key with a lone surrogate, which has no bytes
            self._part(call, error)
            return
        self._unanswered[call.number] = call
        self._n_under_way += len(groups)
        self._connection.send(call, groups[0].since)

    def _args(self, call: _Call) -> list[Word]:
        args: list[Word] = [str(self.epoch), self.client, call.number]
        if call.script.founds:
            args.append(str(self.highest_epoch))
        for group in call.groups:
            args += group.args
        return args

    def forget(self, call: _Call) -> None:
        if self._unanswered.pop(call.number, None) is not None:
            self._n_under_way -= len(call.groups)
        self.go_on()

    def go_on(self) -> None:
        """A call is over, or given up: nobody waits for it any more."""
        if any(self._waiting.values()):
            self._send_soon()
        self._progress.set()

    def answered(self, call: _Call, reply: Any) -> None:
        """Deals a reply to the groups of its call."""
        if isinstance(reply, hiredis.ReplyError):
            self._refused(call, reply)
            return
        match reply:
            case [b"EPOCH", epoch, wire]:
                self.forget(call)
                if (error := wire_mismatch(int(wire))) is not None:
                    for group in call.groups:
                        group.reject(error)
                    return
                self.hear_epoch(int(epoch), call.asked_at)
                self._issue_again(call)
            case [b"OLD"]:
                self.forget(call)
                error = RushError("the server took a call for an old one; this is a defect of rush_async, please report it")
                for group in call.groups:
                    group.reject(error)
            case [epoch, seq, queued, running, finished, failed, n_workers, text, *extra]:
                self.forget(call)
                self.take_position(Position(int(epoch), seq, Counts(queued, running, finished, failed), n_workers))
                answer = Answer(text, extra)
                values = self._split.get(call.script, _alone)(answer, call.groups)
                for group, value in zip(call.groups, values, strict=True):
                    group.resolve(value)
            case _:
                self.forget(call)
                for group in call.groups:
                    group.reject(RushError(f"the script {call.script.name} answered {reply!r:.200}"))

    def acknowledged(self, call: _Call, n: Any) -> None:
        """Takes how many replicas have what was written up to this call. While there are too few, the call is repeated."""
        if isinstance(call.reply, hiredis.ReplyError) or (isinstance(n, int) and n >= self.n_replicas):
            self.answered(call, call.reply)
            return
        now = asyncio.get_running_loop().time()
        call.patience_ends = call.patience_ends or now + self._connection.config.retry_deadline
        if isinstance(n, int) and now < call.patience_ends:
            self._connection.send(call)
            return
        config = self._connection.config
        if isinstance(n, hiredis.ReplyError):
            error = refusal(n, config)
        else:
            error = RushConnectionError(
                f"{config.where} executed a call that {n} of {self.n_replicas} replicas have acknowledged within "
                f"{config.retry_deadline:g} s: see after the replicas, or lower RushConfig(wait_replicas=...)"
            )
        for group in call.groups:
            group.reject(error)
        self.answered(call, call.reply)  # what it granted is given back

    def _refused(self, call: _Call, error: hiredis.ReplyError) -> None:
        if str(error).startswith("NOSCRIPT"):
            call.payload = self._caller.call_by_source(call.script, self._args(call)) + self._wait
            self._connection.send(call)
            return
        self.forget(call)
        self._part(call, refusal(error, self._connection.config))
        self._send_soon()

    def _part(self, call: _Call, reason: Exception) -> None:
        """Of a call that failed as a whole nothing was done: alone, each of its groups fails only for itself."""
        if len(call.groups) == 1:
            (group,) = call.groups
            if not (group.must_arrive and isinstance(reason, RushError) and self._insist(group)):
                group.reject(reason)
            return
        for group in reversed(call.groups):
            group.goes_alone = True
            self._waiting[call.script].appendleft(group)

    def _insist(self, group: Group) -> bool:
        """Issues a group again that must arrive and was refused, in a while; whether there is still hope."""
        loop = asyncio.get_running_loop()
        if group.since is None:
            group.since = loop.time()
        if loop.time() - group.since > self._connection.config.retry_deadline:
            logger.error(
                "%s refused a call for too long, and it is given up: %s", self._connection.config.where, group.script.name
            )
            return False
        loop.call_later(_PAUSE, self.issue, group)
        return True

    def _issue_again(self, call: _Call) -> None:
        for group in call.groups:
            if group.survives_reset:
                if group.future.done():
                    group.end()
                else:
                    self.issue(group)
            else:
                group.resolve(None)

    def take_position(self, position: Position) -> None:
        """Takes what a reply or an event says of where the network stands; what lags behind is ignored."""
        if position.epoch > self.highest_epoch:
            self.learn_epoch(position.epoch)
        if position.epoch == self.epoch:
            self._on_position(position)

    def slots(self) -> list[str]:
        """Where the server keeps the answers to this client's last calls."""
        first = max(1, self._number - WINDOW + 1)
        return [f"{self.client}:{number % WINDOW}" for number in range(first, self._number + 1)]

    def hear_epoch(self, epoch: int, asked_at: int) -> None:
        """Takes an epoch that a reply tells, asked for when `asked_at` was the highest one known.

        If nothing overtook the reply on the other connection, the network stands where it says, even when that lies further
        back: its server was restored from older data. Otherwise an earlier epoch, or none, is old news.
        """
        if asked_at == self.highest_epoch:
            self._begin(epoch)
        elif epoch:
            self.learn_epoch(epoch)

    def learn_epoch(self, epoch: int) -> None:
        """Takes note that the network is in another epoch: it was reset, or came into being. 0: nothing of it exists."""
        if epoch == 0 or epoch >= self.highest_epoch:
            self._begin(epoch)

    def _begin(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch = epoch
            self.highest_epoch = max(self.highest_epoch, epoch)
            self._on_epoch(epoch)


def wire_mismatch(wire: int) -> RushError | None:
    """The error for a network that a newer library wrote, else None."""
    if wire <= WIRE_VERSION:
        return None
    return RushError(
        f"this network is written in wire version {wire} and this library knows {WIRE_VERSION}: upgrade rush_async here"
    )


def _alone(answer: Answer, groups: list[Group]) -> list[Any]:
    return [answer.text]


def _take_together(waiting: deque[Group]) -> list[Group]:
    """The next groups that may go as one call; groups whose callers have gone are dropped, nothing of theirs was done."""
    groups: list[Group] = []
    tasks = size = 0
    while waiting:
        group = waiting[0]
        if group.future.done() and not group.script.ends:
            waiting.popleft()
            group.end()
            continue
        is_too_much = tasks + group.n_tasks > MOST_TASKS or size + group.size > MOST_BYTES
        goes_alone = group.goes_alone or not group.script.merges or group.size > MOST_BYTES_MERGED
        if groups and (is_too_much or goes_alone):
            break
        groups.append(waiting.popleft())
        tasks += group.n_tasks
        size += group.size
        if goes_alone:
            break
    return groups
