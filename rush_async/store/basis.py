"""The basis of a proposal: whose it is, and which tasks it saw. It is stored with the task, so that it can be repeated."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, cast

from rush_async.errors import DecodeError
from rush_async.model import TASK_STATES, TaskState
from rush_async.store.codec import decode, to_msgpack

__all__ = ["Basis", "Seen"]


class Seen(NamedTuple):
    """The tasks of one state that a proposal saw.

    Attributes:
        state: the state.
        n: how many there were; of finished tasks, the first ones.
        indices: their indices, in the order in which the proposal saw them; empty for finished tasks.
    """

    state: TaskState
    n: int
    indices: tuple[int, ...] = ()


class Basis(NamedTuple):
    """What a proposal was based on.

    Attributes:
        worker: the number of its worker.
        round: which of the worker's proposals it was, from 0 on.
        redraw: how many points under the same index were refused before, as the network had them.
        seen: what it saw of each state that it read.
    """

    worker: int
    round: int
    redraw: int = 0
    seen: tuple[Seen, ...] = ()

    def encode(self) -> bytes:
        """Encodes the basis. Indices are stored as differences, mostly a byte each."""
        states = [
            [TASK_STATES.index(state), n, *[after - before for before, after in pairwise((0, *indices))]]
            for state, n, indices in self.seen
        ]
        return to_msgpack([self.worker, self.round, self.redraw, *states])

    @classmethod
    def decode(cls, packed: bytes) -> Basis:
        """Decodes a basis.

        Raises:
            DecodeError: it is malformed.
        """
        match decode(packed):
            case [int(worker), int(number), int(redraw), *states]:
                return cls(worker, number, redraw, tuple([_seen(state, packed) for state in states]))
            case _:
                raise _malformed(packed)


def _seen(entry: Any, packed: bytes) -> Seen:
    match entry:
        case [int(code), int(n), *steps] if 0 <= code < len(TASK_STATES) and {type(step) for step in steps} <= {int}:
            return Seen(TASK_STATES[code], n, tuple(accumulate(cast("Sequence[int]", steps))))
        case _:
            raise _malformed(packed)


def _malformed(packed: bytes) -> DecodeError:
    return DecodeError(f"the basis of a proposal is malformed: {packed!r:.200}")
