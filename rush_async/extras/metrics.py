"""Metrics of networks for Prometheus: what a process knows of them, and what its own workers do.

```python
async with Rush("branin") as rush:
    metrics = NetworkMetrics(rush)
    text, content_type = await metrics.scrape()
```

Nothing polls: a scrape asks the server once, in one round trip for all networks, and shows what is known where that does not
answer. What the workers of this process run is counted as it happens, and costs no call.

Needs the extra `metrics`: `pip install "rush-async[metrics]"`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence

from rush_async.client.client import RushClient
from rush_async.errors import RushError
from rush_async.model import TASK_STATES, TaskState, WorkerState
from rush_async.network.network import Network

try:
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ImportError('metrics need prometheus-client: pip install "rush-async[metrics]"') from error

__all__ = ["BUCKETS", "NetworkMetrics"]

logger = logging.getLogger(__name__)

_ANSWER = 2.0  # seconds for the server to answer a scrape; then it shows what is known
BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 1800.0, 3600.0)
"""The upper bounds of the durations of tasks, in seconds. The last bucket, of what took longer, has none."""


class _Tally:
    """What the workers of this process do in one network. It is written in their event loop and may be read in any thread."""

    def __init__(self) -> None:
        self.n_finished = 0
        self.n_failed = 0
        self.n_within = [0] * (len(BUCKETS) + 1)
        self.seconds = 0.0
        self._begun: dict[str, float] = {}

    def tasks_held(self, keys: Sequence[str]) -> None:
        now = time.monotonic()
        for key in keys:
            self._begun[key] = now

    def tasks_ended(self, keys: Sequence[str], state: TaskState | None) -> None:
        now = time.monotonic()
        for key in keys:
            begun = self._begun.pop(key, None)
            if state is not None and begun is not None:
                self.n_within[bisect_left(BUCKETS, now - begun)] += 1
                self.seconds += now - begun
        if state == "finished":
            self.n_finished += len(keys)
        elif state == "failed":
            self.n_failed += len(keys)

    @property
    def n_running(self) -> int:
        return len(self._begun)

    @property
    def oldest_age(self) -> float:
        """For how many seconds the task has run here that was begun first; 0 where none runs."""
        now = time.monotonic()
        return now - min(self._begun.copy().values(), default=now)

    @property
    def buckets(self) -> list[tuple[str, float]]:
        """For each bound how many tasks took no longer."""
        n, pairs = 0, list[tuple[str, float]]()
        for bound, more in zip([*map(str, BUCKETS), "+Inf"], self.n_within, strict=True):
            n += more
            pairs.append((bound, n))
        return pairs


class _Watched:
    """One network that is shown.

    Attributes:
        workers: how many workers are in each state, as the server answered last.
        is_up: whether the server answered the last scrape.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        observer = network.local_workers.observer
        self.tally = network.local_workers.observer = observer if isinstance(observer, _Tally) else _Tally()
        self.workers: dict[WorkerState, int] = {}
        self.is_up = False

    async def ask(self) -> None:
        """Asks the server for the position and the workers, in one round trip."""
        self.is_up = False
        try:
            async with asyncio.timeout(_ANSWER):
                _, self.workers = await asyncio.gather(self.network.tasks.read_position(), self.network.workers.count_states())
            self.is_up = True
        except (TimeoutError, RushError) as error:
            logger.info("a scrape shows what is known of network %r: %s", self.network.network_id, error or "no answer")


