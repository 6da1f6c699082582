"""Spans of OpenTelemetry, from the push of a task to its end, across processes.

```python
async def loop(rush: RushWorker) -> None:
    instrument(rush)
    async for task in rush.tasks():
        async with task:
            task.ys = evaluate(task.xs)


async with Rush("branin") as rush:
    instrument(rush)
    await rush.push_tasks([{"x1": 1.0, "x2": 2.0}])
```

A push has a span of the kind *producer*. Its context travels with each task as W3C Trace Context, in `xs_extra`: `traceparent`,
and `tracestate` where there is one. The block in which a worker evaluates the task has a span of the kind *consumer*, a child
of that of the push, and spans that the code in the block makes are its children.

Only what has a block has such a span: a task that is taken with `pop_task` and ended with `finish_tasks` has none. What exports
the spans is configured in each process, as ever with OpenTelemetry; without an SDK nothing happens.

Needs the extra `opentelemetry`: `pip install "rush-async[opentelemetry]"`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from contextvars import Token
from typing import Any, TypeVar

from rush_async.client.client import RushClient
from rush_async.model import Catch, FailureKind, Task
from rush_async.store.records import as_extras, as_records
from rush_async.worker.task_block import TaskBlocks
from rush_async.worker.worker import RushWorker

try:
    from opentelemetry import context, trace
    from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, TracerProvider
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as error:
    raise ImportError('spans need opentelemetry-api: pip install "rush-async[opentelemetry]"') from error

__all__ = ["instrument"]

C = TypeVar("C", bound=RushClient)

_propagator = TraceContextTextMapPropagator()


def instrument(client: C, tracer_provider: TracerProvider | None = None) -> C:
    """Makes spans of the pushes of this client from here on, and for a worker of its task blocks. A second call does nothing.

    Args:
        client: a manager, or the worker that a loop gets.
        tracer_provider: makes the spans; by default the global one.

    Returns:
        The client.
    """
    if "push_tasks" not in vars(client):
        tracer = trace.get_tracer("rush_async", tracer_provider=tracer_provider)
        _trace_pushes(client, tracer)
        if isinstance(client, RushWorker):
            blocks = client._blocks  # pyright: ignore[reportPrivateUsage]
            client._blocks = _TracedBlocks(blocks, tracer)  # pyright: ignore[reportPrivateUsage]
    return client


def _trace_pushes(client: RushClient, tracer: Tracer) -> None:
    push: Any = client.push_tasks

    @functools.wraps(push)
    async def push_tasks(xss: Iterable[Any], *, xss_extra: Iterable[Any] | None = None, **options: Any) -> Sequence[str | None]:
        xss = as_records(xss, "xss")
        attributes = {**_destination(client.network_id), "messaging.batch.message_count": len(xss)}
        with tracer.start_as_current_span("push tasks", kind=SpanKind.PRODUCER, attributes=attributes):
            carried: dict[str, str] = {}
            _propagator.inject(carried)
            if carried:
                extras = [None] * len(xss) if xss_extra is None else as_extras(xss_extra, "xss_extra")
                xss_extra = [{**carried, **(extra or {})} for extra in extras]
            return await push(xss, xss_extra=xss_extra, **options)

    vars(client)["push_tasks"] = push_tasks


def _destination(network_id: str) -> dict[str, Any]:
    return {"messaging.system": "rush_async", "messaging.destination.name": network_id}


class _TracedBlocks(TaskBlocks):
    """The task blocks of a worker, each with a span."""

    def __init__(self, blocks: TaskBlocks, tracer: Tracer) -> None:
        super().__init__(blocks.membership, blocks.encoder)
        self._tracer = tracer
        self._open: dict[str, tuple[Span, Token[context.Context]]] = {}

    def enter_block(self, task: Task) -> None:
        """Opens a task's block, and makes its span the current one."""
        carried = {name: value for name, value in (task.xs_extra or {}).items() if isinstance(value, str)}
        is_pushed = "traceparent" in carried
        span = self._tracer.start_span(
            "run task",
            context=_propagator.extract(carried) if is_pushed else None,
            kind=SpanKind.CONSUMER if is_pushed else SpanKind.INTERNAL,
            attributes={
                **_destination(self.membership.network_id),
                "messaging.message.id": task.key,
                "rush.worker": self.membership.worker_id,
                "rush.attempt": task.attempt,
            },
        )
        self._open[task.key] = span, context.attach(trace.set_span_in_context(span))
        super().enter_block(task)

    async def end(self, task: Task, error: BaseException | None, catch: Catch, kind: FailureKind = "error") -> bool:
        """Ends a task whose block was left, and its span."""
        opened = self._open.pop(task.key, None)  # a block whose outputs cannot be stored is ended once more
        try:
            is_caught = await super().end(task, error, catch, kind)
        except BaseException as raised:
            if opened is not None:
                _end(*opened, task, raised)
            raise
        if opened is not None:
            _end(*opened, task, error)
        return is_caught


def _end(span: Span, token: Token[context.Context], task: Task, error: BaseException | None) -> None:
    context.detach(token)
    span.set_attribute("rush.state", task.state)
    if error is not None:
        span.record_exception(error)
    if task.state != "finished":
        failure = task.failure
        span.set_status(StatusCode.ERROR, failure.message if failure is not None else str(error or "not ended"))
    span.end()
