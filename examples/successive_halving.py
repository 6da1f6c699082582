"""Asynchronous successive halving: many configurations begin, and only the best third
of each rung goes on to the next.

XGBoost predicts the fuel consumption of 32 cars from ten other columns. A configuration
begins with one round of training. If it is among the best third of those that have had
as many rounds, it goes on to 3, then to 9, then to 27 rounds:

    python examples/successive_halving.py
    python examples/successive_halving.py --workers 8 --evals 300 --seed 7

No worker waits for another. Each one that is free promotes a configuration if it can,
from the highest rung that has one, and begins a new one otherwise. The algorithm is
that of Li, Jamieson, Rostamizadeh, Gonina, Ben-Tzur, Hardt, Recht and Talwalkar (2020),
A system for massively parallel hyperparameter tuning, MLSys.
"""

from __future__ import annotations

import argparse
import asyncio
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import xgboost

from rush_async import Draw, Processes, Rush, RushWorker

CARS = Path(__file__).parent / "data" / "mtcars.csv"
N_FOLDS = 5
ETA = 3  # one of so many goes on
RUNGS = (1, 3, 9, 27)  # rounds of training


def draw_configuration(rng: random.Random) -> dict[str, Any]:
    """A random configuration."""
    return {
        "max_depth": rng.randint(1, 20),
        "lambda": rng.uniform(0, 1),
        "alpha": rng.uniform(0, 1),
        "eta": rng.uniform(0.05, 1),
    }


class Model:
    """A configuration in training, with a booster for each fold of a cross-validation.

    Args:
        params: the hyperparameters.
        cars: the data.
        seed: determines the folds.
        saved: what `save` has returned, to train on from there.
    """

    def __init__(
        self,
        params: Mapping[str, Any],
        cars: pl.DataFrame,
        seed: int,
        saved: Sequence[bytes] = (),
    ) -> None:
        x, y = cars.drop("name", "mpg").to_numpy(), cars["mpg"].to_numpy()
        folds = np.array_split(np.random.default_rng(seed).permutation(len(y)), N_FOLDS)
        self._folds = [
            (
                xgboost.DMatrix(np.delete(x, i, 0), np.delete(y, i)),
                xgboost.DMatrix(x[i], y[i]),
            )
            for i in folds
        ]
        # One thread for each model, because the number of workers determines the load
        # of the machine.
        self._boosters = [
            xgboost.Booster({"nthread": 1, **params}, fold) for fold in self._folds
        ]
        for booster, raw in zip(self._boosters, saved, strict=bool(saved)):
            booster.load_model(bytearray(raw))
            booster.set_param({"nthread": 1, **params})

    def train(self, n: int) -> float:
        """Trains round n. Returns the RMSE over all cars, each predicted by the booster
        that has not seen it.
        """
        errors: list[np.ndarray] = []
        for booster, (train, test) in zip(self._boosters, self._folds, strict=True):
            booster.update(train, n)
            errors.append(booster.predict(test) - test.get_label())
        return float(np.sqrt(np.mean(np.concatenate(errors) ** 2)))

    def save(self) -> list[bytes]:
        """The boosters, from which any worker can go on."""
        return [bytes(booster.save_raw()) for booster in self._boosters]


