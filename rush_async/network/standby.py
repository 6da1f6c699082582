"""The worker of an event loop that stands by: the next task that is pushed is handed to it, which saves a round trip.

Somebody stands by only where every worker of the loop waits for tasks and none holds any, so that it can begin at once. As soon
as one of them gets something to do, nobody stands by any more: what is handed to an event loop that computes would wait for it,
though workers elsewhere are free.

Each time is a *post* with a number, and one conversation with the server: *in*, perhaps repeated, and *out*, one question at a
time. It is over when the post was handed one task, or is certain to be handed none; only then the next one begins. So whatever
is late, said twice or lost on the way, belongs to one post, and every task to one.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections.abc import Collection
from functools import partial
from typing import Any, Literal, NamedTuple, cast

from rush_async.errors import DecodeError
from rush_async.network.local_workers import Residents
from rush_async.network.waiting import Line, end_wait
from rush_async.store.codec import decode
from rush_async.store.keys import NetworkKeys
from rush_async.store.tasks import Popped, Standing, TaskStore
from rush_async.wire.link import Link

__all__ = ["Standby"]

logger = logging.getLogger(__name__)

WORTH = 0.5  # seconds: a wait that ends sooner is not worth standing by, which takes two calls
_PATIENCE = 1.0  # seconds that a wait may last longer, where the server does not answer whether a task was handed over

Question = Literal["in", "out"]


class _Wait(NamedTuple):
    """Who waits, and until when."""

    worker_id: str
    until: float


class _Post:
    """One worker's standing by.

    Attributes:
        number: tells it from all others of this event loop.
        worker_id: who.
        wait: ends when it is handed a task.
        over: the task that it was handed; None when it is certain that there is none.
        asked: what the server has been asked and has not answered yet.
        is_known: whether the server may know of it.
        is_leaving: whether nobody is to stand here any more.
        is_stale: whether something was missed since the server was asked, so that it is to be asked again.
    """

    def __init__(self, number: int, worker_id: str, wait: asyncio.Future[bool]) -> None:
        self.number = number
        self.worker_id = worker_id
        self.wait = wait
        self.over: asyncio.Future[Popped | None] = asyncio.get_running_loop().create_future()
        self.asked: Question | None = None
        self.is_known = False
        self.is_leaving = False
        self.is_stale = False


class Standby:
    """Who stands by for an event loop in a network: one worker, or nobody.

    Args:
        link: the server.
        keys: the network's.
        tasks: its tasks.
        residents: the workers that live in this event loop.
        line: those of them that wait.
    """

    def __init__(self, link: Link, keys: NetworkKeys, tasks: TaskStore, residents: Residents, line: Line) -> None:
        self._link = link
        self._channel = f"{keys.standby}:{tasks.calls.client}"
        self._tasks = tasks
        self._residents = residents
        self._line = line
        self._numbers = itertools.count(1)
        self._post: _Post | None = None  # whose conversation is not over
        self._waiting: dict[asyncio.Future[bool], _Wait] = {}  # who may stand by, the longest first
        self._handed: dict[asyncio.Future[bool], Popped] = {}  # what they were handed, until they see it
        self._is_subscribed = self._is_confirmed = False

    # in the life of a worker

    async def turn(self, worker_id: str, timeout: float | None, waits: set[asyncio.Future[bool]]) -> tuple[bool, Popped | None]:
        """Waits in line, standing by where that is due, until it is the worker's turn to pop, or it was handed a task.

        Returns:
            As `Line.turn`, and the task.
        """
        wait: asyncio.Future[bool] | None = None

        def begin(future: asyncio.Future[bool]) -> None:
            nonlocal wait
            if timeout is None or timeout >= WORTH:
                wait = future
                until = math.inf if timeout is None else asyncio.get_running_loop().time() + timeout
                self._waiting[future] = _Wait(worker_id, until)
            self._offer()

        is_our_turn = False
        try:
            is_our_turn = await self._line.turn(timeout, waits, begin)
            if wait is None:
                return is_our_turn, None
            if (post := self._post_of(wait)) is not None:
                self._relieve(post)
                if not post.over.done():
                    await asyncio.wait([post.over], timeout=_PATIENCE)
            return is_our_turn, self._handed.pop(wait, None)
        except BaseException:
            if is_our_turn:
                self._line.done()
            raise
        finally:
            if wait is not None:
                self._abandon(wait)
            if self._post is not None:  # who waits again in this tick has not stopped waiting
                asyncio.get_running_loop().call_soon(self._check)

    def _check(self) -> None:
        if len(self._line) < len(self._residents):
            self.stand_down()

    def stand_down(self) -> None:
        """A worker of the event loop gets something to do: nobody stands by."""
        if self._post is not None:
            self._relieve(self._post)

    def renew(self) -> None:
        """What was said to this event loop may not have been heard, or the network was reset and goes on."""
        post = self._post
        if post is None or post.over.done() or post.is_leaving or not self._is_confirmed:
            return
        if post.asked is None:
            self._ask("in", post)
        else:
            post.is_stale = True

    async def retire(self, worker_id: str, waits: Collection[asyncio.Future[bool]]) -> None:
        """A worker with these waits leaves the network: what it was handed goes back. Returns when nothing can follow, or when
        the server does not answer; then the worker's good-bye gives it back."""
        for wait in list(waits):
            self._abandon(wait)
        if (post := self._post) is not None and post.worker_id == worker_id:
            self._relieve(post)
            if not post.over.done():
                await asyncio.wait([post.over], timeout=_PATIENCE)

    def close(self) -> None:
        """Listens no more."""
        self._is_subscribed = self._is_confirmed = False
        self._link.subscription.unsubscribe(self._channel)

    def _offer(self) -> None:
        """Where all workers of the event loop wait, the one that waits longest stands by."""
        if self._post is not None or len(self._line) < len(self._residents) or not self._residents.are_idle:
            return
        worth = asyncio.get_running_loop().time() + WORTH
        found = next((item for item in self._waiting.items() if item[1].until >= worth and not item[0].done()), None)
        if found is None:
            return
        wait, (worker_id, _) = found
        self._post = _Post(next(self._numbers), worker_id, wait)
        if not self._is_subscribed:
            self._is_subscribed = True
            self._link.subscription.subscribe(self._channel, self._hear, self._confirmed)
        elif self._is_confirmed:
            self._ask("in", self._post)

    def _post_of(self, wait: asyncio.Future[bool]) -> _Post | None:
        return self._post if self._post is not None and self._post.wait is wait else None

    def _abandon(self, wait: asyncio.Future[bool]) -> None:
        """Nobody waits any more: what was handed over and not seen goes back to the head of the queue."""
        waiting = self._waiting.pop(wait, None)
        if (popped := self._handed.pop(wait, None)) is not None and waiting is not None:
            self._tasks.put_back([popped], waiting.worker_id)
        if (post := self._post_of(wait)) is not None:
            self._relieve(post)

    # a post's conversation with the server

    def _relieve(self, post: _Post) -> None:
        if post.is_leaving or post.over.done():
            return
        post.is_leaving = True
        if not post.is_known:
            self._end(post, None)
        elif post.asked is None:
            self._ask("out", post)

    def _ask(self, what: Question, post: _Post) -> None:
        post.asked, post.is_known = what, True
        answer = self._tasks.stand_by(what, post.worker_id, post.number, partial(self._deliver, post))
        answer.add_done_callback(partial(self._answered, post))

    def _answered(self, post: _Post, answer: asyncio.Future[Standing]) -> None:
        if not answer.cancelled() and answer.exception() is None:
            self._take(post, answer.result())
        elif self._link.supervisor.is_open:
            # Whether it stands by is not known, and it may be handed something.
            self._link.supervisor.start(self._make_sure, post)
        else:
            self._end(post, None)

    async def _make_sure(self, post: _Post) -> None:
        post.asked, post.is_leaving = "out", True
        deliver = partial(self._deliver, post)
        self._take(
            post, await self._link.sooner_or_later(lambda: self._tasks.stand_by("out", post.worker_id, post.number, deliver))
        )

    def _take(self, post: _Post, standing: Standing) -> None:
        what, post.asked = post.asked, None
        if isinstance(standing, Popped):
            self._deliver(post, standing)
        elif what == "out":
            self._end(post, None)
            self._offer()
        elif standing and (post.is_leaving or post.over.done()):
            self._ask("out", post)  # it stands by, though it was relieved or heard of its task meanwhile
        elif not post.is_leaving and (standing is None or (standing and post.is_stale)):
            post.is_stale = False  # None: the network was reset before the server took the call
            self._ask("in", post)
        elif not standing:
            self._end(post, None)
        if self._post is post and post.over.done() and post.asked is None:
            self._post = None

    def _deliver(self, post: _Post, popped: Popped) -> None:
        """A post was handed a task, which is told by the channel, by an answer, or by both."""
        if not post.over.done():
            self._end(post, popped)
            if post.wait in self._waiting:
                self._handed[post.wait] = popped
                end_wait(post.wait)
                return
        elif _is_same(post.over.result(), popped):
            return
        self._tasks.put_back([popped], post.worker_id)

    def _end(self, post: _Post, popped: Popped | None) -> None:
        if not post.over.done():
            post.over.set_result(popped)
        if self._post is post and post.asked is None:
            self._post = None

    def _confirmed(self) -> None:
        """What was said on the channel before was not heard."""
        self._is_confirmed = True
        self.renew()

    def _hear(self, data: bytes) -> None:
        try:
            behind = 2 + int.from_bytes(data[:2])
            epoch, post_number, key = cast("list[Any]", decode(data[2:behind]))
            popped, told_in, number = Popped(str(key), data[behind:]), int(epoch), int(post_number)
        except (DecodeError, TypeError, ValueError) as error:
            logger.error("what was handed over on %s is malformed: %s", self._channel, error)
            return
        calls = self._tasks.calls
        if told_in > calls.highest_epoch:
            calls.learn_epoch(told_in)
        if told_in != calls.epoch:
            return
        # What is told of an earlier post is known, or has been cancelled since.
        if self._post is not None and self._post.number == number:
            self._deliver(self._post, popped)


def _is_same(known: Popped | None, popped: Popped) -> bool:
    return known is not None and known.key == popped.key
