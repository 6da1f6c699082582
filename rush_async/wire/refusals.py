"""The errors that callers get for the error replies and the silence of a server."""

from __future__ import annotations

from rush_async.errors import DecodeError, RushConnectionError, RushError, ServerFullError
from rush_async.wire.transport import Word

__all__ = ["acl_remedy", "broken", "forgotten", "gave_up", "refusal", "unacknowledged"]


def acl_remedy(network_id: str = "") -> str:
    """Returns the rule that a user with restricted rights needs, as a sentence for an error message."""
    pattern = f"rush:{{{network_id}}}:*" if network_id else "rush:*"
    return (
        f"If the user's rights are restricted, allow it: ACL SETUSER <user> ~{pattern} &{pattern} "
        "+@read +@write +@scripting +@pubsub +@connection +@transaction +info +time"
    )


def refusal(reply: Exception, where: str, key: Word = "") -> RushError:
    """Returns the error for an error reply of the server at `where` to a command on a key."""
    text = str(reply).rstrip(".")
    if text.startswith("WRONGTYPE") and key:
        key = key.decode() if isinstance(key, bytes) else key
        return DecodeError(
            f"another program has put something else in the place of {key}, on {where}: remove or mend it ({text})"
        )
    if text.startswith("MISCONF"):
        return ServerFullError(
            f"{where} cannot write to its disk and refused the call, nothing of it was done: "
            f"make room on that disk, or see its log for another reason ({text})"
        )
    if text.startswith("OOM"):
        return ServerFullError(
            f"{where} is full and refused the call, nothing of it was done: "
            f"raise its maxmemory, or reset networks that are not needed ({text})"
        )
    # In scripts, Redis 7.0 words it in its own way.
    if text.startswith("NOPERM") or "ACL failure" in text or "can't run this command" in text:
        return RushConnectionError(f"{where} does not allow this user the call: {text}. {acl_remedy()}")
    return RushError(f"{where} refused a call: {text}")


def gave_up(after: float, reason: Exception, *, was_sent: bool) -> RushConnectionError:
    """Returns the error for a call that was given up after some seconds."""
    cause = reason if isinstance(reason, RushConnectionError) else RushConnectionError(str(reason))
    sent = "it was sent, so it may have been executed" if was_sent else "it was never sent"
    error = RushConnectionError(
        f"gave up after {after:.3g} s: {cause.problem} ({sent})",
        cause.advice,
        is_password_refused=cause.is_password_refused,
        is_final=cause.is_final,
    )
    error.__cause__ = reason
    return error


def broken(where: str, error: Exception | None) -> RushConnectionError:
    """Returns the error for commands that were sent on a connection that broke."""
    reason = RushConnectionError(f"the connection to {where} broke: {error}")
    reason.__cause__ = error
    return reason


def unacknowledged(where: str, n: object, n_replicas: int, deadline: float) -> RushConnectionError:
    """Returns the error for a call that was executed, and that too few replicas have acknowledged."""
    return RushConnectionError(
        f"{where} executed a call that {n} of {n_replicas} replicas have acknowledged within {deadline:g} s: see after the "
        "replicas, or lower RushConfig(wait_replicas=...)"
    )


def forgotten(where: str, script: str) -> RushConnectionError:
    """Returns the error for a call that was repeated so late that its answer may be gone."""
    return RushConnectionError(
        f"{where} does not know any more whether it executed a call ({script}) that was made an hour ago or more: see what "
        "became of it before it is made again"
    )
