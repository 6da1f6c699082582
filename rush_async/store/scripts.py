"""The Lua scripts as commands: one class for all, one constant each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from importlib import resources

from rush_async.store.keys import NetworkKeys
from rush_async.wire.transport import Word, pack

__all__ = ["SCRIPTS", "WIRE_VERSION", "Script", "ScriptCaller"]

WIRE_VERSION = 1

_HERE = resources.files("rush_async.store") / "lua"


def _text(name: str) -> str:
    return (_HERE / f"{name}.lua").read_text("utf-8")


class Script:
    """A Lua script: its source behind the common prelude and the parts that it needs, and its digest."""

    def __init__(
        self,
        name: str,
        *parts: str,
        last_key: str = "starts",
        grows: bool = False,
        founds: bool = False,
        merges: bool = False,
        ends: bool = False,
    ) -> None:
        # A full server refuses scripts that grow the data as a whole; those that end, move or look go on.
        shebang = "#!lua" if grows else "#!lua flags=allow-oom"
        self.name = name
        self.n_keys = NetworkKeys._fields.index(last_key) + 1  # a task is two calls, and each key in them 30 bytes
        self.founds = founds  # it makes a network exist, and wants to know the highest epoch ever seen
        self.merges = merges  # its arguments are groups, so that one call may serve many callers
        self.ends = ends  # it is somebody's last word: it is sent even when its caller was cancelled at once
        # The server makes each function of a script anew at every call: those not needed would take a tenth of its time.
        self.source = "\n".join([shebang, *map(_text, ("prelude", *parts, name))])
        self.digest = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()


PUSH = Script("push", "finished", last_key="alive", grows=True, founds=True, merges=True)
POP = Script("pop", "records", last_key="alive", merges=True)
FINISH = Script("finish", "records", "finished", last_key="alive", merges=True, ends=True)
REMOVE = Script("remove", "records", last_key="alive")
RETRY = Script("retry", "records", last_key="alive", grows=True)
LOOK = Script("look", last_key="alive")
RESET = Script("reset")
CANCEL = Script("cancel", "records", "workers")
ENTER = Script("enter", "workers", grows=True, founds=True, merges=True)
BYE = Script("bye", "workers", merges=True, ends=True)
LOSE = Script("lose", "records", "workers")
STOP = Script("stop", "workers")
BEAT = Script("beat", "workers")
PART = Script("part", "workers")
LOG = Script("log", grows=True)
PREPARE = Script("prepare", grows=True, founds=True)
SCRIPTS = (
    *(PUSH, POP, FINISH, REMOVE, RETRY, CANCEL, LOOK, RESET),
    *(ENTER, BYE, LOSE, STOP, BEAT, PART, LOG, PREPARE),
)


class ScriptCaller:
    """Writes calls of scripts on one network's keys; what never changes in a call is packed once."""

    def __init__(self, keys: NetworkKeys) -> None:
        self.keys = keys
        self._heads = {
            script: _body(pack(("EVALSHA", script.digest, script.n_keys, *keys[: script.n_keys]))) for script in SCRIPTS
        }

    def call(self, script: Script, args: Iterable[Word]) -> bytes:
        """The bytes of one call of `script` by its digest."""
        args = tuple(args)
        return b"*%d\r\n%b%b" % (3 + script.n_keys + len(args), self._heads[script], _body(pack(args)))

    def call_by_source(self, script: Script, args: Iterable[Word]) -> bytes:
        """The same call carrying the whole source, for a server that forgot its scripts; it remembers them by this."""
        return pack(("EVAL", script.source, script.n_keys, *self.keys[: script.n_keys], *args))


def _body(packed: bytes) -> bytes:
    return packed[packed.index(b"\n") + 1 :]
