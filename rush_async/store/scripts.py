"""The Lua scripts: how one is declared, how one caller requests it, and how it is called.

A script is declared beside the method that calls it:

```python
RETRY = Script("retry", keys=("queue",), item=("key",), memory="grows")
```

The head of its Lua source is generated from that: each key, argument and column of an item has the declared name, in capitals.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import textwrap
from collections import deque
from collections.abc import Iterable, Sequence
from enum import Enum, auto
from importlib import resources
from typing import Any, ClassVar, Final, Literal, TypeAlias

from rush_async.errors import DecodeError, RushError
from rush_async.store.keys import NetworkKeys
from rush_async.wire.transport import Word, pack

__all__ = [
    "LOST",
    "MOST_BYTES",
    "MOST_TASKS",
    "RECALL",
    "WIRE_VERSION",
    "WITHDRAW",
    "Life",
    "Lost",
    "Request",
    "Script",
    "ScriptCaller",
    "deal",
    "epoch_of",
    "is_executed",
    "lua_text",
    "take_together",
    "wire_mismatch",
]

WIRE_VERSION = 1
MOST_TASKS = 1_000  # of one call
MOST_BYTES = 1024 * 1024
MOST_BYTES_MERGED = 16 * 1024

Memory: TypeAlias = Literal["grows", "keeps", "reads"]
# A full server refuses scripts that grow the data, as a whole; those that end or move tasks or renew leases are executed.
# Scripts that only read are never refused, and may not write.
_FLAGS: dict[Memory, str] = {"grows": "", "keeps": " flags=allow-oom", "reads": " flags=no-writes"}

# Keys that every script needs: to guard its call, and to reply with the position of the network.
_BASE = ("meta", "calls", "events", "queued", "running", "finished", "failed", "alive")
_ARGUMENTS = ("epoch", "client", "number")
_LUA = resources.files("rush_async.store") / "lua"
_COMMENT = re.compile(r"^ *--.*\n", re.MULTILINE)  # need not travel
_PLACE = re.compile(r"^( *)(require|include)\('(\w+)'\)\n", re.MULTILINE)


class Script:
    """A Lua script of `lua/`: its source behind a generated head.

    `require('call')` puts the text of `lua/lib/call.lua` in its place, once in a script; `include('commit')` puts that of
    `lua/lib/commit.lua` there each time.

    Args:
        name: of its file.
        keys: the keys it uses beside those that every script uses.
        args: its arguments, behind epoch, client and number.
        group: the columns of the first of several rows that belong together; the last one is how many items follow.
        item: the columns of an item.
        memory: whether it `grows` the data, `keeps` their size about as it is, or only `reads`.
        creates: whether it makes a network exist: its first argument is then `origin`, see `lua/lib/create.lua`.
        merges: whether one call may serve several callers, a few items or groups each.
        is_final: whether it may be the last call of its caller: it is sent even when its caller is cancelled at once.
        leads: whether its calls leave before those of other scripts that were issued in the same tick.
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
        memory: Memory = "keeps",
        creates: bool = False,
        merges: bool = False,
        is_final: bool = False,
        leads: bool = False,
    ) -> None:
        self.name = name
        self.keys = (*_BASE, *keys)
        self.args = (*_ARGUMENTS, *(("origin",) if creates else ()), *args)
        self.group = tuple(group)
        self.item = tuple(item)
        self.creates = creates
        self.merges = merges
        self.is_final = is_final
        self.leads = leads
        self.source = "\n".join([f"#!lua{_FLAGS[memory]}", self.head(), lua_text(name)])
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


def lua_text(name: str, seen: set[str] | None = None) -> str:
    """Returns the text of a Lua file without comments, with the files that it requires and includes in their places.

    Args:
        name: of the file in `lua/`, such as `push` or `lib/commit`.
        seen: the files of the script that are in it already; they are not required again.
    """
    seen = set() if seen is None else seen

    def text_of(match: re.Match[str]) -> str:
        indent, way, name = match.groups()
        if way == "require" and name in seen:
            return ""
        seen.add(name)
        return textwrap.indent(lua_text(f"lib/{name}", seen), indent)

    return _PLACE.sub(text_of, _COMMENT.sub("", (_LUA / f"{name}.lua").read_text("utf-8")))


def _names(names: Sequence[str]) -> str:
    return ", ".join(name.upper() for name in names)


def _offsets(columns: Sequence[str]) -> str:
    """`local KEY, WORKER = 0, 1`: where the columns are from the first on."""
    return f"local {_names(columns)} = {', '.join(str(at) for at in range(len(columns)))}"


RECALL = Script("recall", item=("worker",), memory="reads")
WITHDRAW = Script("withdraw", item=("worker",))


def is_executed(reply: Any) -> bool:
    """Whether a reply of `RECALL` or `WITHDRAW` is that of the call; `OLD`: it was withdrawn before."""
    return reply != [b"OLD"] and not (len(reply) > 8 and reply[8] is None)


class Life(Enum):
    """What becomes of a request."""

    AWAITED = auto()  # a caller awaits the answer
    ABANDONED = auto()  # its caller is gone: it is dropped if it has not left, else what it is granted is compensated
    DETACHED = auto()  # no caller awaits it, and it is to be executed all the same
    OVERDUE = auto()  # detached, and so late that nothing waits for it any longer
    OVER = auto()


_AWAITED, _OVER = Life.AWAITED, Life.OVER  # Python 3.11 takes 60 ns to find a member in its class, and every request asks


class Lost:
    """The answer of a call for a worker that is not alive."""


LOST: Final = Lost()


