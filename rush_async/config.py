"""The settings of a client: its server, heartbeats, time limits and size limits."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, fields, replace
from operator import index
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, unquote_plus, urlsplit

from rush_async.errors import SECRET_OPTIONS, RushConfigError, explain_arguments, redact_options

__all__ = [
    "RushConfig",
    "as_number",
    "as_path",
    "as_real",
    "as_seconds",
    "connection_part",
    "hosts_of",
    "lacks_directory",
    "with_address_of_environment",
    "with_data_dir",
    "with_heartbeat",
    "with_password_of_environment",
    "with_settings_of_environment",
    "without_password",
]

SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
_PASSWORD_OF_URL = re.compile(r"^(?P<head>([^:/]*:?//)?[^:@]*:).*(?=@)", re.DOTALL)


def redact_url(url: str) -> str:
    """Replaces the password of a URL by `***`, also in a text that cannot be parsed as a URL."""
    return redact_options(_PASSWORD_OF_URL.sub(r"\g<head>***", url))


@dataclass(frozen=True, slots=True, repr=False)
class RushConfig:
    """The settings of a client: its server, heartbeats, time limits and size limits. Times are in seconds, with fractions.

    Attributes:
        url: `redis://`, `rediss://` (TLS) or `unix://`; `redis+sentinel://host:port,host:port/service` for the master that
            Sentinels tell, `redis+cluster://host:port,host:port` for a cluster, both also with `rediss+`; None starts a private
            embedded server.
        data_dir: where the embedded server keeps its data for the next run; other processes with the same directory join it. A
            leading `~` is your home directory.
        heartbeat_period: the time between two heartbeats, with which a process renews the leases of its workers.
        heartbeat_expire: how long the lease of a worker lasts after a heartbeat; at least twice the period.
        max_loop_stall: how long an event loop may hang before its workers count as lost; None sets no limit while their process
            lives.
        max_record_size: the largest task in bytes; a larger one is refused before anything is sent.
        max_reports: how many reports of running tasks the network keeps at least, at about 90 bytes each; about a hundred more
            may stay.
        max_start_args_size: the largest start arguments in bytes that are sent to a worker through the server.
        large_objects_path: a directory that all workers can read, for start arguments beyond `max_start_args_size`.
        tls_ca_file: a file of certificates to trust besides the system's.
        tls_cert_file: this client's certificate.
        tls_key_file: this client's private key.
        tls_check_hostname: whether the certificate of the server must name its host.
        connect_timeout: how long opening a client may take.
        response_timeout: how long the server may send nothing while calls are pending, before the client reconnects.
        retry_deadline: how long a call waits for a server that cannot be reached before it fails.
        wait_replicas: how many replicas must acknowledge each change before its call returns. If they have not within
            `retry_deadline`, the call raises `RushConnectionError`: tasks that it popped then return to the queue, and tasks
            that it queued are removed.
        appendfsync: how the embedded server with a `data_dir` writes: `always`, `everysec` or `no`.
    """

    url: str | None = None
    data_dir: str | os.PathLike[str] | None = None
    heartbeat_period: float = 5.0
    heartbeat_expire: float = 20.0
    max_loop_stall: float | None = None
    max_record_size: int = 64 * 1024 * 1024
    max_reports: int = 1_000_000
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
        if self.data_dir is not None:
            _check_data_dir(self.data_dir)
        if self.url is not None:
            _check_url(self.url)
            if self.data_dir is not None:
                raise RushConfigError(
                    "url and data_dir exclude each other: data_dir is for the embedded server, which has no url"
                )
        for name in (*_SECONDS, *_WHOLE):
            if (value := getattr(self, name)) is not None or name != "max_loop_stall":
                object.__setattr__(self, name, _as_setting(name, value))
        if self.heartbeat_expire < 2 * self.heartbeat_period:
            raise RushConfigError(
                f"heartbeat_expire must be at least twice the heartbeat_period of {self.heartbeat_period} s, "
                f"not {self.heartbeat_expire}"
            )
        for name in ("tls_ca_file", "tls_cert_file", "tls_key_file", "large_objects_path"):
            if (value := getattr(self, name)) is not None and not isinstance(value, str | os.PathLike):
                raise RushConfigError(f"{name} must be a path, not {type(value).__name__}: {value!r:.80}")
        if not isinstance(self.tls_check_hostname, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise RushConfigError(f"tls_check_hostname must be True or False, not {self.tls_check_hostname!r:.80}")
        if self.appendfsync not in ("always", "everysec", "no"):
            raise RushConfigError(f"appendfsync must be 'always', 'everysec' or 'no', not {self.appendfsync!r}")

    def __repr__(self) -> str:
        shown: list[str] = []
        for entry in fields(self):
            value: Any = getattr(self, entry.name)
            if value != entry.default:
                shown.append(f"{entry.name}={redact_url(value) if isinstance(value, str) else value!r}")
        return f"RushConfig({', '.join(shown)})"

    @classmethod
    def from_env(cls) -> RushConfig:
        """The configuration with the URL in `RUSH_URL`, else in `REDIS_URL`, else with the data directory in `RUSH_DATA_DIR`,
        else that of a private embedded server.

        A URL without a password gets the one in `RUSH_PASSWORD`, which is not quoted. Every other setting is `RUSH_` and its
        name in capitals, such as `RUSH_TLS_CA_FILE`.

        Returns:
            The configuration.

        Raises:
            RushConfigError: a variable holds no URL, or no value, that can be used.
        """
        return with_address_of_environment(with_settings_of_environment(cls()))[0]

    def at(self, url: str) -> RushConfig:
        """Returns the same settings for another server.

        Args:
            url: the URL of that server.

        Returns:
            The settings with this `url` and no `data_dir`.

        Raises:
            RushConfigError: the URL cannot be used.
        """
        return replace(self, url=url, data_dir=None)

    @property
    def where(self) -> str:
        """The address of the server for messages, without its password."""
        if self.url is not None:
            return redact_url(self.url)
        if self.data_dir is not None:
            return f"the embedded server in {as_path(self.data_dir)}"
        return "a private server, which is empty at first (neither a URL nor a data_dir is given)"


explain_arguments(RushConfig, "__init__")

_SECONDS = ("heartbeat_period", "heartbeat_expire", "max_loop_stall", "connect_timeout", "response_timeout", "retry_deadline")
_WHOLE = ("max_record_size", "max_reports", "max_start_args_size", "wait_replicas")
_MAY_BE_0 = ("retry_deadline", "wait_replicas")
_LONGEST = 1e9  # seconds; a thread cannot wait much longer


def _as_setting(name: str, value: Any) -> float:
    try:
        number = as_number(value, name) if name in _WHOLE else as_real(value, name)
    except (TypeError, ValueError) as error:
        raise RushConfigError(str(error)) from None
    if number < 0 or (number == 0 and name not in _MAY_BE_0):
        raise RushConfigError(f"{name} must be {'at least' if name in _MAY_BE_0 else 'more than'} 0, not {value}")
    if name in _SECONDS and number > _LONGEST:
        raise RushConfigError(f"{name} must be at most {_LONGEST:,.0f} seconds, not {value}")
    return value if type(value) in (int, float) else number


# numbers that callers pass: a wrong one is refused where it comes in, and numbers of other packages become those of Python


def as_number(value: Any, what: str, most: int = 2**53) -> int:
    """Returns the argument `what` as a whole number from 0 to `most`."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = index(value)
    except TypeError:
        raise TypeError(f"{what} must be a whole number, not {type(value).__name__}: {value!r:.80}") from None
    if not 0 <= number <= most:
        raise ValueError(f"{what} must be 0 to {most:,}, not {number:,}")
    return number