class NetworkMetrics(Collector):
    """Shows networks to Prometheus, labelled by network.

    It is a collector, so `prometheus_client.REGISTRY.register(metrics)` adds it to the metrics of a program that has its own;
    that shows what is known, without asking the server.

    Args:
        clients: open clients of the networks to show. A network is shown until `forget`, also after its client was closed.

    Attributes:
        registry: has these metrics alone.
    """

    def __init__(self, *clients: RushClient) -> None:
        self.registry = CollectorRegistry()
        self._watched: dict[str, _Watched] = {}
        for client in clients:
            self.watch(client)
        self.registry.register(self)

    def watch(self, client: RushClient) -> None:
        """Shows the network of an open client from here on, and counts what workers in its event loop do.

        Args:
            client: the client.

        Raises:
            NetworkStateError: the client is not open.
        """
        self.watch_network(client._net)  # pyright: ignore[reportPrivateUsage]

    def watch_network(self, network: Network) -> None:
        """Shows an open network, for the code that has no client of it."""
        watched = self._watched.get(network.network_id)
        if watched is None or watched.network is not network:
            self._watched[network.network_id] = _Watched(network)

    def forget(self, client: RushClient) -> None:
        """Shows the network of this client no longer.

        Args:
            client: the client, also a closed one.
        """
        self._watched.pop(client.network_id, None)

    async def ask(self) -> None:
        """Asks the server for what this process does not follow, in one round trip for all networks.

        Where the server does not answer within two seconds, what is known stays, and `rush_up` is 0.
        """
        await asyncio.gather(*[watched.ask() for watched in self._watched.values()])

    async def scrape(self, accept: str = "") -> tuple[bytes, str]:
        """Asks the server, and returns the metrics for Prometheus.

        Args:
            accept: the header `Accept` of the request.

        Returns:
            The text and its content type.
        """
        await self.ask()
        return self.render(accept)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Returns what is known, without asking the server. May be called in any thread.

        Args:
            accept: the header `Accept` of the request.

        Returns:
            The text and its content type.
        """
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def collect(self) -> Iterator[Metric]:
        """Yields the metrics of what is known, for a registry."""
        watched = [(name, each, each.network.position.latest) for name, each in list(self._watched.items())]
        tasks = GaugeMetricFamily("rush_tasks", "Tasks of the network in each state.", labels=("network", "state"))
        workers = GaugeMetricFamily("rush_workers", "Workers of the network in each state.", labels=("network", "state"))
        for name, each, position in watched:
            for state, n in zip(TASK_STATES, position.counts, strict=True):
                tasks.add_metric((name, state), n)
            for state, n in (each.workers | {"running": position.n_workers}).items():
                workers.add_metric((name, state), n)
        yield tasks
        yield workers
        for metric, what, value in _OF_EACH:
            family_type = CounterMetricFamily if metric.endswith("_total") else GaugeMetricFamily
            family = family_type(metric, what, labels=("network",))
            for name, each, _ in watched:
                family.add_metric((name,), value(each))
            yield family
        durations = HistogramMetricFamily(
            "rush_task_duration_seconds", "How long tasks ran that workers of this process ended.", labels=("network",)
        )
        for name, each, _ in watched:
            durations.add_metric((name,), each.tally.buckets, each.tally.seconds)
        yield durations


# Counters end in `_total`; the others are gauges.
_OF_EACH: tuple[tuple[str, str, Callable[[_Watched], float]], ...] = (
    ("rush_up", "Whether the server answered the last scrape.", lambda each: each.is_up),
    ("rush_network_stopped", "Whether the network has stopped.", lambda each: each.network.position.stop is not None),
    ("rush_tasks_finished_total", "Tasks that workers of this process finished.", lambda each: each.tally.n_finished),
    ("rush_tasks_failed_total", "Tasks that failed while workers of this process ran them.", lambda each: each.tally.n_failed),
    ("rush_tasks_held", "Tasks that workers of this process run.", lambda each: each.tally.n_running),
    ("rush_oldest_task_seconds", "Age of the oldest of them, 0 without one.", lambda each: each.tally.oldest_age),
    ("rush_heartbeats_total", "Heartbeats of this process that were written.", lambda each: each.network.heartbeat.n_beats),
    ("rush_reconnects_total", "Reconnects of the command connection.", lambda each: each.network.link.connection.n_reconnects),
)
