"""Which server a URL means: the one that it names, the master that Sentinels tell, or the node of a cluster with a slot."""

from __future__ import annotations

import random
from typing import Any, cast
from urllib.parse import unquote, urlsplit, urlunsplit

import anyio
from redis.asyncio.cluster import ClusterNode, NodesManager
from redis.asyncio.connection import Connection, SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import RedisClusterException

from rush_async.config import RushConfig, hosts_of
from rush_async.errors import RushConfigError, RushConnectionError
from rush_async.wire.transport import ServerFinder

__all__ = ["Topology", "slot_of", "url_db"]

_TRIES = 4  # Sentinels, or nodes, that are asked within one `connect_timeout` although none answers
_OF_SENTINELS = {"sentinel_username": "username", "sentinel_password": "password"}


def _scheme(config: RushConfig) -> tuple[str, str]:
    """Returns the scheme of a connection, and `sentinel`, `cluster` or nothing."""
    assert config.url is not None
    base, _, kind = urlsplit(config.url).scheme.partition("+")
    return base, kind


def slot_of(config: RushConfig, key: str) -> int | None:
    """Returns the slot of a key where the URL names a cluster; None for any other server."""
    return key_slot(key.encode()) if _scheme(config)[1] == "cluster" else None


def url_db(config: RushConfig) -> int:
    """Returns the number of the database that the URL selects."""
    return int(_url_options(config).get("db") or 0)


def _url_options(config: RushConfig) -> dict[str, Any]:
    url, (base, kind) = config.url, _scheme(config)
    assert url is not None
    if kind:
        parts = urlsplit(url)
        user_info = "".join(parts.netloc.rpartition("@")[:2])
        url = urlunsplit((base, f"{user_info}localhost", "", parts.query, ""))
    try:
        options = dict(parse_url(url))
    except (ValueError, TypeError) as error:
        raise RushConfigError(f"the URL {config.where!r} cannot be used: {error}") from None
    options.pop("connection_class", None)
    if kind == "cluster" and options.get("db"):
        raise RushConfigError(f"the URL {config.where!r} names a database: a cluster has no other than 0, leave it out")
    return options


def _connection_options(config: RushConfig) -> dict[str, Any]:
    options = _url_options(config) | {
        "protocol": 2,  # no push frame may ever stand between two answers
        "socket_connect_timeout": config.connect_timeout,
        "driver_info": None,
    }
    if _scheme(config)[0] == "rediss":
        options |= {
            "ssl_ca_certs": config.tls_ca_file,
            "ssl_certfile": config.tls_cert_file,
            "ssl_keyfile": config.tls_key_file,
            "ssl_check_hostname": config.tls_check_hostname,
        }
    return options


class Topology(ServerFinder):
    """Finds the server that a URL means, each time anew: after a failover it is another one.

    Args:
        config: the URL, and how long to look.
        slot: in a cluster, the slot whose master is meant.
    """

    def __init__(self, config: RushConfig, slot: int | None = None) -> None:
        self.scheme, self._kind = _scheme(config)
        self._config = config
        self._slot = slot
        self._uses_tls = self.scheme == "rediss"
        self.options = _connection_options(config)
        self._of_sentinels = {
            name: self.options.pop(option) for option, name in _OF_SENTINELS.items() if option in self.options
        }
        self.moves = bool(self._kind)
        self._nodes: list[tuple[str, int]] = []  # of the cluster, as it was found last

    async def find(self) -> tuple[str, int] | None:
        """Asks the Sentinels, or the nodes, that the URL names."""
        match self._kind:
            case "sentinel":
                return await self._ask_sentinels()
            case "cluster":
                return await self._ask_nodes()
            case _:
                return None

    def _asking_options(self) -> dict[str, Any]:
        timeout = self._config.connect_timeout / _TRIES
        return {"socket_timeout": timeout, "socket_connect_timeout": timeout, "retry": Retry(NoBackoff(), 0), "protocol": 2}

    async def _ask_sentinels(self) -> tuple[str, int]:
        assert self._config.url is not None
        service = unquote(urlsplit(self._config.url).path[1:])
        hosts = hosts_of(self._config.url)
        tls = {name: value for name, value in self.options.items() if name.startswith("ssl_")}
        # Shuffled, so that one that does not answer is not asked first each time.
        sentinels = Sentinel(
            random.sample(hosts, len(hosts)),
            sentinel_kwargs={**self._asking_options(), **tls, **self._of_sentinels, "ssl": self._uses_tls},
        )
        try:
            host, port = cast("tuple[str, int]", await sentinels.discover_master(service))
        except MasterNotFoundError:  # it quotes the options of each connection, passwords among them
            raise RushConnectionError(
                f"no Sentinel of {self._config.where} knows a master {service!r} that is up: are these the hosts and ports of "
                "the Sentinels, is that the name in their `sentinel monitor`, and may this program connect to them?"
            ) from None
        finally:
            with anyio.CancelScope(shield=True):
                await sentinels.aclose()
        return host, port

    async def _ask_nodes(self) -> tuple[str, int]:
        assert self._config.url is not None
        assert self._slot is not None
        options: dict[str, Any] = {name: value for name, value in self.options.items() if name not in ("host", "port")}
        options |= {**self._asking_options(), "connection_class": SSLConnection if self._uses_tls else Connection}
        hosts = dict.fromkeys([*hosts_of(self._config.url), *self._nodes])
        nodes = NodesManager(
            [ClusterNode(host, port, **options) for host, port in hosts],
            require_full_coverage=False,
            connection_kwargs=options,
            dynamic_startup_nodes=False,
        )
        try:
            await nodes.initialize()
            self._nodes = [(node.host, int(node.port)) for node in nodes.nodes_cache.values()]
            masters = nodes.slots_cache.get(self._slot)
        except (RedisClusterException, IndexError) as error:  # IndexError: no node has any slot
            raise RushConnectionError(
                f"no node of {self._config.where} tells its slots: {error}. A user with restricted rights needs +cluster|slots"
            ) from error
        finally:
            with anyio.CancelScope(shield=True):
                await nodes.aclose("startup_nodes")
        if not masters:
            raise RushConnectionError(f"no node of {self._config.where} has slot {self._slot}: is the cluster complete?")
        return masters[0].host, int(masters[0].port)
