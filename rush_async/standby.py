"""The worker of an event loop that stands by: the next task that is pushed is handed to it, which saves a round trip.

Somebody stands by only where every worker of the loop waits for tasks and none holds any, so that it can begin at once. As soon
as one of them gets something to do, nobody stands by any more: what is handed to an event loop that computes would wait for it,
though workers elsewhere are free.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Literal, cast

from rush_async.errors import DecodeError
from rush_async.residents import Residents
from rush_async.store.codec import decode
from rush_async.store.keys import NetworkKeys
from rush_async.store.link import Link
from rush_async.store.tasks import Popped, Standing, TaskStore
from rush_async.waiting import Line, end_wait

__all__ = ["Standby"]

logger = logging.getLogger(__name__)

WORTH = 0.5  # seconds: who waits shorter does not stand by, which takes two calls


class _Post:
    """One worker's standing by, for as long as it waits.

    Attributes:
        worker_id: who.
        wait: ends when it is handed a task.
        popped: that task.
        is_over: whether nobody waits here any more.
        is_asking: whether the server has been asked to let it stand by, and has not answered yet.
        is_stale: whether something was missed meanwhile, so that it is to be asked again.
        leaving: the server's answer that it stands by no more.
    """

    def __init__(self, worker_id: str, wait: asyncio.Future[bool]) -> None:
        self.worker_id = worker_id
        self.wait = wait
        self.popped: Popped | None = None
        self.is_over = False
        self.is_asking = False
        self.is_stale = False
        self.leaving: asyncio.Future[Standing] | None = None


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
        self._post: _Post | None = None
        self._posts: set[_Post] = set()  # that are not over
        self._told: dict[str, str] = {}  # worker -> the last task that it was handed
        self._is_subscribed = self._is_confirmed = False

    # in the life of a worker

    async def turn(self, worker_id: str, timeout: float | None, waits: set[asyncio.Future[bool]]) -> tuple[bool, Popped | None]:
        """Waits in line, standing by where that is due, until it is the worker's turn to pop, or it was handed a task.

        Returns:
            As `Line.turn`, and the task.
        """
        post: _Post | None = None

        def stand_by(wait: asyncio.Future[bool]) -> None:
            nonlocal post
            post = self._offer(worker_id, wait)

        is_worth_it = timeout is None or timeout >= WORTH
        try:
            is_our_turn = await self._line.turn(timeout, waits, stand_by if is_worth_it else None)
        except asyncio.CancelledError:
            if post is not None:
                self._abandon(post)
            raise
        if post is None:
            return is_our_turn, None
        try:
            return is_our_turn, await self._leave(post)
        except BaseException:
            if is_our_turn:
                self._line.done()
            raise

    def _offer(self, worker_id: str, wait: asyncio.Future[bool]) -> _Post | None:
        """A worker waits in line. Where it is the last one of the event loop to do so, it stands by."""
        if self._post is not None or len(self._line) < len(self._residents) or not self._residents.are_idle:
            return None
        post = self._post = _Post(worker_id, wait)
        self._posts.add(post)
        if not self._is_subscribed:
            self._is_subscribed = True
            self._link.subscription.subscribe(self._channel, self._hear, self._confirmed)
        elif self._is_confirmed:
            self._ask("in", post)
        return post

    def stand_down(self) -> None:
        """A worker of the event loop gets something to do: nobody stands by."""
        if self._post is not None:
            self._relieve(self._post)

    async def _leave(self, post: _Post) -> Popped | None:
        """A worker waits no more; what it was handed meanwhile, if anything."""
        self._relieve(post)
        if post.popped is None and post.leaving is not None:
            try:
                await asyncio.wait([post.leaving])
            except asyncio.CancelledError:
                self._abandon(post)
                raise
        popped = None if post.is_over else post.popped
        self._end(post)
        return popped

    def _abandon(self, post: _Post) -> None:
        """A worker's wait was cancelled: what it is handed goes back to the head of the queue."""
        self._relieve(post)
        if post.popped is not None and not post.is_over:
            self._tasks.put_back([post.popped], post.worker_id)
        self._end(post)

    def retire(self, worker_id: str) -> None:
        """A worker leaves the network."""
        for post in [post for post in self._posts if post.worker_id == worker_id]:
            self._abandon(post)
        self._told.pop(worker_id, None)
        if len(self._residents) <= 1 and self._is_subscribed:
            self._is_subscribed = self._is_confirmed = False
            self._link.subscription.unsubscribe(self._channel)

    def renew(self) -> None:
        """What was said to this event loop may not have been heard, or the network was reset and goes on."""
        post = self._post
        if post is None or not self._is_confirmed:
            return
        if post.is_asking:
            post.is_stale = True
        else:
            self._ask("again", post)

    # between us and the server

    def _relieve(self, post: _Post) -> None:
        """A post stands by no more."""
        if self._post is post:
            self._post = None
            if post.popped is None:
                post.leaving = self._ask("out", post)

    def _end(self, post: _Post) -> None:
        post.is_over = True
        self._posts.discard(post)

    def _ask(self, what: Literal["in", "again", "out"], post: _Post) -> asyncio.Future[Standing]:
        post.is_asking = what != "out"
        future = self._tasks.stand_by(what, post.worker_id)
        future.add_done_callback(lambda future: self._answered(what, post, future))
        return future

    def _answered(self, what: str, post: _Post, future: asyncio.Future[Standing]) -> None:
        if what != "out":
            post.is_asking = False
        if future.cancelled() or future.exception() is not None:
            # Whether it stands by is not known, and it may be handed something.
            if self._post is post:
                self._post = None
            if self._link.supervisor.is_open:
                self._link.supervisor.start(self._make_sure, post)
            return
        standing = future.result()
        if isinstance(standing, Popped):
            self._deliver(post, standing)
        elif self._post is post and what != "out":
            if standing is None or post.is_stale:  # None: the network was reset before the server took the call
                post.is_stale = False
                self._ask("again", post)
            elif not standing:
                self._post = None

    async def _make_sure(self, post: _Post) -> None:
        standing = await self._link.sooner_or_later(lambda: self._tasks.stand_by("out", post.worker_id))
        if isinstance(standing, Popped):
            self._deliver(post, standing)

    def _deliver(self, post: _Post, popped: Popped) -> None:
        if self._told.get(post.worker_id) == popped.key:
            return  # once by the channel and once by an answer
        self._told[post.worker_id] = popped.key
        if self._post is post:
            self._post = None
        if post.is_over or post.popped is not None:
            self._tasks.put_back([popped], post.worker_id)
        else:
            post.popped = popped
            end_wait(post.wait)

    def _confirmed(self) -> None:
        """What was said on the channel before was not heard."""
        self._is_confirmed = True
        self.renew()

    def _hear(self, data: bytes) -> None:
        try:
            behind = 2 + int.from_bytes(data[:2])
            epoch, worker_id, key = cast("list[str]", decode(data[2:behind]))
            popped = Popped(key, data[behind:])
        except (DecodeError, TypeError, ValueError) as error:
            logger.error("what was handed over on %s is malformed: %s", self._channel, error)
            return
        if int(epoch) != self._tasks.calls.epoch or self._told.get(worker_id) == key:
            return
        if self._post is not None and self._post.worker_id == worker_id:
            self._deliver(self._post, popped)
        elif not any(post.worker_id == worker_id for post in self._posts):
            self._told[worker_id] = popped.key
            self._tasks.put_back([popped], worker_id)
        # else it is leaving its post, and the answer to that says the same
