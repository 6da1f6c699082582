"""Reading the reports of running tasks, for every client."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from rush_async.client.arguments import as_keys
from rush_async.client.session import Session, Shared
from rush_async.store.finished import Decoder, Records

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Reports"]


class ReportCache(Protocol):
    """The reports that were read in this event loop."""

    records: Records
    decoder: Decoder

    async def read(self) -> None:
        """Reads all reports that the network has now."""
        ...


class ReportFrames(Protocol):
    """Makes frames of them."""

    def frame(self, keys: Collection[str] | None) -> pl.DataFrame:
        """The reports on these tasks, or on all."""
        ...


class WithReports(Shared, Protocol):
    """A network with reports."""

    @property
    def report_cache(self) -> ReportCache: ...


N = TypeVar("N", bound=WithReports)


class Reports(Session[N]):
    """A client that reads reports."""

    async def fetch_reports(self, keys: str | Sequence[str] | None = None) -> pl.DataFrame:
        """Fetches what workers reported on tasks while they ran, by `task.report({...})`. They are cached: only new ones go
        over the network.

        The network keeps the last `max_reports`. What it dropped before it was fetched is missing, and a warning says how many
        reports that are.

        Args:
            keys: the tasks, one key or several; without it all.

        Returns:
            A frame of your own, in the order of the reports: `keys` and `worker_id` (String), `at` (Datetime in UTC, by the
            server's clock), `attempt` (Int64), `step` (Int64: 1, 2, ... in each attempt; one is left out where a report was
            refused), and a column for each value; `values.<name>` if its name is one of these five.
        """
        wanted = None if keys is None else as_keys(keys)
        cache = self._net.report_cache
        frames = self._report_frames(cache)  # decodes while more is read
        await cache.read()
        return frames.frame(wanted)

    def _report_frames(self, cache: ReportCache) -> ReportFrames:
        """Returns what makes frames, which all clients of an event loop share."""
        raise NotImplementedError
