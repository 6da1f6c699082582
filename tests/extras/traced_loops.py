"""A loop for the tests of spans that runs in another process, with an exporter of its own."""

from __future__ import annotations

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from rush_async import RushWorker
from rush_async.extras.opentelemetry import instrument


async def evaluate_one_and_show_spans(rush: RushWorker) -> None:
    """Evaluates one task in a block, and sets the spans as an attribute: name -> trace, span and parent."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrument(rush, provider)
    task = await rush.pop_task()
    assert task is not None
    async with task:
        with provider.get_tracer("the loop's own").start_as_current_span("train"):
            task.ys = {"y": 1}
    spans = {
        span.name: [span.context.trace_id, span.context.span_id, span.parent.span_id if span.parent else None]
        for span in exporter.get_finished_spans()
        if span.context is not None
    }
    await rush.set_attrs({"spans": spans})