def as_real(value: Any, what: str) -> float:
    """Returns the argument `what` as a finite float."""
    number = _as_float(value, what)
    if not math.isfinite(number):
        raise ValueError(f"{what} must be finite, not {number}")
    return number


def as_seconds(value: Any, what: str = "timeout") -> float | None:
    """Returns a time to wait, at least 0; None for None and for infinity, which set no limit."""
    number = math.inf if value is None else _as_float(value, what)
    if math.isnan(number):
        raise ValueError(f"{what} must be a number of seconds, not nan")
    return None if number == math.inf else max(number, 0.0)


def _as_float(value: Any, what: str) -> float:
    try:
        if isinstance(value, bool | str | bytes) or type(value).__name__ == "bool":  # that of numpy, too
            raise TypeError
        return float(value)
    except OverflowError:
        raise ValueError(f"{what} is beyond the largest float") from None
    except (TypeError, ValueError):
        raise TypeError(f"{what} must be a number, not {type(value).__name__}: {value!r:.80}") from None


def with_heartbeat(config: RushConfig, period: float | None, expire: float | None) -> RushConfig:
    """Returns settings with another heartbeat; None keeps the period, or the expiry, that they have."""
    if period is None and expire is None:
        return config
    return replace(
        config,
        heartbeat_period=config.heartbeat_period if period is None else period,
        heartbeat_expire=config.heartbeat_expire if expire is None else expire,
    )


