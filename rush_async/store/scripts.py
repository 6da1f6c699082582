"""The Lua scripts: how one is declared, and how it is called.

A script is declared beside the method that calls it:

```python
FINISH = Script("finish", item=("kind", "key", "worker", "ended"), parts=("records", "finished"), merges=True)
```

The head of its Lua source is generated from that: each key, argument and column of an item has the declared name, in capitals.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import ClassVar, Literal, TypeAlias

from rush_async.errors import RushError
from rush_async.store.keys import NetworkKeys
from rush_async.wire.transport import Word, pack

__all__ = ["MOST_BYTES", "MOST_TASKS", "WIRE_VERSION", "Script", "ScriptCaller", "wire_mismatch"]

WIRE_VERSION = 1
MOST_TASKS = 1_000  # of one call
MOST_BYTES = 1024 * 1024

Memory: TypeAlias = Literal["grows", "keeps", "reads"]
# A full server refuses scripts that grow the data, as a whole; those that end, move or renew go on. What only reads is never
# refused, and may not write.
_FLAGS: dict[Memory, str] = {"grows": "", "keeps": " flags=allow-oom", "reads": " flags=no-writes"}

# Keys that every script needs: to guard its call, and to reply where the network stands.
_BASE = ("meta", "calls", "events", "queued", "running", "finished", "failed", "alive")
_ARGUMENTS = ("epoch", "client", "number")
_LUA = resources.files("rush_async.store") / "lua"


class Script:
    """A Lua script of `lua/`: its source behind a generated head and the parts of `lua/lib/` that it needs.

    Args:
        name: of its file.
        keys: the keys it uses beside those that every script uses.
        args: its arguments, behind epoch, client and number.
        group: the columns of the first of several rows that belong together; the last one is how many items follow.
        item: the columns of an item.
        parts: files of `lua/lib/` that it needs beside `call`.
        memory: whether it `grows` the data, `keeps` their size about as it is, or only `reads`.
        creates: whether it makes a network exist: its first argument is then `last_known`, the highest epoch ever seen.
        merges: whether one call may serve several callers, a few items or groups each.
        is_final: whether it is somebody's last call: it is sent even when its caller was cancelled at once.
    """

    all: ClassVar[list[Script]] = []

    def __init__(
        self,
        name: str,
        *,
        keys: Sequence[str] = (),
        args: Sequence[str] = (),
        group: Sequence[str] = (),
        item: Sequence[str] = (),
        parts: Sequence[str] = (),
        memory: Memory = "keeps",
        creates: bool = False,
        merges: bool = False,
        is_final: bool = False,
    ) -> None:
        self.name = name
        self.keys = (*_BASE, *keys)
        self.args = (*_ARGUMENTS, *(("last_known",) if creates else ()), *args)
        self.group = tuple(group)
        self.item = tuple(item)
        self.creates = creates
        self.merges = merges
        self.is_final = is_final
        # The server makes each function of a script anew at every call: those not needed would take a tenth of its time.
        files = ("lib/call", *(f"lib/{part}" for part in parts), name)
        self.source = "\n".join([f"#!lua{_FLAGS[memory]}", self.head(), *map(_text, files)])
        self.digest = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()
        Script.all.append(self)

    def head(self) -> str:
        """The Lua source that names keys, arguments, and the columns of groups and items."""
        arguments = f"local {_names(self.args)} = unpack(ARGV, 1, {len(self.args)})"
        lines = [f"local {_names(self.keys)} = unpack(KEYS)", arguments]
        first = len(self.args) + 1
        if self.group:
            lines.append(f"local FIRST, GROUP_SIZE, ITEM_SIZE = {first}, {len(self.group)}, {len(self.item)}")
            lines.append(_offsets(self.group))
        elif self.item:
            lines.append(f"local FIRST, ITEM_SIZE = {first}, {len(self.item)}")
        if self.item:
            lines.append(_offsets(self.item))
        return "\n".join(lines)


def _text(name: str) -> str:
    return (_LUA / f"{name}.lua").read_text("utf-8")


def _names(names: Sequence[str]) -> str:
    return ", ".join(name.upper() for name in names)


def _offsets(columns: Sequence[str]) -> str:
    """`local KEY, WORKER = 0, 1`: where the columns are from the first on."""
    return f"local {_names(columns)} = {', '.join(str(at) for at in range(len(columns)))}"


class ScriptCaller:
    """Writes calls of scripts on one network's keys; what never changes in a call is packed once.

    Attributes:
        heads: for each script how many words its call has before its arguments, and their bytes.
    """

    def __init__(self, keys: NetworkKeys) -> None:
        self._keys = keys
        self.heads: dict[Script, tuple[int, bytes]] = {}
        for script in Script.all:
            words = ("EVALSHA", script.digest, len(script.keys), *self._names(script))
            self.heads[script] = len(words), _body(pack(words))

    def _names(self, script: Script) -> list[str]:
        return [getattr(self._keys, name) for name in script.keys]

    def call(self, script: Script, args: Iterable[Word]) -> bytes:
        """The bytes of one call of `script` by its digest."""
        args = tuple(args)
        n_words, head = self.heads[script]
        return b"*%d\r\n%b%b" % (n_words + len(args), head, _body(pack(args)))

    def call_by_source(self, script: Script, args: Iterable[Word]) -> bytes:
        """The same call carrying the whole source, for a server that forgot its scripts; it remembers them by this."""
        return pack(("EVAL", script.source, len(script.keys), *self._names(script), *args))


def _body(packed: bytes) -> bytes:
    return packed[packed.index(b"\n") + 1 :]


def wire_mismatch(wire: int) -> RushError | None:
    """The error for a network that a newer library wrote, else None."""
    if wire <= WIRE_VERSION:
        return None
    return RushError(
        f"this network is written in wire version {wire} and this library knows {WIRE_VERSION}: upgrade rush_async here"
    )
