"""Names in the database: the keys of a network, and the ids that may name a network or a worker."""

from __future__ import annotations

import re
import secrets
import time
import unicodedata
from typing import NamedTuple

from rush_async.errors import RushConfigError

__all__ = [
    "ALPHABET",
    "NetworkKeys",
    "check_network_id",
    "check_worker_id",
    "client_id",
    "client_name",
    "pattern_of",
    "random_network_id",
]

ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

_URLS = ("redis://", "rediss://", "unix://")


class NetworkKeys(NamedTuple):
    """The keys of one network, all in one cluster slot. Scripts get them in this order, as many as they need."""

    meta: str
    calls: str
    events: str
    queue: str
    queued: str
    running: str
    finished: str
    failed: str
    alive: str
    control: str
    workers: str
    passing: str
    leases: str
    processes: str
    log: str
    starts: str
    attributes: str
    task_attributes: str
    claims: str
    rankings: str
    reports: str
    report_events: str
    reserved: str
    returned: str
    points: str
    imported_failed: str

    @classmethod
    def of(cls, network_id: str, db: int = 0) -> NetworkKeys:
        """Returns the keys of a network.

        Channels are common to all databases of a server: their names have the number of the database unless it is 0.
        """
        suffix = f":{db}" if db else ""
        channels = {"events": f"events{suffix}", "control": f"control{suffix}", "report_events": f"events:reports{suffix}"}
        return cls(*(f"rush:{{{network_id}}}:{channels.get(name, name)}" for name in cls._fields))

    @property
    def network_id(self) -> str:
        """The id of the network."""
        return self.meta.removeprefix("rush:{").removesuffix("}:meta")


def check_network_id(network_id: object) -> str:
    """Returns the id if it can name a network: 1 to 200 characters without braces and control characters."""
    return _check_id(network_id, "network_id", "{}", 200)


def check_worker_id(worker_id: object) -> str:
    """Returns the id if it can name a worker: 1 to 60 characters without braces, `|` and control characters."""
    return _check_id(worker_id, "worker_id", "{}|", 60)


def _check_id(value: object, what: str, forbidden: str, longest: int) -> str:
    if not isinstance(value, str):
        raise RushConfigError(f"{what} must be a string, not {type(value).__name__}: {value!r:.80}")
    if value.startswith(_URLS):
        raise RushConfigError(f"{what} is a name, not a URL (it is not shown): give the URL as the config, Rush('name', url)")
    if not value:
        raise RushConfigError(f"{what} is empty: give a name of 1 to {longest} characters, or leave it out for a random one")
    if len(value) > longest:
        raise RushConfigError(
            f"{what} must have 1 to {longest} characters, not {len(value):,}: {value[:40]!r}; choose a shorter name"
        )
    for character in value:
        if character in forbidden or unicodedata.category(character) in ("Cc", "Cs"):
            raise RushConfigError(
                f"{what} {value!r:.80} contains {character!r}: leave out braces, control characters and surrogates"
                + (" and '|'" if "|" in forbidden else "")
            )
    return value


def pattern_of(prefix: str, rest: str) -> str:
    """Returns the pattern by which SCAN finds the keys of networks: their ids begin with `prefix`, and `rest` follows."""
    escaped = re.sub(r"([*?\[\]\\^-])", r"\\\1", prefix)
    return f"rush:{{{escaped}{rest}"


def random_network_id() -> str:
    """Returns a new id for a network."""
    return f"network-{secrets.token_hex(6)}"


def client_id() -> str:
    """Returns a new random name: 60 bits in 10 characters."""
    return "".join(secrets.choice(ALPHABET) for _ in range(10))


def client_name(at: float | None = None) -> str:
    """Returns a new name for a sender of numbered calls: a time, by default now, which tells its age, and 60 random bits."""
    return f"{int(time.time() if at is None else at):08x}{client_id()}"