def connection_part(config: RushConfig) -> RushConfig:
    """Returns the settings of the connection alone, the others at their defaults. Clients share a connection where these are
    equal."""
    return replace(config, **{field.name: field.default for field in fields(config) if field.name in _NOT_OF_CONNECTION})


_NOT_OF_CONNECTION = frozenset(
    {
        *("heartbeat_period", "heartbeat_expire", "max_loop_stall"),
        *("max_record_size", "max_reports", "max_start_args_size", "large_objects_path"),
    }
)


def with_data_dir(config: RushConfig | str | None, data_dir: str | os.PathLike[str]) -> RushConfig:
    """Returns settings with a data directory that was given beside them.

    Raises:
        RushConfigError: they have an address of their own, or the directory cannot be used.
    """
    if isinstance(config, str) or (config is not None and config.url is not None):
        raise RushConfigError(
            "data_dir is for the embedded server, and a URL names a server that keeps its data itself: leave one of the two out"
        )
    if config is not None and config.data_dir is not None:
        raise RushConfigError("the config has a data_dir already: leave the one beside it out")
    return replace(config or with_settings_of_environment(RushConfig()), data_dir=data_dir)


def as_path(data_dir: str | os.PathLike[str]) -> Path:
    """Returns a data directory as an absolute path."""
    return Path(data_dir).expanduser().absolute()


def lacks_directory(config: RushConfig) -> bool:
    """Returns whether there is a data directory to read, and it does not exist."""
    return config.data_dir is not None and not as_path(config.data_dir).is_dir()


def _check_data_dir(value: object) -> None:
    path: object = os.fspath(cast("os.PathLike[str]", value)) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str):
        raise RushConfigError(f"data_dir is a str or a Path, not {type(path).__name__}")
    if any(path.startswith(f"{scheme}://") for scheme in SCHEMES):
        raise RushConfigError("data_dir is a directory, not a URL: give the URL as the config, Rush('name', 'redis://host')")
    if not path or "\0" in path:
        raise RushConfigError(f"data_dir names no directory: {path!r}")


