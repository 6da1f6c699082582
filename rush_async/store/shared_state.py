"""What the clients of a network share beside its tasks, typed: attributes, also those of tasks, claims and rankings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rush_async.errors import DecodeError, EncodeError, NetworkStateError
from rush_async.store.calls import Batcher
from rush_async.store.codec import decode, decode_all, encode
from rush_async.store.keys import NetworkKeys
from rush_async.store.scripts import MOST_BYTES, MOST_TASKS, Request, Script
from rush_async.store.task_reads import slices
from rush_async.wire.connection import Connection
from rush_async.wire.transport import Word

__all__ = ["SharedStateStore"]

SET_ATTRS = Script("set_attrs", keys=("attributes",), item=("name", "value"), memory="grows", creates=True)
SET_TASK_ATTRS = Script("set_task_attrs", keys=("task_attributes",), args=("key",), item=("name", "value"), memory="grows")
CLAIM = Script("claim", keys=("claims",), args=("name", "value"), memory="grows", creates=True)
RANK = Script("rank", keys=("rankings",), args=("name", "direction", "key", "score"), memory="grows", creates=True)

_DIRECTIONS = (b"min", b"max")


class SharedStateStore:
    """The attributes, claims and rankings of one network, for callers in an event loop."""

    def __init__(self, connection: Connection, keys: NetworkKeys, calls: Batcher) -> None:
        self.keys = keys
        self._connection = connection
        self._calls = calls

    # attributes

    async def set_attrs(self, values: Mapping[str, Any]) -> None:
        """Sets attributes, all of these or none.

        Raises:
            EncodeError: a value cannot be stored, or all of them take too many bytes.
            NetworkStateError: the network would have too many attributes.
        """
        args = _packed(values)
        if n_too_many := await self._calls.call(Request(SET_ATTRS, args)):
            raise NetworkStateError(
                f"network {self.keys.network_id!r} may have 10,000 attributes and would have {n_too_many:,} more, so nothing "
                "was set: set one attribute to a mapping, or push what is many as tasks"
            )

    async def attrs(self, names: Sequence[str]) -> dict[str, Any]:
        """Returns these attributes, or all of them without names. Those that were never set are left out."""
        if names:
            raws: list[bytes | None] = await self._connection.ask("HMGET", self.keys.attributes, *names)
            pairs = [(name.encode(), raw) for name, raw in zip(names, raws, strict=True) if raw is not None]
        else:
            flat: list[bytes] = await self._connection.ask("HGETALL", self.keys.attributes)
            pairs = sorted(zip(flat[::2], flat[1::2], strict=True))
        return {_text(self.keys.attributes, name): _value(self.keys.attributes, name, raw) for name, raw in pairs}

    async def set_task_attrs(self, key: str, values: Mapping[str, Any]) -> None:
        """Sets attributes of a queued or running task, all of these or none.

        Raises:
            EncodeError: a value cannot be stored, or they take too many bytes.
            NetworkStateError: the task is neither queued nor running, or would have too many attributes.
        """
        args, task = _packed(values), f"task {key!r:.80} of network {self.keys.network_id!r}"
        match await self._calls.call(Request(SET_TASK_ATTRS, [key.encode(), *args])):
            case b"set":
                return
            case b"ended":
                raise NetworkStateError(
                    f"{task} is neither queued nor running, so nothing was set: it ended, never existed, or was deleted by a "
                    "reset"
                )
            case b"names":
                raise NetworkStateError(
                    f"{task} would have more than 1,000 attributes, so nothing was set: set one attribute to a mapping, or "
                    "report what is many"
                )
            case b"bytes":
                raise EncodeError(
                    f"the attributes of {task} would take more than {MOST_BYTES:,} bytes, so nothing was set: store the large "
                    "part elsewhere and set where it is"
                )
            case _:
                raise DecodeError(f"{self.keys.task_attributes} holds no attributes of this library under {key!r:.80}")

    async def task_attrs(self, keys: Sequence[str]) -> list[dict[str, Any]]:
        """Returns the attributes of each of these tasks, in the order in which they were first set."""
        raws: list[bytes | None] = []
        for chunk in slices(keys, MOST_TASKS):
            raws += await self._connection.ask("HMGET", self.keys.task_attributes, *chunk)
        return [{} if raw is None else self._task_attrs(key, raw) for key, raw in zip(keys, raws, strict=True)]

    def _task_attrs(self, key: str, raw: bytes) -> dict[str, Any]:
        where = f"{self.keys.task_attributes}, task {key!r:.80},"
        try:
            flat = decode_all(raw)
            pairs = [(name.encode(), value) for name, value in zip(flat[::2], flat[1::2], strict=True)]
        except (AttributeError, ValueError) as error:
            raise DecodeError(f"{where} holds no attributes of this library: {error}") from error
        return {name.decode(): _value(where, name, value) for name, value in pairs}

    # claims

    async def claim(self, name: str, value: Any) -> Any:
        """Gives a name its value, if it has none yet. Returns the value that it has now.

        Raises:
            EncodeError: the value cannot be stored, or takes too many bytes.
            NetworkStateError: the network has as many claims as it may.
        """
        packed = encode(value, "value")
        _check_size([name.encode(), packed], "value", "store the large part elsewhere and claim where it is")
        while True:
            answer = await self._calls.call(Request(CLAIM, [name, packed]))
            if answer == -1:
                raise NetworkStateError(
                    f"network {self.keys.network_id!r} has 10,000 claims, as many as it may, and none is {name!r:.80}: "
                    "claim one name with a mapping as its value, or push what is many as tasks"
                )
            if answer == 0:  # another won, and this is the answer to a repetition
                answer = await self._connection.ask("HGET", self.keys.claims, name)
            if answer is not None:  # else a reset took the claim
                return _value(self.keys.claims, name.encode(), packed if answer == 1 else answer)

    # rankings

    async def rank(self, name: str, direction: bytes, key: str, score: float) -> tuple[int, int]:
        """Gives a key its score in a ranking. Returns its rank from 0 and how many keys the ranking has.

        Raises:
            NetworkStateError: the ranking has another direction, or the network has as many rankings as it may.
        """
        args = [name.encode(), direction, key.encode(), repr(_as_stored(score, direction))]
        _check_size(args, "key", "add the key of a task, or another short text")
        answer = await self._calls.call(Request(RANK, args))
        if not answer:
            raise NetworkStateError(
                f"network {self.keys.network_id!r} has 1,000 rankings, as many as it may, and none is {name!r:.80}: "
                "use fewer rankings of more keys, or reset the network"
            )
        if len(answer) == 1:
            self._check_direction(name, direction, answer[0])
        rank, n = answer
        return rank, n

    async def rank_of(self, name: str, direction: bytes, key: str) -> int | None:
        """Returns the rank of a key, None where the ranking has no such key."""
        return await self._read(name, direction, "ZRANK", key)

    async def best(self, name: str, direction: bytes, n: int) -> list[tuple[str, float]]:
        """Returns the `n` best keys with their scores, the best first."""
        flat: list[bytes] = await self._read(name, direction, "ZRANGE", 0, n - 1, "WITHSCORES") if n else []
        pairs = zip(flat[::2], flat[1::2], strict=True)
        where = self._ranking(name)
        return [(_text(where, key), _as_stored(float(score), direction)) for key, score in pairs]

    async def size(self, name: str, direction: bytes) -> int:
        """Returns how many keys a ranking has."""
        return await self._read(name, direction, "ZCARD")

    def _ranking(self, name: str) -> str:
        return f"{self.keys.rankings}:{name}"

    async def _read(self, name: str, direction: bytes, command: str, *words: Word) -> Any:
        read = (command, self._ranking(name), *words)
        is_direction, reply = await self._connection.ask_together(("HGET", self.keys.rankings, name), read)
        if is_direction is not None:
            self._check_direction(name, direction, is_direction)
        return reply

    def _check_direction(self, name: str, direction: bytes, is_direction: bytes) -> None:
        if is_direction not in _DIRECTIONS:
            raise DecodeError(f"{self.keys.rankings} holds no direction of this library for {name!r:.80}: {is_direction!r:.80}")
        if is_direction != direction:
            is_max = is_direction == b"max"
            raise NetworkStateError(
                f"ranking {name!r:.80} of network {self.keys.network_id!r} was created with maximize={is_max} and is used "
                f"with maximize={not is_max}: pass maximize={is_max}, or give the other ranking a name of its own"
            )


def _as_stored(score: float, direction: bytes) -> float:
    """Returns a score as the sorted set has it, or one of the sorted set as callers have it."""
    return 0.0 + score if direction == b"min" else 0.0 - score  # a zero has no sign then


def _packed(values: Mapping[str, Any]) -> list[Word]:
    """Returns names and values as words; raises `EncodeError` where they cannot be stored."""
    args: list[Word] = [word for name, value in values.items() for word in (name.encode(), encode(value, f"values[{name!r}]"))]
    _check_size(args, "values", "set them in several calls, or store the large part elsewhere and set where it is")
    return args


def _check_size(args: Sequence[Word], what: str, remedy: str) -> None:
    size = sum(len(arg) for arg in args if not isinstance(arg, int))
    if size > MOST_BYTES:
        raise EncodeError(f"{what} and names take {size:,} bytes, and a call takes at most {MOST_BYTES:,}: {remedy}")


def _text(where: str, raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise DecodeError(f"{where} holds a name that is not UTF-8: {raw!r:.200}") from error


def _value(where: str, name: bytes, raw: bytes) -> Any:
    try:
        return decode(raw)
    except DecodeError as error:
        raise DecodeError(f"{where} holds no value of this library under {name!r:.80}: {error}") from error
