"""Optuna's samplers in rush workers: many workers, one archive, and no Optuna storage.

Each worker keeps an Optuna study in its memory and adds the finished and running tasks
of all workers to it. The archive of the network is the only storage. What a sampler
stores about a trial is stored with the task:

    python examples/optuna_sampler.py
    python examples/optuna_sampler.py --sampler cmaes --workers 8 --on processes
    python examples/optuna_sampler.py --sampler cmaes --compare 20

The last command compares the sampler with random search over 20 seeds.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import math
import statistics
from typing import Any

import optuna
import polars as pl
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import TrialState

from rush_async import Coroutines, Processes, Rush, RushWorker

SPACE: dict[str, BaseDistribution] = {
    "x1": FloatDistribution(-5, 10),
    "x2": FloatDistribution(0, 15),
}
SAMPLERS = {
    "random": optuna.samplers.RandomSampler,
    "tpe": optuna.samplers.TPESampler,
    "cmaes": optuna.samplers.CmaEsSampler,
    "gp": optuna.samplers.GPSampler,
}
NEEDS = {
    "cmaes": "cmaes",
    "gp": "torch",
}  # the packages that a sampler needs besides Optuna


def branin(x1: float, x2: float) -> float:
    """The Branin function; its minimum is 0.3979."""
    a = x2 - 5.1 / (4 * math.pi**2) * x1**2 + 5 / math.pi * x1 - 6
    return a**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x1) + 10


class SharedStudy:
    """An Optuna study in this worker's memory, with a trial for each task of the
    network.
    """

    def __init__(self, sampler: optuna.samplers.BaseSampler) -> None:
        self.study = optuna.create_study(sampler=sampler)
        self._running: dict[str, int] = {}  # task's key -> number of its trial

    async def update(self, rush: RushWorker) -> None:
        """Adds what has happened in the network since the last update."""
        # In this order a task that ends in between is in both frames. In the other
        # order it would be in neither.
        running = await rush.fetch_running_tasks(times=True)
        finished = await rush.fetch_new_tasks(times=True)
        await asyncio.to_thread(self._learn, finished, running)

    async def propose(self) -> tuple[int, dict[str, Any], dict[str, Any]]:
        """Creates a trial. Returns its number, its point, and what to store with the
        task.
        """
        return await asyncio.to_thread(
            self._ask
        )  # in a thread, so that the sampler does not block the event loop

    def begin(self, key: str, number: int) -> None:
        """Records that the task with this key evaluates the trial."""
        self._running[key] = number

    def _ask(self) -> tuple[int, dict[str, Any], dict[str, Any]]:
        number = self.study.ask(SPACE).number
        trial = self.study.get_trials(deepcopy=False)[number]
        # CMA-ES stores its generation and a pickle of its covariance matrix in these
        # attributes, which are valid JSON. So write access to the database allows code
        # execution in workers of CMA-ES, as with every storage of Optuna: restrict it.
        return number, trial.params, {"system_attrs": json.dumps(trial.system_attrs)}

    def _learn(self, finished: pl.DataFrame, running: pl.DataFrame) -> None:
        # Trials are numbered in the order of their start, so that a late result is not
        # taken for the newest trial.
        for task in rows(finished):
            if task["keys"] in self._running:
                self.study.tell(self._running.pop(task["keys"]), task["y"])
            else:
                self.study.add_trial(make_trial(task, TrialState.COMPLETE))
        done = set(finished["keys"])
        still_running = {
            task["keys"]: task for task in rows(running) if task["keys"] not in done
        }
        for key in (
            self._running.keys() - still_running.keys()
        ):  # neither finished nor running, so they failed
            self.study.tell(self._running.pop(key), state=TrialState.FAIL)
        for key, task in still_running.items():
            if key not in self._running:
                self._running[key] = len(self.study.get_trials(deepcopy=False))
                self.study.add_trial(make_trial(task, TrialState.RUNNING))


def rows(tasks: pl.DataFrame) -> list[dict[str, Any]]:
    """The tasks in the order of their start."""
    return tasks.sort("started_at").to_dicts()


def make_trial(task: dict[str, Any], state: TrialState) -> optuna.trial.FrozenTrial:
    """The trial of a finished or running task."""
    return optuna.trial.create_trial(
        state=state,
        params={name: task[name] for name in SPACE},
        distributions=SPACE,
        value=task.get("y"),
        system_attrs=json.loads(task["system_attrs"]),
    )


async def optimise(rush: RushWorker, sampler: str, seed: int, evals: int) -> None:
    """The worker loop: updates its study, proposes and evaluates, until `evals` tasks
    are finished in all.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    shared = SharedStudy(SAMPLERS[sampler](seed=seed))
    while not rush.terminated:
        await shared.update(rush)
        number, xs, extra = await shared.propose()
        async with rush.task(xs, xs_extra=extra, budget=evals) as task:
            if task is None:
                break
            shared.begin(task.key, number)
            task.ys = {"y": branin(**task.xs)}


