"""A dict of `multiprocessing.Manager`: one process of this host holds it, the others set and get its items.

A task takes two calls: one records it, one replaces it with its result. The data end with the manager.
"""

from __future__ import annotations

import multiprocessing
import sys
import threading
import time
from multiprocessing.managers import BaseManager, DictProxy
from typing import Any

from stopwatch import arguments, in_processes, report, wait_for_all

KEY = b"peers"
held: dict[str, dict[str, Any]] = {}


class Holder(BaseManager):
    """Serves the dict of this process to processes that know the address."""


Holder.register("tasks", callable=lambda: held, proxytype=DictProxy)


def propose(tasks: Any, n: int) -> tuple[float, float]:
    """The work of one process."""
    prefix = multiprocessing.current_process().name
    tasks.get("connects")
    wait_for_all()
    begun = time.time()
    for at in range(n):
        key = f"{prefix}-{at}"
        tasks[key] = {"state": "running", "xs": {"x1": float(at), "x2": 0.5}}
        tasks[key] = {"state": "finished", "xs": {"x1": float(at), "x2": 0.5}, "ys": {"y": 0.25}}
    return begun, time.time()


def hold(n: int) -> None:
    """Holds n finished tasks until the standard input is closed."""
    held.update({str(at): {"state": "finished", "xs": {"x1": float(at), "x2": 0.5}, "ys": {"y": 0.25}} for at in range(n)})
    server = Holder(authkey=KEY).get_server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    report(url=server.address)
    sys.stdin.read()


def read(address: str) -> tuple[float, int]:
    """Connects and copies the dict."""
    begun = time.perf_counter()
    manager = Holder(address, KEY)
    manager.connect()
    tasks = manager.tasks().copy()
    return time.perf_counter() - begun, len(tasks)


if __name__ == "__main__":
    asked = arguments("propose", "hold", "read")
    if asked.action == "propose":
        with multiprocessing.Manager() as manager:
            tasks = manager.dict()
            seconds = in_processes(asked.processes, propose, tasks, asked.n // asked.processes)
            report(seconds=seconds, n=len(tasks))
    elif asked.action == "hold":
        hold(asked.n)
    else:
        seconds, n = read(asked.url)
        report(seconds=seconds, n=n)
