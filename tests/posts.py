"""What a worker that stands by asks the server, one question at a time."""

from __future__ import annotations

from typing import Literal

from rush_async import RushClient
from rush_async.store.tasks import Popped, Standing


def channel_of(client: RushClient) -> str:
    """Where the clients of this event loop are told what they are handed."""
    network = client._net  # pyright: ignore[reportPrivateUsage]
    return f"{network.keys.standby}:{network.tasks.calls.client}"


async def ask(client: RushClient, what: Literal["in", "out"], worker_id: str, post: int = 1) -> Standing:
    """What the server answers; somebody listens, and does nothing with what it is told."""
    network, channel = client._net, channel_of(client)  # pyright: ignore[reportPrivateUsage]

    def nothing(*_: bytes | Popped) -> None:
        pass

    network.link.subscription.subscribe(channel, nothing, nothing)
    await network.link.subscription.confirmed(channel)
    return await network.tasks.stand_by(what, worker_id, post, nothing)
