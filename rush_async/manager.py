"""The manager: starts, watches and stops workers, and empties the network."""

from __future__ import annotations

from rush_async.client import RushClient
from rush_async.config import RushConfig
from rush_async.session import Schema

__all__ = ["Rush", "rsh"]


class Rush(RushClient):
    """The manager of a network."""

    async def reset(self, *, workers: bool = True) -> None:
        """Stops the workers and deletes everything; with `workers=False` deletes the tasks only, and workers go on."""
        await self._net.tasks.reset(workers=workers)


async def rsh(network_id: str | None = None, config: RushConfig | str | None = None, *, schema: Schema | None = None) -> Rush:
    """Opens a manager at once, for notebooks; end with `await rush.aclose()`."""
    return await Rush(network_id, config, schema=schema)
