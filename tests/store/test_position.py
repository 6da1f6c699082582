"""The position of a network: it never goes back unnoticed, and what depends on it is called after each change."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from rush_async import Counts, DecodeError, Rush, RushWorker, StopReason
from rush_async.store.codec import to_msgpack
from rush_async.store.position import NetworkPosition, Position, position_of, stop_of


class Changes:
    """Notes the counts at each change, and the generations."""

    def __init__(self, position: NetworkPosition) -> None:
        self.position = position
        self.counts: list[Counts] = []
        self.generations: list[tuple[int, int]] = []
        position.watchers.add(self)
        position.generation_watchers.add(self)

    def position_changed(self) -> None:
        self.counts.append(self.position.counts)

    def generation_changed(self) -> None:
        self.generations.append(self.position.generation)


def at(epoch: int, seq: int, n_workers: int = 0, **counts: int) -> Position:
    return Position(epoch, seq, Counts(**counts), n_workers)


STOP = StopReason("manual", datetime(2026, 2, 1, tzinfo=UTC), 12, "enough")


def stopped(epoch: int, seq: int, stop: StopReason | None = STOP) -> Position:
    return Position(epoch, seq, Counts(queued=1), 0, stop)


@pytest.fixture
def position() -> NetworkPosition:
    """A position in epoch 5 at event 10."""
    position = NetworkPosition("net")
    position.take(at(5, 10, queued=1))
    return position


def test_a_later_position_is_taken_and_an_earlier_one_ignored(position: NetworkPosition) -> None:
    position.take(at(5, 12, 3, queued=2))
    position.take(at(5, 11, 1, queued=7))
    position.take(at(4, 99, queued=7))
    assert (position.epoch, position.seq, position.counts, position.n_workers) == (5, 12, Counts(queued=2), 3)
    assert position.generation == (5, 0)


def test_a_later_epoch_begins_at_its_own_numbers(position: NetworkPosition) -> None:
    position.take(at(6, 2, running=1))
    assert (position.epoch, position.seq, position.counts) == (6, 2, Counts(running=1))
    assert position.highest_epoch == 6
    assert position.generation == (6, 0)


def test_watchers_are_called_when_counts_or_workers_changed(position: NetworkPosition) -> None:
    changes = Changes(position)
    position.take(at(5, 11, queued=1))  # an event that changes no counts
    assert changes.counts == []
    position.take(at(5, 12, queued=2))
    position.take(at(5, 13, 1, queued=2))
    assert changes.counts == [Counts(queued=2)] * 2
    assert changes.generations == []


def test_watchers_are_called_when_the_generation_changed(position: NetworkPosition) -> None:
    changes = Changes(position)
    position.learn_epoch(6)
    position.learn_epoch(6)
    position.begin_generation()
    assert changes.counts == [Counts()] * 2
    assert changes.generations == [(6, 0), (6, 1)]
    position.roll_back(at(6, 0))
    assert changes.generations[2:] == [position.generation] == [(6, 2)]


def test_a_reply_with_a_lower_number_than_when_it_was_asked_rolls_back(
    position: NetworkPosition, caplog: pytest.LogCaptureFixture
) -> None:
    changes = Changes(position)
    position.take(at(5, 7, 2, queued=4), asked_seq=10)
    assert (position.seq, position.counts, position.n_workers) == (7, Counts(queued=4), 2)
    assert position.generation == (5, 1)
    assert changes.counts == [Counts(queued=4)]
    assert "network 'net' went back" in caplog.text


def test_a_reply_that_an_event_overtook_does_not_roll_back(position: NetworkPosition) -> None:
    position.take(at(5, 20, queued=2))
    position.take(at(5, 15, queued=9), asked_seq=10)
    assert (position.seq, position.counts, position.generation) == (20, Counts(queued=2), (5, 0))


def test_replies_to_calls_that_left_before_a_rollback_do_not_roll_back_again(position: NetworkPosition) -> None:
    for seq in (7, 8, 8, 9):
        position.take(at(5, seq, queued=seq), asked_seq=10)
    position.take(at(5, 8), asked_seq=10)
    assert (position.seq, position.counts, position.n_rollbacks) == (9, Counts(queued=9), 1)


def test_a_reset_begins_the_next_epoch(position: NetworkPosition) -> None:
    position.take(at(5, 11, 2, queued=1))
    position.take_reset(6, keeps_workers=True)
    assert (position.epoch, position.seq, position.counts, position.n_workers) == (6, 0, Counts(), 2)
    position.take_reset(7, keeps_workers=False)
    assert (position.epoch, position.highest_epoch, position.n_workers) == (0, 7, 0)
    position.take_reset(7, keeps_workers=True)  # the same, heard on the other channel
    assert position.epoch == 0


def test_an_epoch_in_a_reply_counts_unless_an_event_overtook_it(position: NetworkPosition) -> None:
    position.hear_epoch(0, asked_at=5)
    assert position.epoch == 0
    position.learn_epoch(8)
    position.hear_epoch(0, asked_at=5)
    position.hear_epoch(5, asked_at=5)
    assert position.epoch == 8
    position.hear_epoch(3, asked_at=8)  # its server was restored from older data
    assert (position.epoch, position.highest_epoch) == (3, 8)
    position.hear_epoch(9, asked_at=5)
    assert position.epoch == 9


def test_a_stop_comes_with_a_position_and_leaves_with_a_later_one(position: NetworkPosition) -> None:
    changes = Changes(position)
    assert position.stop is None
    position.take(stopped(5, 12))
    assert position.stop == STOP
    position.take(stopped(5, 11, None))  # overtaken by an event
    position.take(stopped(5, 13))
    assert position.stop == STOP
    position.take(stopped(5, 14, None))
    assert position.stop is None
    assert len(changes.counts) == 2


def test_a_stop_that_came_alone_is_not_undone_by_positions_before_it(position: NetworkPosition) -> None:
    changes = Changes(position)
    position.take_stop(5, 12, STOP)
    assert (position.stop, position.seq) == (STOP, 10)
    position.take(stopped(5, 11, None))
    assert (position.stop, position.seq) == (STOP, 11)
    position.take_stop(5, 12, STOP)
    position.take_stop(5, 9, None)
    position.take_stop(4, 99, None)
    assert position.stop == STOP
    position.take_stop(5, 15, None)
    position.take(stopped(5, 14))  # a reply from before the resumption
    assert (position.stop, position.seq) == (None, 14)
    assert len(changes.counts) == 2


def test_a_stop_of_a_later_epoch_begins_it(position: NetworkPosition) -> None:
    position.take_stop(6, 3, STOP)
    assert (position.epoch, position.seq, position.stop) == (6, 0, STOP)
    position.learn_epoch(7)
    assert position.stop is None
    position.take_stop(6, 4, STOP)
    assert position.stop is None


def test_the_latest_position_is_that_of_the_heartbeat_where_the_event_loop_is_behind_it(position: NetworkPosition) -> None:
    assert position.latest == at(5, 10, queued=1)
    position.note(stopped(5, 13))
    assert position.latest == stopped(5, 13)
    assert position.counts == Counts(queued=1)
    position.take(at(5, 14, 2, finished=4))
    assert position.latest == at(5, 14, 2, finished=4)
    position.note(at(6, 2, queued=9))
    assert position.latest == at(6, 2, queued=9)
    position.take_reset(6, keeps_workers=False)  # the note was from before it
    assert position.latest == at(0, 0)


@pytest.mark.parametrize("keeps_workers", [False, True])
def test_a_reset_ends_the_stop_also_one_that_another_thread_noted(position: NetworkPosition, keeps_workers: bool) -> None:
    position.take(stopped(5, 12))
    position.note(stopped(5, 13))
    position.take_reset(6, keeps_workers=keeps_workers)
    assert position.stop is None
    position.note(stopped(5, 14))  # a late answer of the old epoch
    assert position.stop is None


def test_a_server_restored_from_older_data_undoes_the_stop_or_brings_it_back(position: NetworkPosition) -> None:
    position.take(stopped(5, 12))
    position.note(stopped(5, 13))
    position.take(stopped(5, 7, None), asked_seq=12)
    assert (position.stop, position.seq) == (None, 7)
    position.take(stopped(5, 8))
    position.take(stopped(5, 9, None))
    position.take(stopped(5, 8), asked_seq=9)
    assert (position.stop, position.seq) == (STOP, 8)


def test_what_the_heartbeat_thread_notes_is_seen_at_once_and_changes_nothing_else(position: NetworkPosition) -> None:
    changes = Changes(position)
    position.note(stopped(5, 12))
    assert (position.stop, position.seq) == (STOP, 10)
    assert changes.counts == []
    position.take(stopped(5, 11, None))
    assert position.stop == STOP
    position.take(stopped(5, 13, None))
    assert position.stop is None
    position.note(stopped(6, 1))  # the event loop has not heard of that epoch
    assert position.stop is None


def test_a_reply_carries_why_the_network_has_stopped() -> None:
    stop = to_msgpack(["manual", STOP.at.timestamp(), 12, "enough"])
    assert position_of([b"5", 13, 1, 0, 0, 0, 2, stop, b"answer"]) == Position(5, 13, Counts(queued=1), 2, STOP)
    assert position_of([b"5", 13, 1, 0, 0, 0, 2, None, b"answer"]).stop is None
    for bad in (b"", b"1", b"nonsense", to_msgpack(["manual", 0, 12]), to_msgpack(["other", 0, 12, ""]), 5):
        with pytest.raises(DecodeError, match="position is malformed"):
            position_of([b"5", 13, 1, 0, 0, 0, 2, bad])


@pytest.mark.parametrize(
    "fields", [None, [], ["manual", "0", 1, ""], ["manual", 1e300, 1, ""], ["finished", 1, 2.5, ""], "manual"]
)
def test_what_is_no_reason_of_a_stop_is_refused(fields: Any) -> None:
    with pytest.raises(ValueError, match="stop"):
        stop_of(fields)


async def test_a_server_that_went_back_in_time_is_noticed_by_a_reply(rush: Rush, rush_worker: RushWorker, raw: Any) -> None:
    network = rush._net  # pyright: ignore[reportPrivateUsage]
    await rush.push_tasks([{"x": 1}])
    seq = raw.hget(network.keys.meta, "seq")
    dump = {name: raw.dump(name) for name in raw.keys(f"rush:{{{rush.network_id}}}:*")}
    await rush.push_tasks([{"x": 2}] * 4)
    assert rush.n_queued_tasks == 5
    for name, value in dump.items():
        raw.restore(name, 0, value, replace=True)
    assert (await rush.counts()).queued == 1
    assert rush.n_queued_tasks == 1
    assert network.position.generation[1] == 1
    assert network.position.seq == int(seq)
    task = await asyncio.wait_for(rush_worker.pop_task(), 5)
    assert task is not None
    assert task.xs == {"x": 1}
    assert await asyncio.wait_for(rush_worker.pop_task(0.2), 5) is None


async def test_a_reset_is_no_step_back_in_time(rush: Rush, caplog: pytest.LogCaptureFixture) -> None:
    await rush.push_tasks([{"x": 1}] * 3)
    await rush.reset(workers=False)
    await rush.push_tasks([{"x": 1}])
    await rush.reset()
    assert rush.n_tasks == 0
    assert "went back" not in caplog.text
