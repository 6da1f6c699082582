"""Chapter 5: samplers of Optuna, whose only storage is the archive."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import optuna
import polars as pl
import pytest
from optuna.trial import TrialState

from examples import optuna_sampler
from examples.optuna_sampler import SharedStudy, branin, optimise, read_options
from rush_async import Counts, Rush, RushWorker
from tests.test_examples import run


def states(shared: SharedStudy) -> list[str]:
    return [trial.state.name for trial in shared.study.trials]


def study() -> SharedStudy:
    return SharedStudy(optuna.samplers.TPESampler(seed=1))


async def test_a_study_holds_as_many_trials_as_the_archive(rush: Rush, rush_worker: RushWorker) -> None:
    shared = study()
    await shared.update(rush_worker)
    assert states(shared) == []

    await rush.start_workers(optimise, n_workers=3, sampler="random", seed=1, evals=30)
    await rush.join_workers()
    await shared.update(rush_worker)
    assert states(shared) == ["COMPLETE"] * 30

    await rush.start_workers(optimise, n_workers=2, sampler="tpe", seed=2, evals=50)
    await rush.join_workers()
    await shared.update(rush_worker)  # learns the 20 that are new
    archive = await rush.fetch_finished_tasks()
    assert archive.height == 50
    trials = shared.study.trials
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert sorted((trial.params["x1"], trial.params["x2"], trial.value) for trial in trials) == sorted(
        archive.select("x1", "x2", "y").iter_rows()
    )


async def test_own_results_arrive_like_those_of_other_workers(rush_worker: RushWorker) -> None:
    shared = study()
    number, xs, extra = await shared.propose()
    async with rush_worker.task(xs, xs_extra=extra) as task:
        shared.begin(task.key, number)
        await shared.update(rush_worker)
        assert states(shared) == ["RUNNING"]
        task.ys = {"y": 1.5}
    await shared.update(rush_worker)
    assert states(shared) == ["COMPLETE"]  # its own trial, not a second one
    assert (shared.study.best_value, shared.study.best_params) == (1.5, xs)


async def test_tasks_that_others_run_are_running_trials_until_they_end(rush: Rush, rush_worker: RushWorker) -> None:
    shared = study()
    async with RushWorker(rush.network_id, rush.config) as other:
        extra = {"system_attrs": json.dumps({"cma:generation": 4})}
        points = [{"x1": float(n), "x2": 1.0} for n in range(3)]
        keys = await other.push_running_tasks(points, xss_extra=[extra] * 3)
        await shared.update(rush_worker)
        assert states(shared) == ["RUNNING"] * 3
        # The server decides the order of running tasks.
        keys = [keys[points.index(trial.params)] for trial in shared.study.trials]
        assert len(set(keys)) == 3

        await other.finish_tasks(keys[1], [{"y": 7.0}])
        await other.fail_tasks(keys[0], "the oven was cold")
        await shared.update(rush_worker)
        assert states(shared) == ["FAIL", "COMPLETE", "RUNNING"]
        assert shared.study.trials[1].value == 7.0
        assert shared.study.trials[1].system_attrs == {"cma:generation": 4}
        await other.finish_tasks(keys[2], [{"y": 8.0}])
    await shared.update(rush_worker)
    assert states(shared) == ["FAIL", "COMPLETE", "COMPLETE"]


async def test_a_task_that_ends_during_an_update_becomes_one_trial(
    rush: Rush, rush_worker: RushWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with RushWorker(rush.network_id, rush.config) as other:
        (key,) = await other.push_running_tasks([{"x1": 1.0, "x2": 1.0}], xss_extra=[{"system_attrs": "{}"}])
        fetch_running = rush_worker.fetch_running_tasks

        async def fetch_running_and_finish(**options: Any) -> pl.DataFrame:
            running = await fetch_running(**options)
            await other.finish_tasks(key, [{"y": 2.0}])
            return running

        monkeypatch.setattr(rush_worker, "fetch_running_tasks", fetch_running_and_finish)
        shared = study()
        await shared.update(rush_worker)
    assert states(shared) == ["COMPLETE"]


async def test_trials_are_numbered_in_the_order_of_their_start(rush: Rush, rush_worker: RushWorker) -> None:
    async with RushWorker(rush.network_id, rush.config) as other:
        extra = {"system_attrs": "{}"}
        late = await other.push_running_tasks([{"x1": 1.0, "x2": 1.0}], xss_extra=[extra])
        early = await other.push_running_tasks([{"x1": 2.0, "x2": 2.0}], xss_extra=[extra])
        await other.finish_tasks(early, [{"y": 2.0}])
        await other.finish_tasks(late, [{"y": 1.0}])
    shared = study()
    await shared.update(rush_worker)
    assert [trial.value for trial in shared.study.trials] == [1.0, 2.0]


async def test_cma_es_evolves_on_the_results_of_all_workers(rush: Rush) -> None:
    for worker in range(4):
        await rush.start_workers(optimise, sampler="cmaes", seed=worker, evals=80)
    await rush.join_workers()
    assert await rush.counts() == Counts(finished=80)
    tasks = await rush.fetch_finished_tasks()
    generations = [json.loads(attrs).get("cma:generation", -1) for attrs in tasks["system_attrs"]]
    # A generation takes six results. No worker could have reached the last generation with its own results alone.
    alone = max(tasks["worker_id"].value_counts()["count"]) // 6
    assert max(generations) > alone
    # A worker that knows a generation does not return to an older one, with few exceptions.
    behind = sum(generation < max(generations[: at + 1]) - 1 for at, generation in enumerate(generations))
    assert behind <= 4


@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
async def test_one_worker_with_a_seed_is_reproducible(rush: Rush, sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[SharedStudy] = []

    class Kept(SharedStudy):
        def __init__(self, sampler: optuna.samplers.BaseSampler) -> None:
            super().__init__(sampler)
            kept.append(self)

    monkeypatch.setattr(optuna_sampler, "SharedStudy", Kept)
    runs: list[list[Any]] = []
    for _ in range(2):
        async with RushWorker(rush.network_id, rush.config) as worker:
            await optimise(worker, sampler, seed=5, evals=25)
        runs.append((await rush.fetch_finished_tasks()).select("x1", "x2", "y").rows())
        await rush.reset()
    assert runs[0] == runs[1]
    assert len(runs[0]) == 25
    for shared in kept:  # the budget had no place for the last proposal
        assert states(shared) == ["COMPLETE"] * 25 + ["RUNNING"]
    for x1, x2, y in runs[0]:
        assert -5 <= x1 <= 10
        assert 0 <= x2 <= 15
        assert y == branin(x1, x2)


def test_the_error_of_a_missing_package_names_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> None:
        assert name == "torch"

    monkeypatch.setattr(optuna_sampler.importlib.util, "find_spec", missing)
    monkeypatch.setattr(sys, "argv", ["optuna_sampler.py", "--sampler", "gp"])
    with pytest.raises(SystemExit) as ended:
        read_options()
    assert ended.value.code == 2
    assert "--sampler gp needs the package torch: python -m pip install torch" in capsys.readouterr().err


async def test_the_program_finishes_exactly_the_budget_in_processes() -> None:
    text = await run("examples/optuna_sampler.py", "--sampler", "cmaes", "--on", "processes", "--workers", "2", "--evals", "40")
    assert re.search(r"^40 evaluations by [12] workers; best y \d+\.\d{4}$", text, flags=re.MULTILINE)


async def test_the_program_compares_with_random_search() -> None:
    text = await run("examples/optuna_sampler.py", "--sampler", "tpe", "--compare", "2", "--evals", "20", "--seed", "4")
    values = re.findall(r"seed +\d: best y ([\d.]+) by random, ([\d.]+) by tpe", text)
    assert len(values) == 2
    for name, found in zip(("random", "tpe"), zip(*values, strict=True), strict=True):
        low, high = sorted(found, key=float)
        assert re.search(rf" {name}: median [\d.]+, from {low} to {high}", text)