async def search(
    rush: Rush, options: argparse.Namespace, sampler: str, seed: int
) -> pl.DataFrame:
    """Runs one search and returns its finished tasks. The network is empty before and
    afterwards.
    """
    on = Processes() if options.on == "processes" else Coroutines()
    for worker in range(
        options.workers
    ):  # each worker needs its own seed, otherwise all propose the same points
        await rush.start_workers(
            optimise,
            on=on,
            sampler=sampler,
            seed=1000 * seed + worker,
            evals=options.evals,
        )
    await rush.join_workers()
    tasks = await rush.fetch_finished_tasks()
    await rush.reset()
    return tasks.drop("system_attrs")


async def compare(rush: Rush, options: argparse.Namespace) -> None:
    """Prints the best values of the sampler and of random search over several seeds."""
    best: dict[str, list[float]] = {"random": [], options.sampler: []}
    for seed in range(options.seed, options.seed + options.compare):
        for sampler, found in best.items():
            tasks = await search(rush, options, sampler, seed)
            found.append(min(tasks["y"].to_list()))
        print(
            f"seed {seed:>3}: best y "
            + ", ".join(
                f"{found[-1]:.4f} by {sampler}" for sampler, found in best.items()
            )
        )
    print(
        f"Over {options.compare} seeds, {options.evals} evaluations "
        f"by {options.workers} workers each (minimum 0.3979):"
    )
    for sampler, found in best.items():
        print(
            f"{sampler:>8}: median {statistics.median(found):.4f}, "
            f"from {min(found):.4f} to {max(found):.4f}"
        )


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Optuna's samplers on the Branin function."
    )
    parser.add_argument(
        "--sampler",
        choices=list(SAMPLERS),
        default="tpe",
        help="which one proposes (default: tpe)",
    )
    parser.add_argument("--workers", type=int, default=4, help="how many (default: 4)")
    parser.add_argument(
        "--on",
        choices=["coroutines", "processes"],
        default="coroutines",
        help="where they run",
    )
    parser.add_argument(
        "--evals", type=int, default=100, help="tasks to finish (default: 100)"
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="of the samplers (default: 1)"
    )
    parser.add_argument(
        "--compare",
        type=int,
        metavar="N",
        help="compare with random search over N seeds, --seed the first",
    )
    parser.add_argument(
        "--url", help="the database; without it a private server is started"
    )
    options = parser.parse_args()
    if (
        min(
            options.evals,
            options.workers,
            1 if options.compare is None else options.compare,
        )
        < 1
    ):
        parser.error("--evals, --workers and --compare must be at least 1")
    needed = NEEDS.get(options.sampler)
    if needed and importlib.util.find_spec(needed) is None:
        parser.error(
            f"--sampler {options.sampler} needs the package {needed}: "
            f"python -m pip install {needed}"
        )
    return options


async def main() -> None:
    """Runs a search or a comparison, and prints the best points."""
    options = read_options()
    async with Rush(config=options.url) as rush:
        if options.compare:
            await compare(rush, options)
            return
        tasks = await search(rush, options, options.sampler, options.seed)
        print(tasks.sort("y").head(5))
        print(
            f"{tasks.height} evaluations by {tasks['worker_id'].n_unique()} workers; "
            f"best y {tasks['y'].min():.4f}"
        )


if __name__ == "__main__":
    asyncio.run(main())
