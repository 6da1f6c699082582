"""The name that a client numbers its calls under, which is for a limited time."""

from __future__ import annotations

import asyncio

from rush_async.store.keys import client_name

__all__ = ["RENAMED_AFTER", "WINDOW", "CallerName"]

WINDOW = 64  # calls of a client that may be unanswered; the scripts store as many answers
RENAMED_AFTER = 1_800.0  # seconds; the scripts refuse new calls under names that are an hour old


class CallerName:
    """The name of a client.

    Attributes:
        text: the name.
        old_at: when it is to be renewed, in the time of the event loop. The numbers of the calls continue under the next name.
    """

    def __init__(self) -> None:
        self.renew()

    def renew(self, at: float | None = None) -> None:
        """Takes another name, whose age counts from `at`, the server's time; by default from now."""
        self.text = client_name(at)
        self.old_at = asyncio.get_running_loop().time() + RENAMED_AFTER

    def slots(self, last: int) -> list[str]:
        """Where the server keeps the answers to the calls up to the number `last`."""
        return [f"{self.text}:{number % WINDOW}" for number in range(max(1, last - WINDOW + 1), last + 1)]
