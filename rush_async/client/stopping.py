"""How a network stops as one: its stop rules, a stop by hand, resumption, waiting for the stop; and its time to live."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar, cast

from rush_async.client.arguments import as_number, as_real, as_seconds
from rush_async.client.session import Session, Shared
from rush_async.errors import NetworkStateError, explain_arguments
from rush_async.model import StopReason
from rush_async.store.position import NetworkPosition
from rush_async.store.stop_rules import RulesAnswer, StopRules, StopRulesStore

__all__ = ["Stopping"]

_LONGEST_OUTPUT = 100  # characters of the name of an output that a rule judges
_LONGEST_WHY = 200  # characters of a reason
_SHORTEST, _LONGEST = 0.001, 1e9  # seconds that a network may stay after it has ended


class StoppableNetwork(Shared, Protocol):
    """The network of the client."""

    @property
    def position(self) -> NetworkPosition: ...

    @property
    def stop_rules(self) -> StopRulesStore: ...

    async def best_output(self, output: str, *, maximize: bool) -> tuple[float | None, int]:
        """Returns the best value of an output among the finished tasks, and how many tasks were read."""
        ...

    async def wait_for_stop(self, timeout: float | None, *, need_workers: bool) -> StopReason:
        """Waits until the network has stopped."""
        ...

    def follow(self) -> None:
        """Begins to follow the network."""


S = TypeVar("S", bound=StoppableNetwork)


class Stopping(Session[S]):
    """The part of a client that stops and resumes the whole network."""

    async def stop_when(
        self,
        *,
        finished: int | None = None,
        failed: int | None = None,
        seconds: float | None = None,
        target: Mapping[str, float] | None = None,
        patience: tuple[str, int] | None = None,
        maximize: bool = False,
    ) -> StopReason | None:
        """Stops the network once one of these rules is true, whichever is first.

        The scripts judge the rules, so one step of the server decides for all workers: from the stop on no task starts
        anywhere, until `resume`. What runs may end. The rules replace those that the network had. The same rules again change
        nothing, so every worker may set them: time and patience count on.

        Args:
            finished: how many tasks finish. While as many are running or finished, no further one starts, so exactly so many
                finish; what is pushed as finished, or ran before the rule was set, may exceed it.
            failed: how many tasks are failed, with those that were cancelled or removed.
            seconds: how much time passes from now on, by the server's clock.
            target: an output and the value of it that is good enough, as in `{"y": 0.4}`.
            patience: an output and how many tasks finish without a better value of it, as in `("y", 100)`, from now on.
            maximize: whether larger values of that output are better.

        Returns:
            Why the network has stopped, if a rule is true already or these rules stopped it before; else None.

        Raises:
            ValueError: no rule is given, or `target` and `patience` name two outputs.
            NetworkStateError: other rules have stopped the network: use `resume`.
        """
        rules = _rules(finished, failed, seconds, target, patience, maximize=maximize)
        if rules == StopRules():
            raise ValueError("stop_when needs a rule: give finished=, failed=, seconds=, target= or patience=")
        network = self._net
        if await self._set_rules(network, rules, lifts=False) == "stopped":
            raise NetworkStateError(
                f"network {self._network_id!r} has stopped ({network.position.stop}): set other rules with `resume(...)`"
            )
        return network.position.stop

    async def resume(
        self,
        *,
        finished: int | None = None,
        failed: int | None = None,
        seconds: float | None = None,
        target: Mapping[str, float] | None = None,
        patience: tuple[str, int] | None = None,
        maximize: bool = False,
    ) -> None:
        """Lifts the stop of the network and sets these rules in place of all others, in one step; without any it has none.

        Workers that have left do not come back, and those that were asked to stop one by one still are.

        Args:
            finished: as in `stop_when`.
            failed: as in `stop_when`.
            seconds: as in `stop_when`.
            target: as in `stop_when`.
            patience: as in `stop_when`.
            maximize: as in `stop_when`.

        Raises:
            ValueError: one of the rules is true already; nothing has changed.
        """
        rules = _rules(finished, failed, seconds, target, patience, maximize=maximize)
        network = self._net
        answer = await self._set_rules(network, rules, lifts=True)
        if answer != "set":
            counts = network.position.counts
            raise ValueError(
                f"the rule {answer!r} is true already, so network {self._network_id!r} would stop at once: choose a larger "
                f"limit ({counts.finished:,} tasks have finished and {counts.failed:,} have failed)"
            )

    async def stop_rules(self) -> dict[str, Any]:
        """Reads the stop rules that the network has, also once one of them has stopped it.

        Returns:
            The arguments of `stop_when` that set these rules, without those that have their defaults; empty without rules.

        Raises:
            DecodeError: another program wrote what this library cannot read.
        """
        store = self._net.stop_rules
        return (await store.read()).arguments()

    async def _set_rules(self, network: S, rules: StopRules, *, lifts: bool) -> RulesAnswer:
        while True:
            best, n_read = None, 0
            if rules.output is not None:
                best, n_read = await network.best_output(rules.output, maximize=rules.maximize)
            answer = await network.stop_rules.set(rules, best, n_read, lifts=lifts)
            if answer != "behind":
                return answer

    async def stop(self, why: str = "stopped by hand") -> StopReason:
        """Stops the network: no task starts any more, until `resume`. What runs may end.

        Args:
            why: the reason, at most 200 characters.

        Returns:
            Why the network has stopped: this reason, or the first one if it had stopped before.
        """
        if not isinstance(why, str):  # pyright: ignore[reportUnnecessaryIsInstance] - callers need not be typed
            raise TypeError(f"why must be a string, not {type(why).__name__}: {why!r:.80}")
        if not 1 <= len(why) <= _LONGEST_WHY:
            raise ValueError(f"why must have 1 to {_LONGEST_WHY} characters, not {len(why):,}")
        network = self._net
        await network.stop_rules.stop(why)
        reason = network.position.stop
        if reason is None:
            raise NetworkStateError(f"network {self._network_id!r} was resumed or reset while it was being stopped")
        return reason

    async def wait_until_stopped(self, *, timeout: float | None = None, need_workers: bool = True) -> StopReason:
        """Waits, without polling, until the network has stopped. Tasks may still run then: `join_workers` waits for them.

        Args:
            timeout: seconds to wait; None waits for ever.
            need_workers: whether to give up when no worker is starting or running.

        Returns:
            Why it has stopped.

        Raises:
            RushTimeoutError: it has not stopped within `timeout` seconds.
            TasksNotDoneError: no worker is starting or running; the message has the failures of those that ended.
        """
        network = self._net
        with cast("AbstractContextManager[None]", self._until_closed()):
            return await network.wait_for_stop(as_seconds(timeout), need_workers=need_workers)

    async def expire(self, after: float | None) -> None:
        """Sets the time to live of the network: so long after it has ended, it goes by itself, with all its results.

        A network has ended while no worker is starting or running, and no task is queued or running, stopped or not. The time
        begins with the last change of the network; a change after which it has not ended, such as a push, ends the time until
        it has ended once more. Reading changes nothing. Dead workers count until a client has found them.

        Args:
            after: seconds; None keeps the network, which is the default.

        Raises:
            ValueError: the time is not above 0, or longer than 30 years.
        """
        if after is not None and not _SHORTEST <= as_real(after, "after") <= _LONGEST:
            raise ValueError(f"after must be {_SHORTEST:g} to {_LONGEST:g} seconds, not {after:g}; None keeps the network")
        await self._net.stop_rules.expire(None if after is None else round(after * 1000))

    @property
    def stop_reason(self) -> StopReason | None:
        """Why the network has stopped, as this event loop knows it; None while it has not.

        Reading it makes no call; see `n_queued_tasks` for how up to date it is.
        """
        network = self._net
        network.follow()
        return network.position.stop

    @property
    def n_running_workers(self) -> int:
        """Number of running workers, as this event loop knows it; a shared worker counts as one.

        Reading it makes no call; see `n_queued_tasks` for how up to date it is.
        """
        network = self._net
        network.follow()
        return network.position.n_workers


explain_arguments(Stopping, "stop_when", "resume")


def _rules(finished: Any, failed: Any, seconds: Any, target: Any, patience: Any, *, maximize: bool) -> StopRules:
    if not isinstance(maximize, bool):  # pyright: ignore[reportUnnecessaryIsInstance] - callers need not be typed
        raise TypeError(f"maximize must be True or False, not {maximize!r:.80}")
    output = limit = n = None
    if target is not None:
        if not (isinstance(target, Mapping) and len(cast("Mapping[Any, Any]", target)) == 1):
            raise TypeError(f'target must be a mapping of one output to its value, as in {{"y": 0.4}}, not {target!r:.80}')
        ((output, value),) = cast("Mapping[Any, Any]", target).items()
        limit = as_real(value, f"target of {output!r:.80}")
    if patience is not None:
        if isinstance(patience, str) or not isinstance(patience, Sequence) or len(cast("Sequence[Any]", patience)) != 2:
            raise TypeError(f'patience must be an output and a number of tasks, as in ("y", 100), not {patience!r:.80}')
        name, tasks = cast("Sequence[Any]", patience)
        n = _as_limit(tasks, "patience")
        if target is not None and name != output:
            raise ValueError(f"target and patience judge one output: not {output!r:.80} and {name!r:.80}")
        output = name
    if output is not None and not (isinstance(output, str) and 1 <= len(output) <= _LONGEST_OUTPUT):
        raise ValueError(f"an output has a name of 1 to {_LONGEST_OUTPUT} characters, not {output!r:.80}")
    if seconds is not None:
        seconds = as_real(seconds, "seconds")
        if seconds <= 0:
            raise ValueError(f"seconds must be positive, not {seconds:g}")
    return StopRules(
        None if finished is None else _as_limit(finished, "finished"),
        None if failed is None else _as_limit(failed, "failed"),
        seconds,
        output,
        maximize and output is not None,
        limit,
        n,
    )


def _as_limit(value: Any, what: str) -> int:
    number = as_number(value, what)
    if number == 0:
        raise ValueError(f"{what} must be at least 1, not 0")
    return number
