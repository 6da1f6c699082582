"""Where the server is and how patient we are with it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rush_async.errors import RushConfigError

__all__ = ["RushConfig", "redact", "resolve_config"]

SCHEMES = ("redis", "rediss", "unix")
_PASSWORD = re.compile(r"(?P<head>://[^/?#@\s:]*:)(?P<password>[^/?#\s]*)(?=@)")
_PASSWORD_OF_URL = re.compile(r"^(?P<head>([^:/]*:?//)?[^:@]*:).*(?=@)", re.DOTALL)
_PASSWORD_QUERY = re.compile(r"(?P<head>[?&]password=)[^&#\s]*")


def redact(text: str) -> str:
    """The text with the password of every URL in it replaced by `***`."""
    return _PASSWORD_QUERY.sub(r"\g<head>***", _PASSWORD.sub(r"\g<head>***", text))


def redact_url(url: str) -> str:
    """A URL for a person, its password replaced whatever is in it: it may be one that cannot be read as a URL."""
    return _PASSWORD_QUERY.sub(r"\g<head>***", _PASSWORD_OF_URL.sub(r"\g<head>***", url))


@dataclass(frozen=True, slots=True, repr=False)
class RushConfig:
    """Where the server is and how patient we are with it. Times are seconds, fractions allowed.

    Attributes:
        url: `redis://`, `rediss://` (TLS) or `unix://`; None starts a private embedded server.
        data_dir: where the embedded server keeps its data for the next run; other processes with the same directory join it.
        heartbeat_period: how often a process says that its workers are alive.
        heartbeat_expire: how long a silent worker is believed to be alive; at least twice the period.
        max_record_size: the largest task in bytes; a larger one is refused before a byte is sent.
        max_start_args_size: the largest start arguments in bytes that travel to a worker by themselves.
        large_objects_path: directory that all workers see, for start arguments beyond `max_start_args_size`.
        tls_ca_file: certificates to trust instead of the system's.
        tls_cert_file: this client's certificate.
        tls_key_file: this client's private key.
        tls_check_hostname: whether the server's certificate must name its host.
        connect_timeout: how long opening a client may take.
        response_timeout: with calls pending and no byte from the server for this long, the connection is dropped.
        retry_deadline: how long calls wait for a server that went away before they fail.
        wait_replicas: replicas that must acknowledge a write; 0 for none.
        appendfsync: how the embedded server with a `data_dir` writes: `always`, `everysec` or `no`.
    """

    url: str | None = None
    data_dir: str | os.PathLike[str] | None = None
    heartbeat_period: float = 5.0
    heartbeat_expire: float = 20.0
    max_record_size: int = 64 * 1024 * 1024
    max_start_args_size: int = 64 * 1024 * 1024
    large_objects_path: str | os.PathLike[str] | None = None
    tls_ca_file: str | None = None
    tls_cert_file: str | None = None
    tls_key_file: str | None = None
    tls_check_hostname: bool = True
    connect_timeout: float = 5.0
    response_timeout: float = 10.0
    retry_deadline: float = 30.0
    wait_replicas: int = 0
    appendfsync: str = "everysec"

    def __post_init__(self) -> None:
        if self.url is not None:
            _check_url(self.url)
            if self.data_dir is not None:
                raise RushConfigError(
                    "url and data_dir exclude each other: data_dir is for the embedded server, which has no url"
                )
        if not self.heartbeat_period > 0:
            raise RushConfigError(f"heartbeat_period must be more than 0 seconds, not {self.heartbeat_period}")
        if not self.heartbeat_expire >= 2 * self.heartbeat_period:
            raise RushConfigError(
                f"heartbeat_expire must be at least twice the heartbeat_period of {self.heartbeat_period} s, "
                f"not {self.heartbeat_expire}"
            )
        for name in ("connect_timeout", "response_timeout", "max_record_size", "max_start_args_size"):
            if not getattr(self, name) > 0:
                raise RushConfigError(f"{name} must be more than 0, not {getattr(self, name)}")
        if not self.retry_deadline >= 0:
            raise RushConfigError(f"retry_deadline must not be negative, not {self.retry_deadline}")
        if self.appendfsync not in ("always", "everysec", "no"):
            raise RushConfigError(f"appendfsync is 'always', 'everysec' or 'no', not {self.appendfsync!r}")

    def __repr__(self) -> str:
        shown: list[str] = []
        for entry in fields(self):
            value: Any = getattr(self, entry.name)
            if value != entry.default:
                shown.append(f"{entry.name}={redact_url(value) if isinstance(value, str) else value!r}")
        return f"RushConfig({', '.join(shown)})"

    @classmethod
    def from_env(cls) -> RushConfig:
        """The configuration that `RUSH_URL`, else `REDIS_URL`, names; without either, the embedded server's."""
        for name in ("RUSH_URL", "REDIS_URL"):
            if url := os.environ.get(name):
                try:
                    return cls(url=url)
                except RushConfigError as error:
                    raise RushConfigError(f"the environment variable {name}: {error}") from None
        return cls()

    def at(self, url: str) -> RushConfig:
        """The same settings for the server at `url`."""
        return replace(self, url=url, data_dir=None)

    @property
    def where(self) -> str:
        """The server's address for a person, without its password."""
        if self.url is not None:
            return redact_url(self.url)
        return f"embedded server in {Path(self.data_dir)}" if self.data_dir is not None else "embedded server"


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        # The error of urllib quotes what it takes for the port, which may be a part of the password.
        raise RushConfigError(
            f"{redact_url(url)!r} is no usable URL: the port is a number up to 65535, and special characters of a password "
            "are written as urllib.parse.quote(password, safe='') gives them"
        ) from None
    if parts.scheme not in SCHEMES:
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise RushConfigError(f"the URL {redact_url(url)!r} must start with one of {known}")
    if parts.scheme == "unix":
        if not parts.path:
            raise RushConfigError(f"the URL {redact_url(url)!r} names no socket: write unix:///path/to/socket")
    elif not parts.hostname:
        raise RushConfigError(f"the URL {redact_url(url)!r} names no host: write {parts.scheme}://host:6379/0")
    elif port == 0:
        raise RushConfigError(f"the URL {redact_url(url)!r} has port 0: name the server's port")


def resolve_config(config: RushConfig | str | None) -> RushConfig:
    """The configuration meant: an argument wins over the environment, and that over the embedded server."""
    match config:
        case RushConfig():
            if config.url is None and config.data_dir is None:
                return config.at(found) if (found := RushConfig.from_env().url) else config
            return config
        case str():
            return RushConfig(url=config)
        case None:
            return RushConfig.from_env()
        case _:
            raise RushConfigError(f"config is a URL, a RushConfig or None, not {type(config).__name__}")
