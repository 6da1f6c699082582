"""Spans from the push of a task to its end: in one process, in two, and how they show what failed."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from rush_async import Processes, Rush, RushWorker
from rush_async.extras.opentelemetry import instrument
from tests.extras.traced_loops import evaluate_one_and_show_spans


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> TracerProvider:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


def ids(span: ReadableSpan) -> tuple[int, int]:
    assert span.context is not None
    return span.context.trace_id, span.context.span_id


async def test_a_task_has_spans_from_its_push_to_its_end(
    rush: Rush, provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    tracer = provider.get_tracer("own")

    async def loop(rush: RushWorker) -> None:
        assert instrument(instrument(rush, provider), provider) is rush
        async for task in rush.tasks(catch=ArithmeticError):
            async with task:
                with tracer.start_as_current_span("train"):
                    task.ys = {"y": 1 / task.xs["x"]}

    instrument(rush, provider)
    with tracer.start_as_current_span("request"):
        keys = await rush.push_tasks([{"x": 0}, {"x": 2}], xss_extra=[{"why": "a test"}, None])
        assert await rush.push_tasks([], unique=True) == []
    await rush.start_workers(loop)
    await rush.wait_for_tasks([key for key in keys if key])
    (worker_id,) = (await rush.worker_info())["worker_id"]
    await rush.stop_workers(mode="terminate", timeout=0)
    await rush.join_workers(check=False)

    spans = exporter.get_finished_spans()
    (request,) = [span for span in spans if span.name == "request"]
    push, empty = [span for span in spans if span.name == "push tasks"]
    assert (push.kind, push.parent and push.parent.span_id) == (SpanKind.PRODUCER, ids(request)[1])
    assert push.attributes is not None
    assert empty.attributes is not None
    assert push.attributes["messaging.destination.name"] == rush.network_id
    assert [span.attributes["messaging.batch.message_count"] for span in (push, empty) if span.attributes] == [2, 0]
    failed, finished = [span for span in spans if span.name == "run task"]
    for span, key in [(failed, keys[0]), (finished, keys[1])]:
        assert span.attributes is not None
        assert (span.kind, span.parent and span.parent.span_id) == (SpanKind.CONSUMER, ids(push)[1])
        assert ids(span)[0] == ids(request)[0]
        own_attributes = {"messaging.message.id": key, "rush.worker": worker_id, "rush.attempt": 1}
        assert own_attributes.items() <= dict(span.attributes).items()
    assert (failed.status.status_code, failed.status.description) == (StatusCode.ERROR, "division by zero")
    assert [event.name for event in failed.events] == ["exception"]
    assert failed.attributes is not None
    assert failed.attributes["rush.state"] == "failed"
    assert (finished.status.status_code, list(finished.events)) == (StatusCode.UNSET, [])
    train = [span for span in spans if span.name == "train"]
    assert [span.parent and span.parent.span_id for span in train] == [ids(failed)[1], ids(finished)[1]]


async def test_what_a_worker_starts_itself_has_a_span_without_a_push(
    rush_worker: RushWorker, provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    instrument(rush_worker, provider)
    async with rush_worker.task({"x": 3}) as task:
        task.ys = {"y": 3}
    with pytest.raises(ValueError, match="without setting"):
        async with rush_worker.task({"x": 4}, catch=LookupError):
            pass
    finished, failed = exporter.get_finished_spans()
    assert (finished.kind, finished.parent, finished.status.status_code) == (SpanKind.INTERNAL, None, StatusCode.UNSET)
    assert failed.status.status_code == StatusCode.ERROR
    assert [event.name for event in failed.events] == ["exception"]
    assert (await rush_worker.get_tasks(task.key))[0] is not None


async def test_the_trace_continues_in_another_process(
    rush: Rush, provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    instrument(rush, provider)
    (key,) = await rush.push_tasks([{"x": 1}])
    await rush.start_workers(evaluate_one_and_show_spans, on=Processes(1))
    await rush.join_workers()
    spans = (await rush.attrs("spans"))["spans"]
    (push,) = exporter.get_finished_spans()
    trace_id, span_id, parent = spans["run task"]
    assert (trace_id, parent) == ids(push)
    assert spans["train"][::2] == [trace_id, span_id]
    (task,) = await rush.get_tasks([str(key)])
    assert task is not None
    assert task.xs_extra is not None
    assert task.xs_extra["traceparent"].startswith(f"00-{trace_id:032x}-{parent:016x}-")


async def test_without_an_sdk_nothing_changes(rush: Rush) -> None:
    instrument(rush)
    (key,) = await rush.push_tasks([{"x": 1}])
    async with RushWorker(rush.network_id, rush.config) as worker:
        instrument(worker)
        task = await worker.pop_task()
        assert task is not None
        async with task:
            task.ys = {"y": 1}
    assert (task.key, task.xs_extra, task.state) == (key, None, "finished")
