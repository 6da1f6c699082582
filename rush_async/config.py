"""Where the server is and how patient we are with it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote_plus, urlsplit

from rush_async.errors import RushConfigError

__all__ = ["RushConfig", "redact", "url_of_environment", "with_password_of_environment", "without_password"]

SCHEMES = ("redis", "rediss", "unix")
_PASSWORD = re.compile(r"(?P<head>://[^/?#@\s:]*:)(?P<password>[^/?#\s]*)(?=@)")
_PASSWORD_OF_URL = re.compile(r"^(?P<head>([^:/]*:?//)?[^:@]*:).*(?=@)", re.DOTALL)
_PASSWORD_QUERY = re.compile(r"(?P<head>[?&](?:ssl_)?password=)[^&#\s]*")


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
        max_loop_stall: for how long an event loop may hang before its workers are given up; None, the default, for ever, as
            long as their process lives.
        max_record_size: the largest task in bytes; a larger one is refused before a byte is sent.
        max_start_args_size: the largest start arguments in bytes that travel to a worker by themselves.
        large_objects_path: directory that all workers see, for start arguments beyond `max_start_args_size`.
        tls_ca_file: certificates to trust besides the system's.
        tls_cert_file: this client's certificate.
        tls_key_file: this client's private key.
        tls_check_hostname: whether the server's certificate must name its host.
        connect_timeout: how long opening a client may take.
        response_timeout: with calls pending and no byte from the server for this long, the connection is dropped.
        retry_deadline: how long calls wait for a server that went away before they fail.
        wait_replicas: replicas that must acknowledge each change before its call returns; 0 for none. When they have not within
            `retry_deadline`, the call raises `RushConnectionError`, and what it granted is given back.
        appendfsync: how the embedded server with a `data_dir` writes: `always`, `everysec` or `no`.
    """

    url: str | None = None
    data_dir: str | os.PathLike[str] | None = None
    heartbeat_period: float = 5.0
    heartbeat_expire: float = 20.0
    max_loop_stall: float | None = None
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
        for name in ("connect_timeout", "response_timeout", "max_record_size", "max_start_args_size", "max_loop_stall"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise RushConfigError(f"{name} must be more than 0, not {getattr(self, name)}")
        if not self.wait_replicas >= 0:
            raise RushConfigError(f"wait_replicas must not be negative, not {self.wait_replicas}")
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
        """The configuration that `RUSH_URL`, else `REDIS_URL`, names; without either, the embedded server's.

        A URL without a password gets the one in `RUSH_PASSWORD`, as it is: nothing in it needs to be quoted there.
        """
        return cls(url=url_of_environment()[0])

    def at(self, url: str) -> RushConfig:
        """The same settings for the server at `url`."""
        return replace(self, url=url, data_dir=None)

    def beating(self, period: float | None, expire: float | None) -> RushConfig:
        """The same settings with other heartbeats; None leaves one as it is."""
        if period is None and expire is None:
            return self
        return replace(
            self,
            heartbeat_period=self.heartbeat_period if period is None else period,
            heartbeat_expire=self.heartbeat_expire if expire is None else expire,
        )

    @property
    def of_connection(self) -> RushConfig:
        """What of these settings concerns the connection; clients that agree in it share one."""
        return replace(self, **{field.name: field.default for field in fields(self) if field.name in _OF_CLIENTS})

    @property
    def where(self) -> str:
        """The server's address for a person, without its password."""
        if self.url is not None:
            return redact_url(self.url)
        return f"embedded server in {Path(self.data_dir)}" if self.data_dir is not None else "embedded server"


_OF_CLIENTS = frozenset(
    {
        *("heartbeat_period", "heartbeat_expire", "max_loop_stall"),
        *("max_record_size", "max_start_args_size", "large_objects_path"),
    }
)


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


def url_of_environment() -> tuple[str, str] | tuple[None, None]:
    """The URL that `RUSH_URL`, else `REDIS_URL`, names, and the variable that does; neither counts when it is empty. A URL
    without a password has that of `RUSH_PASSWORD`."""
    for name in ("RUSH_URL", "REDIS_URL"):
        if url := os.environ.get(name):
            try:
                _check_url(url)
            except RushConfigError as error:
                raise RushConfigError(f"the environment variable {name}: {error}") from None
            return with_password_of_environment(url), name
    return None, None


_PARTS = re.compile(
    r"(?P<scheme>[^:]*:)(?://(?P<authority>[^/?#]*))?(?P<path>[^?#]*)(?:\?(?P<query>[^#]*))?(?P<rest>.*)", re.DOTALL
)
_SECRETS = ("password", "ssl_password")


def with_password_of_environment(url: str) -> str:
    """The URL with the password that `RUSH_PASSWORD` holds, where it has none itself.

    Raises:
        RushConfigError: the password is no text.
    """
    password = os.environ.get("RUSH_PASSWORD")
    found = _PARTS.fullmatch(url)
    if not password or found is None:
        return url
    user_info, _, host = (found["authority"] or "").rpartition("@")
    user, _, own = user_info.partition(":")
    if own or any(_name(option) == "password" for option in _options(found)):
        return url
    try:
        quoted = quote(password, safe="")
    except UnicodeEncodeError:
        raise RushConfigError("the environment variable RUSH_PASSWORD is not UTF-8: put the password into RUSH_URL") from None
    return _url_of(found, f"{user}:{quoted}@{host}", _options(found))


def without_password(url: str) -> str:
    """The URL without anything secret."""
    found = _PARTS.fullmatch(url)
    if found is None:
        return url
    user_info, _, host = (found["authority"] or "").rpartition("@")
    user = user_info.partition(":")[0]
    return _url_of(
        found, f"{user}@{host}" if user else host, [option for option in _options(found) if _name(option) not in _SECRETS]
    )


def _options(url: re.Match[str]) -> list[str]:
    return url["query"].split("&") if url["query"] else []


def _name(option: str) -> str:
    return unquote_plus(option.partition("=")[0])


def _url_of(url: re.Match[str], authority: str, options: list[str]) -> str:
    query = f"?{'&'.join(options)}" if options else ""
    slashes = "//" if url["authority"] is not None or authority else ""
    return f"{url['scheme']}{slashes}{authority}{url['path']}{query}{url['rest']}"
