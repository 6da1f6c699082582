"""Several processes of `rush-async worker`: each runs workers of its own, and one more passes signals on and waits for them."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterable

from rush_async.cli.exit_codes import DONE, FAILED, INTERRUPTED, REFUSED, SHUT_OUT, UNREACHABLE

__all__ = ["run_in_processes", "worst"]

logger = logging.getLogger(__name__)

_ENDS = (signal.SIGTERM, signal.SIGINT)
_BY_SEVERITY = (DONE, INTERRUPTED, 128 + signal.SIGTERM, SHUT_OUT, FAILED, UNREACHABLE, REFUSED)


def run_in_processes(n: int) -> int | None:
    """Forks the program, which has no thread yet.

    Args:
        n: how many processes run workers.

    Returns:
        None in each of them, which continues as a program of its own; once all have ended, the worst of their exit codes in the
        process that was forked.
    """
    sys.stdout.flush()
    alive, lifeline = os.pipe()  # its end tells the processes that this one has died
    signal.signal(signal.SIGCHLD, lambda number, frame: None)  # a signal that is ignored could not be waited for
    signal.pthread_sigmask(signal.SIG_BLOCK, (*_ENDS, signal.SIGCHLD))
    living: set[int] = set()
    for _ in range(n):
        pid = os.fork()
        if pid == 0:
            os.close(lifeline)
            _begin(alive)
            return None
        living.add(pid)
    os.close(alive)
    return _attend(living)


def _begin(alive: int) -> None:
    """Makes a process that was just forked a program of its own."""
    os.setsid()  # Ctrl-C reaches the process that was forked, which passes it on: not twice
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*_ENDS, signal.SIGCHLD))

    def end_with_parent() -> None:
        os.read(alive, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_with_parent, name="rush-async lifeline", daemon=True).start()


def _attend(living: set[int]) -> int:
    """Passes signals on until all processes have ended, and returns the worst of their exit codes."""
    codes: list[int] = []
    while living:
        number = signal.sigwait((*_ENDS, signal.SIGCHLD))
        if number in _ENDS:
            for pid in living:
                os.kill(pid, number)  # it was not waited for, so that its id belongs to no other process
            continue
        for pid in list(living):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                living.discard(pid)
                code = os.waitstatus_to_exitcode(status)
                codes.append(128 - code if code < 0 else code)
                if codes[-1] != DONE:
                    logger.warning("process %d has ended with code %d, %d continue", pid, codes[-1], len(living))
    return worst(codes)


def worst(codes: Iterable[int]) -> int:
    """Returns the worst of some exit codes; the worst of all is one of a process that was killed."""
    return max(codes, key=lambda code: _BY_SEVERITY.index(code) if code in _BY_SEVERITY else len(_BY_SEVERITY))
