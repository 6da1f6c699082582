"""How many compute threads a process of workers gets: its share of the cores that this machine lets it use.

numpy's BLAS, OpenMP, numexpr and polars each start a thread for every core when they are imported, unless a variable of the
environment gives another number. Eight processes on eight cores would compute with 64 threads.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

__all__ = ["thread_variables", "usable_cores"]


def thread_variables(n_threads: int | None = None, n_processes: int = 1) -> dict[str, str]:
    """Returns the variables to set in the environment of a process before it imports numpy or polars.

    Args:
        n_threads: the number of threads. None gives each process its share of the usable cores, and leaves the variables alone
            that the user has set.
        n_processes: how many processes share the cores.
    """
    share = str(max(1, usable_cores() // n_processes) if n_threads is None else n_threads)
    variables: dict[str, str] = {}
    for name in (
        *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"),
        *("VECLIB_MAXIMUM_THREADS", "POLARS_MAX_THREADS"),
    ):
        if n_threads is not None or not os.environ.get(name):
            variables[name] = share
    if "OMP_NUM_THREADS" not in variables:
        # These three take the user's OMP_NUM_THREADS, as long as they have no variable of their own.
        for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
            variables.pop(name, None)
    return variables


def usable_cores(root: Path = Path("/")) -> int:
    """Returns how many cores this process may use, by its CPU affinity and the quotas of its control groups.

    Args:
        root: the root of the file system.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([cores, *_quotas(root)])))


def _quotas(root: Path) -> Iterator[float]:
    """Yields the CPU quotas, in cores, of the control groups (cgroup version 1 or 2) that this process belongs to."""
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # no Linux
        return
    for membership in memberships:
        _, controllers, path = membership.split(":", 2)
        is_version_2 = not controllers
        if is_version_2 or "cpu" in controllers.split(","):
            mount = root / "sys/fs/cgroup" / ("" if is_version_2 else "cpu")
            group = PurePosixPath(path)
            # The quota of every group above holds too. In a container the path may be the host's: then only the mount exists.
            for each in (group, *group.parents):
                yield _quota(mount / str(each).lstrip("/"), is_version_2=is_version_2)


def _quota(group: Path, *, is_version_2: bool) -> float:
    files = ["cpu.max"] if is_version_2 else ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
    try:
        quota, period = map(int, " ".join((group / file).read_text() for file in files).split())
    except (OSError, ValueError):  # no such group, or no number but `max`
        return math.inf
    return quota / period if quota > 0 else math.inf
