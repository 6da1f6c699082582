"""A connection that asks a server about itself; a refusal is an answer there, too."""

from __future__ import annotations

from typing import Any, NamedTuple

from redis.exceptions import NoPermissionError, RedisError, ResponseError

from rush_async.errors import RushConnectionError
from rush_async.wire.blocking import BlockingConnection
from rush_async.wire.transport import Word, pack

__all__ = ["Inspection", "Refusal"]


class Refusal(NamedTuple):
    """The answer of a server that does not execute a command.

    Attributes:
        text: what it said.
        is_for_rights: whether the user may not run the command, or not on this key or channel.
    """

    text: str
    is_for_rights: bool


class Inspection(BlockingConnection):
    """Asks the server commands that change nothing. It blocks its thread, and opens with the first command."""

    def ask(self, *words: Word) -> Any:
        """Sends one plain command.

        Returns:
            The reply; a `Refusal` where the server does not execute the command.

        Raises:
            RushConnectionError: the server cannot be reached.
        """
        try:
            return self._exchange(pack(words))
        except ResponseError as error:
            return Refusal(str(error), isinstance(error, NoPermissionError))
        except (RedisError, OSError) as error:
            self.close()
            raise RushConnectionError(f"{self._config.where} does not answer: {str(error).rstrip('.')}") from error