class Request:
    """One caller's part of a call.

    Args:
        script: what is called.
        args: this request's arguments.
        n_tasks: how many tasks it moves at the most.
        n_answers: how many entries of the answer are this request's, where requests are merged.
        size: how many bytes its arguments take, about; counted by default.
        survives_reset: whether the call is issued again when the network was reset before it was executed; if not, it
            resolves to `None`, which means that nothing moved.
    """

    __slots__ = (
        *("args", "future", "goes_alone", "life", "n_answers", "n_tasks"),
        *("script", "since", "size", "survives_reset"),
    )

    def __init__(
        self,
        script: Script,
        args: Sequence[Word],
        *,
        n_tasks: int = 1,
        n_answers: int = 1,
        size: int | None = None,
        survives_reset: bool = True,
    ) -> None:
        self.script = script
        self.args = args
        self.n_tasks = n_tasks
        self.n_answers = n_answers
        self.size = sum([len(arg) for arg in args if not isinstance(arg, int)]) if size is None else size
        self.survives_reset = survives_reset
        self.goes_alone = False
        self.life = _AWAITED
        self.since: float | None = None  # since when it has been kept back, because the server takes nothing
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def decode(self, answer: Any, extra: list[Any]) -> Any:
        """The result that this request's part of the answer means. What does not decode is a `DecodeError` for the caller."""
        return answer

    @property
    def compensates(self) -> bool:
        """Whether `compensate` undoes anything."""
        return False

    def compensate(self, result: Any) -> None:
        """Undoes what the server granted to a caller that is gone."""

    def answered(self, answer: Any, extra: list[Any]) -> None:
        """Takes this request's part of the answer."""
        try:
            self.resolve(self.decode(answer, extra))
        except Exception as error:
            self.reject(DecodeError(f"the answer of the script {self.script.name} is malformed: {error}: {answer!r:.200}"))

    def resolve(self, result: Any) -> None:
        """The request is over, with a result."""
        self.life = _OVER
        if not self.future.done():
            self.future.set_result(result)
        elif result is not None and (self.future.cancelled() or self.future.exception() is not None):
            self.compensate(result)

    def reject(self, error: Exception) -> None:
        """The caller gets an error, and the request is over unless its answer is still to come."""
        self.life = _OVER
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()  # its caller may be gone


def take_together(waiting: deque[Request]) -> list[Request]:
    """Returns the next requests that may go as one call. Abandoned ones are dropped, nothing of theirs was done."""
    requests: list[Request] = []
    tasks = size = 0
    while waiting:
        request = waiting[0]
        # Its caller may have been cancelled and not have run yet, so the life of the request does not show that.
        if request.future.done() and not request.script.is_final:
            waiting.popleft()
            request.life = Life.OVER
            continue
        is_too_much = tasks + request.n_tasks > MOST_TASKS or size + request.size > MOST_BYTES
        goes_alone = request.goes_alone or not request.script.merges or request.size > MOST_BYTES_MERGED
        if requests and (is_too_much or goes_alone):
            break
        requests.append(waiting.popleft())
        tasks += request.n_tasks
        size += request.size
        if goes_alone:
            break
    return requests


def deal(requests: Sequence[Request], answer: Any, extra: list[Any]) -> None:
    """Gives each request of one call its part of the answer."""
    script = requests[0].script
    if not script.merges:
        requests[0].answered(answer, extra)
        return
    n_expected = sum([request.n_answers for request in requests])
    entries: list[Any] = answer
    if not isinstance(answer, list) or len(entries) != n_expected:
        error = DecodeError(f"the script {script.name} answered {answer!r:.200}")
        for request in requests:
            request.reject(error)
        return
    at = 0
    for request in requests:
        request.answered(entries[at : at + request.n_answers], extra)
        at += request.n_answers


class ScriptCaller:
    """Writes calls of scripts on one network's keys; what never changes in a call is packed once.

    Attributes:
        keys: the keys of the network.
        heads: for each script how many words its call has before its arguments, and their bytes.
    """

    def __init__(self, keys: NetworkKeys) -> None:
        self.keys = keys
        self.heads: dict[Script, tuple[int, bytes]] = {}
        for script in Script.all:
            words = ("EVALSHA", script.digest, len(script.keys), *self._names(script))
            self.heads[script] = len(words), _body(pack(words))

    def _names(self, script: Script) -> list[str]:
        return [getattr(self.keys, name) for name in script.keys]

    def call(self, script: Script, args: Iterable[Word]) -> bytes:
        """Packs a call of `script` by its digest."""
        args = tuple(args)
        n_words, head = self.heads[script]
        return b"*%d\r\n%b%b" % (n_words + len(args), head, _body(pack(args)))

    def call_by_source(self, script: Script, args: Iterable[Word]) -> bytes:
        """Packs the same call with the source, for a server that has lost its scripts. The server keeps the script again."""
        return pack(("EVAL", script.source, len(script.keys), *self._names(script), *args))

    def both(self, script: Script, args: Iterable[Word]) -> tuple[bytes, bytes]:
        """Packs the same call by the digest of the script, and by its source."""
        args = tuple(args)
        return self.call(script, args), self.call_by_source(script, args)


def _body(packed: bytes) -> bytes:
    return packed[packed.index(b"\n") + 1 :]


def wire_mismatch(wire: int) -> RushError | None:
    """Returns the error for a network that a newer library wrote; None for another."""
    if wire <= WIRE_VERSION:
        return None
    return RushError(
        f"this network is written in wire version {wire} and this library knows {WIRE_VERSION}: upgrade rush_async here"
    )


def epoch_of(epoch: bytes, wire: bytes) -> int | RushError:
    """Returns the epoch that the refusal of a call names; an error where this library cannot use it."""
    try:
        number, version = int(epoch), int(wire)
    except ValueError:
        return DecodeError(f"the network's meta holds the epoch {epoch!r} and the wire version {wire!r}")
    return wire_mismatch(version) or number
