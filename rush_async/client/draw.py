"""What a proposal may see, and the random numbers that it may draw."""

from __future__ import annotations

import hashlib
import inspect
import random
import secrets
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast

from rush_async.store.records import as_record, check_names

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

__all__ = ["Draw", "proposed"]

_WORKERS = 2**32 - 1  # the first part of the spawn key of a worker's stream; no task has that index


class Draw:
    """The view that a proposal has of its network. With a seed, the same draw gives the same numbers.

    The random numbers of a network with a seed depend on the seed and the index of the task alone, those of `worker_numpy` on
    the seed and the number of the worker. Each method returns the same generator whenever it is called for one draw.

    Attributes:
        index: the index of the task that is proposed; None in a network without a seed.
        worker: the number of the worker.
        round: which of the worker's proposals this is: 0, 1, 2 ...
        redraw: how many points under this index were refused because the network has them.
    """

    __slots__ = ("_generators", "_seed", "_tasks", "_worker_seed", "index", "redraw", "round", "worker")

    def __init__(
        self,
        seed: int | None,
        index: int | None,
        worker: int,
        round: int,
        redraw: int = 0,
        tasks: pl.DataFrame | None = None,
        worker_seed: int | None = None,
    ) -> None:
        self.index = index
        self.worker = worker
        self.round = round
        self.redraw = redraw
        self._seed = seed
        self._worker_seed = worker_seed if seed is None else seed
        self._tasks = tasks
        self._generators: dict[str, Any] = {}

    @property
    def tasks(self) -> pl.DataFrame:
        """The tasks that the proposal reads: a frame with `state` (String), `index` (Int64), inputs, outputs and extras.

        States come in the order of `read`, queued tasks in the order of the queue, finished ones in the order they finished,
        running and failed ones by index.

        Raises:
            ValueError: `proposals` was not asked to read any.
        """
        if self._tasks is None:
            raise ValueError('the proposal reads no tasks: give proposals(..., read=("running", "finished"))')
        return self._tasks

    @property
    def seed(self) -> int:
        """A seed for any other generator: 0 to 2**32 - 1, the first four bytes of the SHA-256 of the stream's name."""
        if "seed" not in self._generators:
            self._generators["seed"] = secrets.randbits(32) if self._seed is None else self._digest("seed") >> 224
        return self._generators["seed"]

    def random(self) -> random.Random:
        """Returns a generator of the standard library, seeded by the SHA-256 of the stream's name as a big-endian integer."""
        if "random" not in self._generators:
            seed = None if self._seed is None else self._digest("random")
            self._generators["random"] = random.Random(seed)
        return self._generators["random"]

    def numpy(self) -> np.random.Generator:
        """Returns a numpy generator: PCG64 on `SeedSequence(seed, spawn_key=(index,))`, after redraws `(index, redraw)`."""
        if "numpy" not in self._generators:
            key = () if self.index is None else (self.index, *((self.redraw,) if self.redraw else ()))
            self._generators["numpy"] = _numpy(self._seed, key)
        return self._generators["numpy"]

    def worker_numpy(self) -> np.random.Generator:
        """Returns a numpy generator of the worker: PCG64 on `SeedSequence(seed, spawn_key=(2**32 - 1, number))`.

        It begins anew with each draw, so that what is drawn from it, such as a parameter of the worker, stays the same.
        """
        if "worker" not in self._generators:
            self._generators["worker"] = _numpy(self._worker_seed, (_WORKERS, self.worker))
        return self._generators["worker"]

    def _digest(self, kind: str) -> int:
        name = f"rush_async {kind} {self._seed} {self.index} {self.redraw}"
        return int.from_bytes(hashlib.sha256(name.encode()).digest())


def _numpy(seed: int | None, key: tuple[int, ...]) -> np.random.Generator:
    import numpy as np  # it need not be installed: only proposals that draw with it import it

    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


async def proposed(propose: Callable[[Draw], Any | Awaitable[Any]], draw: Draw) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Asks for a proposal. Returns its input and what is stored with it.

    Raises:
        TypeError: it is no record.
    """
    result = propose(draw)
    if inspect.isawaitable(result):
        result = await result
    is_pair = isinstance(cast("object", result), tuple) and len(result) == 2
    xs, extra = cast("tuple[Any, Any]", result) if is_pair else (result, None)
    record = as_record(xs, "the proposal")
    check_names(record, "the proposal")
    return record, None if extra is None else as_record(extra, "the proposal's xs_extra")