class Halving:
    """What a worker proposes: the next rung for a configuration, or a new
    configuration.
    """

    def __init__(self, rush: RushWorker) -> None:
        self._rush = rush
        self._gone: set[tuple[str, int]] = (
            set()
        )  # configurations and the rungs that they have left, as far as is known here

    async def propose(self, draw: Draw) -> dict[str, Any]:
        """The next task: `get_job` of the paper."""
        assert draw.index is not None  # the network has a seed
        for rung in reversed(range(len(RUNGS) - 1)):
            if (configuration := await self._promote(rung, draw.index)) is not None:
                params = (await self._rush.attrs(configuration))[configuration]
                return {"configuration": configuration, "rung": rung + 1, **params}
        return {
            "configuration": f"{draw.index:06}",
            "rung": 0,
            **draw_configuration(draw.random()),
        }

    async def _promote(self, rung: int, index: int) -> str | None:
        """The best configuration that may leave a rung, or None."""
        ranking = self._rush.ranking(f"rung {rung}")
        for configuration, _ in await ranking.best(await ranking.size() // ETA):
            if (configuration, rung) not in self._gone:
                self._gone.add((configuration, rung))
                # Several workers may see the same one. The first claim wins, and no
                # two tasks have the same index.
                name = f"{configuration} leaves rung {rung}"
                if await self._rush.claim(name, index) == index:
                    return configuration
        return None


async def successive_halving(
    rush: RushWorker, cars: pl.DataFrame, evals: int, seed: int
) -> None:
    """The worker loop: `evals` times in all, takes a configuration from one rung to the
    next.
    """
    async for task in rush.proposals(Halving(rush).propose, budget=evals, retries=1):
        async with task:
            configuration, rung = task.xs["configuration"], task.xs["rung"]
            params = {
                name: value
                for name, value in task.xs.items()
                if name not in ("configuration", "rung")
            }
            begun = RUNGS[rung - 1] if rung else 0
            name = f"{configuration} after {begun} rounds"
            model = Model(params, cars, seed, (await rush.attrs(name)).get(name, ()))
            for n in range(begun, RUNGS[rung]):
                rmse = model.train(n)
                await task.report(
                    {"configuration": configuration, "round": n + 1, "rmse": rmse}
                )
                task.ys = {"rmse": rmse}
            # The ranking comes last: once a configuration is in it, any worker may go
            # on with it.
            await rush.set_attrs(
                {
                    configuration: params,
                    f"{configuration} after {RUNGS[rung]} rounds": model.save(),
                }
            )
            await rush.ranking(f"rung {rung}").add(configuration, task.ys["rmse"])


def show(tasks: pl.DataFrame, reports: pl.DataFrame) -> None:
    """Prints the rungs, and the best configuration with its way through them."""
    print(
        tasks.group_by("rung")
        .agg(pl.len().alias("configurations"), pl.col("rmse").min().alias("best RMSE"))
        .sort("rung")
    )
    n = tasks["configuration"].n_unique()
    print(
        f"{n:,} configurations in {reports.height:,} rounds; "
        f"all rounds of all would be {n * RUNGS[-1]:,}."
    )
    best = tasks.sort("rmse").row(0, named=True)
    curve = reports.filter(configuration=best["configuration"]).sort("round")
    steps = ", ".join(
        f"{curve['rmse'][rounds - 1]:.3f} after {rounds}"
        for rounds in RUNGS[: best["rung"] + 1]
    )
    print(
        f"Best: max_depth {best['max_depth']}, lambda {best['lambda']:.3f}, "
        f"alpha {best['alpha']:.3f}, eta {best['eta']:.3f}"
    )
    print(f"Its RMSE: {steps}")


async def main() -> None:
    """Starts the workers, waits for them, and prints the results."""
    parser = argparse.ArgumentParser(
        description="XGBoost on mtcars with asynchronous successive halving."
    )
    parser.add_argument(
        "--evals",
        type=int,
        default=150,
        help="tasks: rungs that configurations reach (default: 150)",
    )
    parser.add_argument("--workers", type=int, default=4, help="processes (default: 4)")
    parser.add_argument(
        "--seed", type=int, default=1, help="of configurations and folds (default: 1)"
    )
    parser.add_argument(
        "--url", help="the database; without it a private server is started"
    )
    options = parser.parse_args()
    args: dict[str, Any] = {
        "cars": pl.read_csv(CARS),
        "evals": options.evals,
        "seed": options.seed,
    }
    async with Rush(config=options.url, seed=options.seed) as rush:
        await rush.start_workers(
            successive_halving, options.workers, on=Processes(), args=args
        )
        await rush.join_workers()
        show(await rush.fetch_finished_tasks(), await rush.fetch_reports())
        await rush.reset()


if __name__ == "__main__":
    asyncio.run(main())
