"""What another program has put in the place of a key of ours, for errors: the server names neither key nor field."""

from __future__ import annotations

from typing import Any, Protocol

from rush_async.errors import DecodeError, RushConnectionError, RushError
from rush_async.store.keys import NetworkKeys
from rush_async.wire.transport import Word

__all__ = ["explained"]

_LISTS = ("queue", "finished")
_SORTED_SETS = ("leases", "returned")
_STREAMS = ("log", "reports")
_SETS = ("imported_failed",)
_CHANNELS = ("events", "control", "report_events")
# fields of `meta`
_NUMBERS = (
    *("epoch", "seq", "largest", "asks", "reports", "next_index", "next_number", "reserved", "imported", "imported_failed"),
)


class Asks(Protocol):
    """A connection."""

    async def ask(self, *words: Word) -> Any: ...

    async def ask_together(self, *commands: tuple[Word, ...]) -> list[Any]: ...


def _type_of(name: str) -> str:
    if name in _LISTS:
        return "list"
    if name in _SORTED_SETS:
        return "zset"
    if name in _SETS:
        return "set"
    return "stream" if name in _STREAMS else "hash"


async def explained(connection: Asks, keys: NetworkKeys, error: Exception) -> Exception:
    """Returns the error that names what is wrong where a script failed on the data of a network, else the same error."""
    if not isinstance(error, RushError) or isinstance(error, RushConnectionError) or "user_script" not in str(error):
        return error
    names = [name for name in keys._fields if name not in _CHANNELS]
    types: list[tuple[Word, ...]] = [("TYPE", getattr(keys, name)) for name in names]
    try:
        found: list[Any] = await connection.ask_together(*types)
        wrong = [
            f"{getattr(keys, name)} (a {kind.decode()}, not a {_type_of(name)})"
            for name, kind in zip(names, found, strict=True)
            if kind.decode() not in (_type_of(name), "none")
        ]
        if not wrong:
            values = await connection.ask("HMGET", keys.meta, *_NUMBERS)
            pairs = zip(_NUMBERS, values, strict=True)
            wrong = [
                f"the field {name} of {keys.meta} ({value!r:.80})"
                for name, value in pairs
                if value is not None and not value.isdigit()
            ]
    except RushError:
        return error
    what = ", ".join(wrong) or f"a value of {keys.meta}"
    return DecodeError(f"another program has put something else in the place of {what}: remove or mend it ({error})")
