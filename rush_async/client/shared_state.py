"""What the clients of a network share beside its tasks: attributes, also those of tasks, claims and rankings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from rush_async.client.arguments import as_keys, as_number, as_text
from rush_async.client.session import Session, Shared
from rush_async.store.records import as_record
from rush_async.store.shared_state import SharedStateStore

__all__ = ["Ranking", "SharedState"]

_LONGEST = 200  # characters of the name of a ranking


class StatefulNetwork(Shared, Protocol):
    """The network of the client."""

    @property
    def shared_state(self) -> SharedStateStore: ...


S = TypeVar("S", bound=StatefulNetwork)


class SharedState(Session[S]):
    """The part of a client that reads and writes what all clients share. It needs no worker."""

    async def set_attrs(self, values: Any) -> None:
        """Sets attributes of the network, all in one step. Other attributes stay as they are.

        Args:
            values: names and their values, a record: a mapping with string names, a dataclass instance, or anything with
                `model_dump()`. A value is anything that an input of a task may have; None is one, too.

        Raises:
            EncodeError: a value cannot be stored, and the message has the path to it; or all take more than 1 MiB.
            NetworkStateError: the network would have more than 10,000 attributes; none was set.
        """
        store = self._net.shared_state
        if record := _as_attrs(values):
            await store.set_attrs(record)

    async def attrs(self, *names: str) -> dict[str, Any]:
        """Reads attributes of the network as they are on the server, in one step.

        Args:
            names: the attributes to read, all of them without any.

        Returns:
            Name -> value, in the order of `names`, or ordered by name. What was never set is left out.

        Raises:
            DecodeError: another program wrote what this library cannot read.
        """
        store = self._net.shared_state
        return await store.attrs([as_text(name, "the name of an attribute") for name in names])

    async def set_task_attrs(self, key: str, values: Any) -> None:
        """Sets attributes of a task that is queued or running, all in one step. Other attributes of it stay as they are, also
        when it is tried again; once it has ended they change no more.

        Args:
            key: the task, whichever worker runs it.
            values: names and their values, as in `set_attrs`.

        Raises:
            EncodeError: a value cannot be stored, and the message has the path to it; or those of the task would take more than
                1 MiB.
            NetworkStateError: the task is neither queued nor running, or would have more than 1,000 attributes; none was set.
        """
        store = self._net.shared_state
        key = as_text(key, "a key")
        if record := _as_attrs(values):
            await store.set_task_attrs(key, record)

    async def task_attrs(self, keys: str | Sequence[str]) -> list[dict[str, Any]]:
        """Reads the attributes of tasks in any state.

        Args:
            keys: one key or several.

        Returns:
            For each key name -> value, in the order in which they were first set; empty without any.

        Raises:
            DecodeError: another program wrote what this library cannot read.
        """
        store = self._net.shared_state
        return await store.task_attrs([as_text(key, "a key") for key in as_keys(keys)])

    async def claim(self, name: str, value: Any) -> Any:
        """Claims a name for a value, if it has none yet. A claim stays until the network is reset.

        It is no lock: the client that won may be gone.

        Args:
            name: what is claimed. Claims are apart from attributes of the same name.
            value: anything that an input of a task may have.

        Returns:
            The value that the name has, the same for all clients: `value` as it is stored where this call was the first.

        Raises:
            EncodeError: the value cannot be stored, or takes more than 1 MiB.
            NetworkStateError: the network has 10,000 claims.
        """
        store = self._net.shared_state
        return await store.claim(as_text(name, "the name of a claim"), value)

    def ranking(self, name: str, *, maximize: bool = False) -> Ranking:
        """Returns the ranking of this name, which all clients share. It begins to exist when a key is added.

        Args:
            name: 1 to 200 characters. A network has at most 1,000 rankings.
            maximize: whether the highest score is the best; the lowest is by default.
        """
        if len(as_text(name, "the name of a ranking")) > _LONGEST:
            raise ValueError(f"the name of a ranking has at most {_LONGEST} characters, not {len(name):,}: {name[:40]!r}")
        return Ranking(self, name, maximize=maximize)


class Client(Protocol):
    """The client whose ranking it is."""

    @property
    def _net(self) -> StatefulNetwork: ...


class Ranking:
    """Keys of a network in the order of their scores, as `rush.ranking()` returns it. Equal scores are ordered by key.

    Attributes:
        name: its name.
        maximize: whether the highest score is the best.
    """

    def __init__(self, client: Client, name: str, *, maximize: bool) -> None:
        self.name = name
        self.maximize = maximize
        self._client = client
        self._direction = b"max" if maximize else b"min"

    @property
    def _store(self) -> SharedStateStore:
        return self._client._net.shared_state  # pyright: ignore[reportPrivateUsage]

    def __repr__(self) -> str:
        return f"Ranking({self.name!r}, maximize={self.maximize})"

    async def add(self, key: str, score: float) -> tuple[int, int]:
        """Adds a key, or gives it another score, and tells its rank in the same step.

        Args:
            key: the key of a task, or any other text.
            score: a number, infinite ones too.

        Returns:
            The rank of the key, 0 for the best, and how many keys the ranking has.

        Raises:
            ValueError: the score is nan, which has no rank.
            NetworkStateError: the ranking was created with another `maximize`, or the network has 1,000 rankings.
        """
        return await self._store.rank(self.name, self._direction, as_text(key, "a key"), _as_score(score))

    async def rank(self, key: str) -> int | None:
        """Returns the rank of a key, 0 for the best; None for a key that was not added."""
        return await self._store.rank_of(self.name, self._direction, as_text(key, "a key"))

    async def best(self, n: int) -> list[tuple[str, float]]:
        """Returns the `n` best keys, or as many as there are, each with its score, the best first."""
        return await self._store.best(self.name, self._direction, as_number(n, "n"))

    async def size(self) -> int:
        """Returns how many keys the ranking has."""
        return await self._store.size(self.name, self._direction)


def _as_attrs(values: Any) -> dict[str, Any]:
    record = as_record(values, "values")
    for name in record:
        as_text(name, "the name of an attribute")
    return record


def _as_score(score: Any) -> float:
    try:
        number = math.fsum((score,))  # what `float` takes, but no text
    except TypeError:
        raise TypeError(f"a score must be a number, not {type(score).__name__}: {score!r:.80}") from None
    except OverflowError:
        raise ValueError("a score is a float, and this integer is beyond the largest one: add its logarithm") from None
    if math.isnan(number):
        raise ValueError("a score of nan has no rank: add a number, or infinity for what is worse than all others")
    return number
