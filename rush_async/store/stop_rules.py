"""The rules by which a network stops, and its time to live: the scripts judge them, so that one step of the server decides."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

from rush_async.errors import DecodeError
from rush_async.store.calls import Batcher
from rush_async.store.codec import as_mapping, decode, to_msgpack, unpack_bytes
from rush_async.store.keys import NetworkKeys
from rush_async.store.position import number_of
from rush_async.store.scripts import Request, Script
from rush_async.wire.connection import Connection

__all__ = ["RulesAnswer", "StopRules", "StopRulesStore"]

# `set`; `same`: they hold already; `stopped`: others have stopped the network; `behind`: more tasks have finished than the
# caller has read; else the rule that is true already, of a resumption.
RulesAnswer: TypeAlias = Literal["set", "same", "stopped", "behind", "finished", "failed", "target"]

STOP_WHEN = Script("stop_when", args=("lifts", "spec", "best", "n_read"), memory="grows", creates=True)
STOP_NETWORK = Script("stop_network", args=("why",), creates=True)
EXPIRE = Script("expire", args=("ttl",), creates=True)


class StopRules(NamedTuple):
    """The rules of a network; None for one that it does not have. The one that is true first stops it.

    Attributes:
        finished: how many tasks finish.
        failed: how many tasks fail.
        seconds: how much time may pass.
        output: the output that `target` and `patience` judge.
        maximize: whether larger values of it are better.
        target: the value of it that is good enough.
        patience: how many tasks may finish without a better value of it.
    """

    finished: int | None = None
    failed: int | None = None
    seconds: float | None = None
    output: str | None = None
    maximize: bool = False
    target: float | None = None
    patience: int | None = None

    def encode(self) -> bytes:
        """Encodes the rules; those of equal rules are equal."""
        return to_msgpack({name: value for name, value in self._asdict().items() if value is not None and value is not False})

    @classmethod
    def decode(cls, data: bytes) -> StopRules:
        """Decodes rules.

        Raises:
            DecodeError: another program wrote them.
        """
        try:
            return cls(**decode(data))
        except TypeError as error:
            raise DecodeError(f"not the stop rules of a network: {error}; {data[:80]!r}") from error

    def arguments(self) -> dict[str, Any]:
        """The arguments of `stop_when` that set these rules, without those that have their defaults."""
        given: dict[str, Any] = {"finished": self.finished, "failed": self.failed, "seconds": self.seconds}
        if self.target is not None:
            given["target"] = {self.output: self.target}
        if self.patience is not None:
            given["patience"] = (self.output, self.patience)
        if self.maximize:
            given["maximize"] = True
        return {name: value for name, value in given.items() if value is not None}


class StopRulesStore:
    """Sets the stop rules of one network, and stops it."""

    def __init__(self, connection: Connection, keys: NetworkKeys, calls: Batcher) -> None:
        self._connection = connection
        self._keys = keys
        self._calls = calls

    async def read(self) -> StopRules:
        """Returns the rules of the network as they are on the server.

        Raises:
            DecodeError: another program wrote them.
        """
        raw = await self._connection.ask("HGET", self._keys.meta, "rules")
        if raw is None:
            return StopRules()
        if (kept := as_mapping(unpack_bytes(raw))) is None or b"spec" not in kept:
            raise DecodeError(f"not the stop rules of a network: {raw[:80]!r}")
        return StopRules.decode(kept[b"spec"])

    async def imported_places(self) -> list[tuple[int, int]]:
        """Returns where imported tasks are among the finished ones, which no rule counts: for each run of them the first place
        and the one behind the last."""
        raw: bytes = await self._connection.ask("HGET", self._keys.meta, "imported_at") or b""
        places = [number_of("imported_at", place) for place in raw.split()]
        return list(zip(places[::2], places[1::2], strict=False))

    async def set(self, rules: StopRules, best: float | None, n_read: int, *, lifts: bool) -> RulesAnswer:
        """Sets the rules in place of those that the network had.

        Args:
            rules: the rules.
            best: the best value of their output among the first `n_read` finished tasks.
            n_read: how many finished tasks `best` covers.
            lifts: whether to lift a stop, too.
        """
        args = ["1" if lifts else "0", rules.encode(), "" if best is None else repr(best), n_read]
        answer = await self._calls.call(Request(STOP_WHEN, args, survives_reset=False))
        return "behind" if answer is None else answer.decode()  # the network was reset: nothing is known of it

    async def stop(self, why: str) -> None:
        """Stops the network by hand, unless it has stopped."""
        await self._calls.call(_StopNetwork(why))

    async def expire(self, milliseconds: int | None) -> None:
        """Sets for how long the network stays after it has ended; None for ever."""
        await self._calls.call(Request(EXPIRE, ["" if milliseconds is None else milliseconds]))

    async def judge_time(self) -> float | None:
        """Stops the network if its time is up. Returns the seconds that it has left; None where nothing limits them."""
        return await self._calls.call(_StopNetwork(""))


class _StopNetwork(Request):
    """Stops a network; the result is how many seconds it has left."""

    __slots__ = ()

    def __init__(self, why: str) -> None:
        super().__init__(STOP_NETWORK, [why])

    def decode(self, answer: Any, extra: list[Any]) -> float | None:
        return float(answer) if answer else None
