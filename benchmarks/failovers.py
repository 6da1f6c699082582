"""Failovers under load, behind Sentinels and in a cluster: the longest pause that a caller saw, and what was lost.

python -m benchmarks failovers [--rounds 20] [--only sentinel,cluster]

In each round the master is killed while programs push, pop, finish, wait, fetch and listen with `wait_replicas=1`. There is one
replica, so calls are held until it is the master and the one that was killed has come back as its replica. In the cluster
the slot of the network moves to another node between two rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tests.topology.load import working
from tests.topology.servers import Cluster, Sentinels

__all__ = ["main"]

_KINDS: dict[str, type[Sentinels | Cluster]] = {"sentinel": Sentinels, "cluster": Cluster}
_NETWORK = "failovers"
_KEY = f"{{{_NETWORK}}}"


async def _measure(kind: str, servers: Sentinels | Cluster, n_rounds: int) -> None:
    print(f"\n{kind}: round  another master    replica back    longest call    all continue")
    longest = 0.0
    async with working(_NETWORK, replace(servers.config, wait_replicas=1)) as load:
        for at in range(1, n_rounds + 1):
            if isinstance(servers, Cluster):
                await asyncio.to_thread(servers.migrate, _KEY)
                await load.continues()
            await asyncio.sleep(1)
            load.longest = 0.0
            began = time.perf_counter()
            master_after = await asyncio.to_thread(servers.fail_over, _KEY)
            replica_after = time.perf_counter() - began
            await load.continues()
            ended = time.perf_counter() - began
            longest = max(longest, load.longest)
            figures = "".join(f"{seconds:>14.2f} s" for seconds in (master_after, replica_after, load.longest, ended))
            print(f"{kind}: {at:>5}{figures}")
        await load.end()
        lost = await load.lost()
        print(
            f"{kind}: {n_rounds} failovers, the longest call took {longest:.2f} s; of {len(load.finished):,} acknowledged "
            f"results {len(lost)} were lost; {load.n_missed} times the listener was told of missing events"
        )
        await load.check()


def main(words: Sequence[str]) -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks failovers", description="Failovers under load.")
    parser.add_argument("--rounds", type=int, default=20, help="failovers of each kind (default: 20)")
    parser.add_argument("--only", default=",".join(_KINDS), help=f"some of {','.join(_KINDS)}")
    options = parser.parse_args(words)
    kinds = options.only.split(",")
    if unknown := set(kinds).difference(_KINDS):
        parser.error(f"there is no kind {', '.join(sorted(unknown))}: choose from {', '.join(_KINDS)}")
    logging.disable(logging.ERROR)  # the failovers are intended
    for kind in kinds:
        with tempfile.TemporaryDirectory(prefix="f-", ignore_cleanup_errors=True) as directory:
            servers = _KINDS[kind](Path(directory))
            try:
                asyncio.run(_measure(kind, servers, options.rounds))
            finally:
                servers.end()
