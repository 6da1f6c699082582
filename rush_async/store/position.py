"""The position of a network: replies, events and heartbeats update it, and watchers are called after each change.

The epoch and the sequence number order everything that clients learn, as those of an idempotent producer do (Kafka KIP-98).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol, cast, get_args

from rush_async.errors import DecodeError
from rush_async.model import Counts, StopReason, StopRule
from rush_async.store.codec import decode

__all__ = ["GenerationWatcher", "NetworkPosition", "Position", "Watcher", "number_of", "position_of", "stop_of"]

logger = logging.getLogger(__name__)


class Position(NamedTuple):
    """The position of a network when a reply or an event left the server."""

    epoch: int
    seq: int
    counts: Counts
    n_workers: int
    stop: StopReason | None = None


class Watcher(Protocol):
    """Depends on the position."""

    def position_changed(self) -> None:
        """Is called after the counts, the number of workers, the stop or the generation changed; returns soon."""


class GenerationWatcher(Protocol):
    """Depends on the generation."""

    def generation_changed(self) -> None:
        """Is called after the generation changed; returns soon."""


class NetworkPosition:
    """The latest position that one event loop knows of a network.

    Attributes:
        epoch: rises with every reset; 0 while nothing of the network exists.
        highest_epoch: the highest epoch ever seen here.
        seq: the number of the last event.
        counts: how many tasks are in each state.
        n_workers: how many workers are running.
        seed: that which a client of this event loop gave for its proposals; it outlives a reset.
        stored_seed: that which the network has, as it was read last.
        n_rollbacks: how often the server turned out to have lost what happened last.
        watchers: called after each change.
        generation_watchers: called after each change of the generation, before the watchers.
    """

    def __init__(self, network_id: str) -> None:
        self.epoch: int = 0
        self.highest_epoch: int = 0
        self.seq = 0
        self.counts = Counts()
        self.n_workers = 0
        self.seed: int | None = None
        self.stored_seed: int | None = None
        self.n_rollbacks = 0
        self.watchers: set[Watcher] = set()
        self.generation_watchers: set[GenerationWatcher] = set()
        self._network_id = network_id
        self._stop: StopReason | None = None
        self._stop_seq = 0  # up to which `_stop` is known
        self._noted: Position | None = None

    @property
    def generation(self) -> tuple[int, int]:
        """Changes whenever tasks that had finished may be gone: after a reset, and after the server lost what happened last."""
        return self.epoch, self.n_rollbacks

    @property
    def creation_seed(self) -> int | None:
        """The seed that the network gets if a call of this client creates it: the given one, else the one it had before."""
        return self.stored_seed if self.seed is None else self.seed

    def origin(self, token: bytes) -> bytes:
        """Returns what a call sends that may create the network."""
        seed = self.creation_seed
        return b"%d %b %b" % (self.highest_epoch, b"" if seed is None else b"%d" % seed, token)

    @property
    def latest_counts(self) -> Counts:
        """The counts of the latest position."""
        noted = self._noted
        if noted is None or (noted.seq <= self.seq and noted.epoch == self.epoch):  # as nearly always
            return self.counts
        return self.latest.counts

    @property
    def latest(self) -> Position:
        """The latest position, also where the event loop is blocked and only the heartbeat thread knows it."""
        noted = self._noted
        if noted is not None:
            if noted.epoch > self.highest_epoch:
                return noted
            if noted.epoch == self.epoch and noted.seq > self.seq:
                return noted._replace(stop=self.stop)
        return Position(self.epoch, self.seq, self.counts, self.n_workers, self.stop)

    @property
    def stop(self) -> StopReason | None:
        """Why the network has stopped; None while it has not. It may turn back: after a resumption, a reset or a rollback."""
        noted = self._noted
        if noted is not None and noted.epoch == self.epoch and noted.seq > self._stop_seq:
            return noted.stop
        return self._stop

    def note(self, position: Position) -> None:
        """Notes the position for an event loop that is blocked. May be called in any thread."""
        self._noted = position

    def take_stop(self, epoch: int, seq: int, stop: StopReason | None) -> None:
        """Takes a stop, or for None a resumption, which is the event `seq`."""
        if epoch > self.highest_epoch:
            self.learn_epoch(epoch)
        if epoch == self.epoch and seq >= self._stop_seq:
            is_new = stop != self._stop
            self._stop, self._stop_seq = stop, seq
            if is_new:
                self._notify()

    def take(self, position: Position, asked_seq: int | None = None) -> None:
        """Takes a position that a reply, an event or a heartbeat carries. One that is older than what is known is ignored.

        Args:
            position: the position.
            asked_seq: for the reply to a call: `seq` as it was when the call left, in the epoch that the call named. A server
                that answers with a lower one went back in time.
        """
        if position.epoch > self.highest_epoch:
            self.learn_epoch(position.epoch)
        if position.epoch != self.epoch:
            return
        if position.seq >= self.seq:
            is_new = position.counts != self.counts or position.n_workers != self.n_workers
            if position.seq >= self._stop_seq:
                is_new |= position.stop != self._stop
                self._stop, self._stop_seq = position.stop, position.seq
            self.seq, self.counts, self.n_workers = position.seq, position.counts, position.n_workers
            if is_new:
                self._notify()
        # A call that left before a rollback that is known already has a higher number than is known now.
        elif asked_seq is not None and position.seq < asked_seq <= self.seq:
            self.roll_back(position)

    def hear_epoch(self, epoch: int, asked_at: int) -> None:
        """Takes the epoch of a reply to a question that left when `asked_at` was the highest epoch known.

        If no event overtook the reply on the other connection, the network is in that epoch, even when it is a lower one: its
        server was restored from older data. Otherwise a lower epoch, or 0, is out of date.
        """
        if asked_at == self.highest_epoch:
            if 0 < epoch < self.epoch:
                self._note_loss(f"went back from epoch {self.epoch} to {epoch}")
            self._begin(epoch)
        elif epoch:
            self.learn_epoch(epoch)

    def learn_epoch(self, epoch: int) -> None:
        """Takes a new epoch: the network was reset, or came into being. 0: nothing of it exists."""
        if epoch == 0 or epoch >= self.highest_epoch:
            self._begin(epoch)

    def take_reset(self, epoch: int, *, keeps_workers: bool) -> None:
        """Takes a reset: the next epoch begins, in which the workers live on, or nothing of the network exists any more."""
        if epoch > self.highest_epoch:
            self.learn_epoch(epoch)
            if not keeps_workers:
                self.learn_epoch(0)

    def roll_back(self, position: Position) -> None:
        """Takes an earlier position of the same epoch: the server was restored from older data."""
        self._note_loss(f"went back from event {self.seq} to {position.seq}")
        self.seq = self._stop_seq = position.seq
        self._stop, self._noted = position.stop, None
        self.counts = position.counts
        self.n_workers = position.n_workers
        self._notify_of_generation()

    def _note_loss(self, how: str) -> None:
        self.n_rollbacks += 1
        logger.warning(
            "network %r %s: its server was restored from older data, and has lost what happened last", self._network_id, how
        )

    def begin_generation(self) -> None:
        """Takes note that finished tasks are not those that were read before: the server has lost some."""
        self.n_rollbacks += 1
        self._notify_of_generation()

    def _begin(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch = epoch
            self.highest_epoch = max(self.highest_epoch, epoch)
            self.seq = self._stop_seq = 0
            self._stop = self._noted = None
            self.counts = Counts()
            if epoch == 0:
                self.n_workers = 0
            self._notify_of_generation()

    def _notify_of_generation(self) -> None:
        for watcher in tuple(self.generation_watchers):
            watcher.generation_changed()
        self._notify()

    def _notify(self) -> None:
        for watcher in tuple(self.watchers):
            watcher.position_changed()


def position_of(reply: Sequence[Any]) -> Position:
    """Returns the position of the network from the reply of a script.

    Raises:
        DecodeError: the reply is malformed, because another program wrote keys of the network.
    """
    epoch, seq, queued, running, finished, failed, n_workers, stop = reply[:8]
    try:
        reason = None if stop is None else stop_of(decode(stop))
        counts = Counts(int(queued), int(running), int(finished), int(failed))
        return Position(int(epoch), int(seq), counts, int(n_workers), reason)
    except (TypeError, ValueError) as error:
        raise DecodeError(f"the network's position is malformed: {reply[:8]!r:.200}") from error


def number_of(field: str, value: bytes | None) -> int:
    """Returns a field of the hash `meta`; 0 for one that is not there.

    Raises:
        DecodeError: it is no whole number, because another program wrote it.
    """
    try:
        return 0 if value is None else int(value)
    except ValueError as error:
        raise DecodeError(f"the field {field} of the network's meta is no whole number: {value!r:.100}") from error


def stop_of(fields: Any) -> StopReason:
    """Returns the reason of a stop from its four fields.

    Raises:
        ValueError: they are malformed.
    """
    match fields:
        case [str(rule), int() | float() as at, int(seq), str(detail)] if rule in get_args(StopRule):
            try:
                return StopReason(cast("StopRule", rule), datetime.fromtimestamp(at, UTC), seq, detail)
            except (OverflowError, OSError) as error:
                raise ValueError(f"a stop at the time {at}") from error
        case _:
            raise ValueError(f"no reason of a stop: {fields!r:.200}")
