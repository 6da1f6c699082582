"""Optuna with its Redis journal, and in memory: `ask` with fixed distributions, `tell`, and the cheapest sampler.

Each process has one thread, because the journal's storage takes a lock for each call: four threads were no faster than one. A
trial is four entries of the journal (created, two parameters, the state with the value), written and read in 24 round trips.
"""

from __future__ import annotations

import time
import warnings

import optuna
from optuna.distributions import FloatDistribution
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalRedisBackend
from optuna.trial import TrialState
from stopwatch import arguments, in_processes, report, wait_for_all

STUDY = "peers"
SPACE = {"x1": FloatDistribution(0, 1), "x2": FloatDistribution(0, 1)}


def storage(url: str) -> BaseStorage:
    """The journal on the server, or memory without one."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if not url:
        return InMemoryStorage()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the warning that the backend is experimental
        return JournalStorage(JournalRedisBackend(url))


def propose(url: str, n: int) -> tuple[float, float]:
    """The work of one process."""
    kept = storage(url)
    study = optuna.create_study(storage=kept, study_name=STUDY, sampler=RandomSampler(seed=1), load_if_exists=True)
    wait_for_all()
    begun = time.time()
    for _ in range(n):
        trial = study.ask(SPACE)
        study.tell(trial, 0.25)
    ended = time.time()
    if not url:
        assert len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) == n
    return begun, ended


def read(url: str) -> tuple[float, int]:
    """Opens the study and lists its trials; no frame is made of them."""
    begun = time.perf_counter()
    study = optuna.load_study(study_name=STUDY, storage=storage(url), sampler=RandomSampler(seed=1))
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return time.perf_counter() - begun, len(trials)


if __name__ == "__main__":
    asked = arguments("propose", "memory", "read")
    if asked.action == "propose":
        # The study is created before the processes could race for it.
        optuna.create_study(storage=storage(asked.url), study_name=STUDY)
        seconds = in_processes(asked.processes, propose, asked.url, asked.n // asked.processes)
        report(seconds=seconds, n=read(asked.url)[1])
    elif asked.action == "memory":
        report(seconds=in_processes(1, propose, "", asked.n), n=asked.n)
    else:
        seconds, n = read(asked.url)
        report(seconds=seconds, n=n)
