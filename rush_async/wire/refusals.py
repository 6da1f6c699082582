"""What a server's error reply means, in words for a person."""

from __future__ import annotations

import hiredis

from rush_async.config import RushConfig
from rush_async.errors import RushConnectionError, RushError, ServerFullError

__all__ = ["acl_remedy", "refusal"]


def acl_remedy(network_id: str = "") -> str:
    """What a user with restricted rights must be allowed."""
    pattern = f"rush:{{{network_id}}}:*" if network_id else "rush:*"
    return (
        f"If the user's rights are restricted, allow it: ACL SETUSER <user> ~{pattern} &{pattern} "
        "+@read +@write +@scripting +@pubsub +@connection +@transaction +info +time"
    )


def refusal(reply: hiredis.ReplyError, config: RushConfig) -> Exception:
    """The error for a person that a server's error reply means."""
    text = str(reply).rstrip(".")
    if text.startswith(("OOM", "MISCONF")):
        return ServerFullError(
            f"{config.where} is full and refused the call, nothing of it was done: "
            f"raise its maxmemory, or reset networks that are not needed ({text})"
        )
    # In scripts, Redis 7.0 says it in its own way.
    if text.startswith("NOPERM") or "ACL failure" in text or "can't run this command" in text:
        return RushConnectionError(f"{config.where} does not allow this user the call: {text}. {acl_remedy()}")
    return RushError(f"{config.where} refused a call: {text}")