def _check_url(url: str) -> None:
    if not isinstance(url, str):  # pyright: ignore[reportUnnecessaryIsInstance] - callers need not be typed
        raise RushConfigError(f"url must be a string, not {type(url).__name__}")
    known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
    if "://" not in url:
        raise RushConfigError(
            f"the URL must start with one of {known}, and what was given does not (it is not shown, as it may be a password). "
            "A directory is given as data_dir=..."
        )
    try:
        parts = urlsplit(url)
        hosts = hosts_of(url)
    except ValueError:
        raise _unquoted(url) from None  # the error of urllib is not shown: it may quote a part of the password
    if parts.scheme not in SCHEMES:
        raise RushConfigError(f"the URL {redact_url(url)!r} must start with one of {known}")
    # A password with one of `/?#` ends the part before the host there, and its `@` is left behind.
    if parts.scheme == "unix" and parts.netloc and not parts.netloc.endswith("@"):
        raise RushConfigError(
            f"{redact_url(url)!r} cannot be used as a URL: the path of a socket begins with a slash, unix:///path/to/socket, "
            f"and {_QUOTING}"
        )
    if parts.scheme != "unix" and "@" in parts.path + parts.query.partition("=")[0] + parts.fragment:
        raise _unquoted(url)
    if parts.scheme == "unix":
        if not parts.path:
            raise RushConfigError(f"the URL {redact_url(url)!r} names no socket: write unix:///path/to/socket")
        return
    _, _, kind = parts.scheme.partition("+")
    if not all(host for host, _ in hosts):
        raise RushConfigError(f"the URL {redact_url(url)!r} names no host: write {_EXAMPLES[kind].format(parts.scheme)}")
    if any(port == 0 for _, port in hosts):
        raise RushConfigError(f"the URL {redact_url(url)!r} has port 0: name the server's port")
    if len(hosts) > 1 and not kind:
        raise RushConfigError(
            f"the URL {redact_url(url)!r} names several hosts: {parts.scheme}+sentinel://host,host/service asks Sentinels for "
            f"the master of a service, {parts.scheme}+cluster://host,host is for a cluster"
        )
    if kind == "sentinel" and not parts.path.strip("/"):
        raise RushConfigError(f"the URL {redact_url(url)!r} names no service: write {_EXAMPLES[kind].format(parts.scheme)}")
    if kind == "cluster" and parts.path not in ("", "/", "/0"):
        raise RushConfigError(f"the URL {redact_url(url)!r} names a database: a cluster has no other than 0, leave it out")


_EXAMPLES = {"": "{}://host:6379/0", "sentinel": "{}://host:26379,host:26379/service", "cluster": "{}://host:6379,host:6379"}


def hosts_of(url: str) -> list[tuple[str, int]]:
    """Returns the hosts that a URL names, which commas separate, each with its port.

    Raises:
        ValueError: a port is none.
    """
    parts = urlsplit(url)
    default = 26379 if parts.scheme.endswith("+sentinel") else 6379
    hosts = [urlsplit(f"//{host}") for host in parts.netloc.rpartition("@")[2].split(",")]
    return [(host.hostname or "", default if host.port is None else host.port) for host in hosts]


_QUOTING = "special characters of a password must be quoted with urllib.parse.quote(password, safe='')"


def _unquoted(url: str) -> RushConfigError:
    return RushConfigError(
        f"{redact_url(url)!r} cannot be used as a URL: the port must be a number up to 65535, and {_QUOTING}"
    )


def with_address_of_environment(settings: RushConfig) -> tuple[RushConfig, str | None]:
    """Completes settings by the address in `RUSH_URL`, else in `REDIS_URL`, else by the data directory in `RUSH_DATA_DIR`; an
    empty variable counts as unset.

    Returns:
        The settings, and the variable; None where none is set. A URL without a password has the one in `RUSH_PASSWORD`.

    Raises:
        RushConfigError: the variable holds no address that can be used.
    """
    for name in ("RUSH_URL", "REDIS_URL", "RUSH_DATA_DIR"):
        if value := os.environ.get(name):
            try:
                if name == "RUSH_DATA_DIR":
                    return replace(settings, data_dir=value), name
                _check_url(value)
            except RushConfigError as error:
                raise RushConfigError(f"the environment variable {name}: {error}") from None
            return settings.at(with_password_of_environment(value)), name
    return settings, None


def with_settings_of_environment(settings: RushConfig) -> RushConfig:
    """Completes settings by the variables that have their names, without the address; an empty variable counts as unset.

    Raises:
        RushConfigError: a variable holds no value that can be used.
    """
    given: dict[str, Any] = {}
    for variable in (
        *("RUSH_HEARTBEAT_PERIOD", "RUSH_HEARTBEAT_EXPIRE", "RUSH_MAX_LOOP_STALL", "RUSH_MAX_RECORD_SIZE", "RUSH_MAX_REPORTS"),
        *("RUSH_MAX_START_ARGS_SIZE", "RUSH_LARGE_OBJECTS_PATH", "RUSH_TLS_CA_FILE", "RUSH_TLS_CERT_FILE", "RUSH_TLS_KEY_FILE"),
        *("RUSH_TLS_CHECK_HOSTNAME", "RUSH_CONNECT_TIMEOUT", "RUSH_RESPONSE_TIMEOUT", "RUSH_RETRY_DEADLINE"),
        *("RUSH_WAIT_REPLICAS", "RUSH_APPENDFSYNC"),
    ):
        if text := os.environ.get(variable):
            given[variable] = text
    try:
        named = {variable.removeprefix("RUSH_").lower(): text for variable, text in given.items()}
        return replace(settings, **{name: _setting_of(name, text) for name, text in named.items()})
    except RushConfigError as error:
        raise RushConfigError(f"in the environment, {', '.join(given)}: {error}") from None


def _setting_of(name: str, text: str) -> Any:
    if name == "tls_check_hostname":
        if text.lower() not in ("true", "false", "1", "0"):
            raise RushConfigError(f"{name} must be true or false, not {text!r:.80}")
        return text.lower() in ("true", "1")
    if name in (*_SECONDS, *_WHOLE):
        try:
            return int(text) if name in _WHOLE else float(text)
        except ValueError:
            raise RushConfigError(f"{name} must be a {'whole ' * (name in _WHOLE)}number, not {text!r:.80}") from None
    return text


_PARTS = re.compile(
    r"(?P<scheme>[^:]*:)(?://(?P<authority>[^/?#]*))?(?P<path>[^?#]*)(?:\?(?P<query>[^#]*))?(?P<rest>.*)", re.DOTALL
)


def with_password_of_environment(url: str) -> str:
    """Adds the password in `RUSH_PASSWORD` to a URL that has none.

    Raises:
        RushConfigError: the password is not UTF-8.
    """
    password = os.environ.get("RUSH_PASSWORD")
    parts = _PARTS.fullmatch(url)
    if not password or parts is None:
        return url
    user_info, _, host = (parts["authority"] or "").rpartition("@")
    user, _, own = user_info.partition(":")
    if own or any(_name(option) == "password" for option in _options(parts)):
        return url
    try:
        quoted = quote(password, safe="")
    except UnicodeEncodeError:
        raise RushConfigError("the environment variable RUSH_PASSWORD is not UTF-8: put the password into RUSH_URL") from None
    return _url_of(parts, f"{user}:{quoted}@{host}", _options(parts))


def without_password(url: str) -> str:
    """Removes every password from a URL."""
    parts = _PARTS.fullmatch(url)
    if parts is None:
        return url
    user_info, _, host = (parts["authority"] or "").rpartition("@")
    user = user_info.partition(":")[0]
    return _url_of(
        parts, f"{user}@{host}" if user else host, [option for option in _options(parts) if _name(option) not in SECRET_OPTIONS]
    )


def _options(url: re.Match[str]) -> list[str]:
    return url["query"].split("&") if url["query"] else []


def _name(option: str) -> str:
    return unquote_plus(option.partition("=")[0])


def _url_of(url: re.Match[str], authority: str, options: list[str]) -> str:
    query = f"?{'&'.join(options)}" if options else ""
    slashes = "//" if url["authority"] is not None or authority else ""
    return f"{url['scheme']}{slashes}{authority}{url['path']}{query}{url['rest']}"
