"""Turn a run's events into spans.

Spans take their times from the events. During an agent's turn, its innermost span is current in the agent's task, so
that spans of its calls (HTTP clients, tools) become children.
"""

import json
from collections.abc import Mapping
from contextvars import Token
from dataclasses import dataclass
from time import time_ns
from typing import Any

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, Tracer

from ..recipe.spec import GraphSpec
from ..run.events import (
    AgentCancelled,
    AgentFailed,
    AgentFinished,
    AgentPaused,
    AgentSkipped,
    AgentStarted,
    EdgeTravelled,
    Event,
    RunFinished,
    RunStarted,
    ToolCalled,
)
from ..run.result import AgentResult
from . import names
from .instruments import Instruments
from .model_attributes import Model

__all__ = ["Spans"]


@dataclass(frozen=True, eq=False)
class _Open:
    """An agent's open turn. `inner` is the span of its model call, if any."""

    agent: str
    began: float
    outer: Span
    inner: Span | None
    token: "Token[Context]"


class Spans:
    """The listener of one run. `inputs` are set if content capture is enabled."""

    def __init__(
        self,
        spec: GraphSpec,
        models: Mapping[str, Model],
        tracer: Tracer,
        instruments: Instruments | None,
        inputs: Mapping[str, Any] | None,
    ):
        self._spec = spec
        self._models = models
        self._tracer = tracer
        self._instruments = instruments
        self._inputs = inputs
        self._around = context.get_current()  # the caller's context, whose span is the run's parent
        self._zero: int | None = None  # the run's start on the spans' clock
        self._run: Span | None = None
        self._open: dict[str, _Open] = {}  # by turn
        self._ended: dict[str, SpanContext] = {}  # by turn: link targets of outgoing edges

    def __call__(self, event: Event) -> None:
        if self._zero is None:
            self._zero = time_ns() - int(event.at * 1e9)
        match event:
            case RunStarted():
                self._start_run()
            case AgentStarted():
                self._start(event)
            case EdgeTravelled():
                self._edge(event)
            case ToolCalled():
                self._tool(event)
            case AgentSkipped():
                self._note(names.SKIPPED, event.at, event.agent, event.turn)
            case AgentCancelled():
                self._note(names.CANCELLED, event.at, event.agent, event.turn)
            case AgentFinished():
                self._finish(event)
            case AgentFailed():
                self._fail(event)
            case AgentPaused():
                self._pause(event)
            case RunFinished():
                self._end_run(event)

    def _time(self, at: float) -> int:
        return (self._zero or 0) + int(at * 1e9)

    # The run

    def _start_run(self) -> Span:
        attributes = {
            names.OPERATION: names.WORKFLOW,
            names.AGENT_NAME: self._spec.name,
            names.WORKFLOW_NAME: self._spec.name,
        }
        name = f"{names.WORKFLOW} {self._spec.name}"
        self._run = self._tracer.start_span(name, self._around, attributes=attributes, start_time=self._time(0.0))
        if self._inputs is not None:
            self._run.set_attribute(names.INPUT_MESSAGES, _said("user", json.dumps(dict(self._inputs), default=str)))
        return self._run

    def _end_run(self, event: RunFinished) -> None:
        run, result = self._run or self._start_run(), event.result
        for turn in list(self._open):  # turns that the run's cancellation cut off
            self._error(self._close(turn, detach=False), event.at, "cancelled", "the run was ended first")
        run.set_attribute(names.STATUS, result.status)
        about: dict[str, Any] = {names.OPERATION: names.WORKFLOW, names.AGENT_NAME: self._spec.name}
        if result.status in ("failed", "cancelled"):
            about[names.ERROR_TYPE] = result.status
            run.set_attribute(names.ERROR_TYPE, result.status)
            run.set_status(Status(StatusCode.ERROR, result.error))
        elif self._inputs is not None:
            run.set_attribute(names.OUTPUT_MESSAGES, _said("assistant", result.text, "stop"))
        run.end(self._time(event.at))
        if self._instruments is not None:
            self._instruments.turn.record(event.at, about)

    def _note(self, what: str, at: float, agent: str, turn: str) -> None:
        """Add an instantaneous event to the run's span."""
        if self._run is not None:
            self._run.add_event(what, {names.AGENT_NAME: agent, names.TURN: turn}, self._time(at))

    # Turns

    def _start(self, event: AgentStarted) -> None:
        model = self._models.get(event.agent)
        about = model.attributes if model is not None else {}
        start, parent = self._time(event.at), self._parent(event.turn)
        attributes = {
            names.OPERATION: names.AGENT,
            names.AGENT_NAME: event.agent,
            names.WORKFLOW_NAME: self._spec.name,
            names.TURN: event.turn,
            **about,
        }
        outer = self._tracer.start_span(f"{names.AGENT} {event.agent}", parent, attributes=attributes, start_time=start)
        inner = None
        if model is not None:
            attributes = {names.OPERATION: names.CHAT, names.AGENT_NAME: event.agent, **about, **model.request}
            kind = SpanKind.INTERNAL if model.is_local else SpanKind.CLIENT
            inner = self._tracer.start_span(
                f"{names.CHAT} {model.name}",
                trace.set_span_in_context(outer, parent),
                kind,
                attributes=attributes,
                start_time=start,
            )
        token = context.attach(trace.set_span_in_context(inner or outer, self._around))
        self._open[event.turn] = _Open(event.agent, event.at, outer, inner, token)

    def _parent(self, turn: str) -> Context:
        """Return the run's context, or that of the enclosing sub-graph's turn."""
        within = self._open.get(turn.rpartition("/")[0])
        span = within.outer if within is not None else self._run
        return trace.set_span_in_context(span or trace.INVALID_SPAN, self._around)

    def _finish(self, event: AgentFinished) -> None:
        if event.turn not in self._open:
            return
        turn, result, end = self._close(event.turn), event.result, self._time(event.at)
        seconds = event.at - turn.began
        if event.recalled:  # the trace of the earlier attempt has its usage
            for span in (turn.inner, turn.outer):
                if span is not None:
                    span.set_attribute(names.RECALLED, True)
                    span.end(end)
            return
        if turn.inner is not None:
            turn.inner.set_attributes(_usage(result))
            turn.inner.set_attributes(_phases(result))
            if result.finish_reason is not None:
                turn.inner.set_attribute(names.FINISH_REASONS, [result.finish_reason])
            if self._inputs is not None and result.text:
                finish = result.finish_reason or "stop"
                turn.inner.set_attribute(names.OUTPUT_MESSAGES, _said("assistant", result.text, finish))
            turn.inner.end(end)
        turn.outer.end(end)
        if self._instruments is not None:
            if turn.inner is not None:
                self._instruments.chat(self._models[turn.agent], result, seconds)
            self._instruments.turn.record(seconds, self._about(turn))

    def _fail(self, event: AgentFailed) -> None:
        if event.turn in self._open:
            self._error(self._close(event.turn), event.at, event.kind, event.error)

    def _pause(self, event: AgentPaused) -> None:
        """Close a turn that waits for a person, without an error; the resumed run gets new spans."""
        if event.turn in self._open:
            turn = self._close(event.turn)
            turn.outer.set_attribute(names.STATUS, "paused")
            for span in (turn.inner, turn.outer):
                if span is not None:
                    span.end(self._time(event.at))

    def _close(self, name: str, *, detach: bool = True) -> _Open:
        """Remove an open turn and restore the task's previous current span, unless the task has ended."""
        turn = self._open.pop(name)
        if detach:
            context.detach(turn.token)
        self._ended[name] = turn.outer.get_span_context()
        return turn

    def _error(self, turn: _Open, at: float, kind: str, error: str) -> None:
        for span in (turn.inner, turn.outer):
            if span is not None:
                span.set_attribute(names.ERROR_TYPE, kind)
                span.set_status(Status(StatusCode.ERROR, error))
                span.end(self._time(at))
        if self._instruments is not None:
            if turn.inner is not None:
                self._instruments.failed_chat(self._models[turn.agent], kind, at - turn.began)
            self._instruments.turn.record(at - turn.began, {**self._about(turn), names.ERROR_TYPE: kind})

    def _about(self, turn: _Open) -> dict[str, Any]:
        return {names.OPERATION: names.AGENT, names.AGENT_NAME: turn.agent, names.WORKFLOW_NAME: self._spec.name}

    # Edges

    def _edge(self, event: EdgeTravelled) -> None:
        turn, sender, report = self._open.get(event.turn), self._ended.get(event.sender_turn), event.report
        if turn is None:
            return
        attributes: dict[str, Any] = {
            names.SENDER: event.sender,
            names.RECEIVER: event.receiver,
            names.ASKED: report.asked,
            names.USED: report.channel_used,
            names.BYTES: report.bytes,
            names.FUSED: report.positions_fused,
            names.GRAFTED: report.positions_grafted,
            **({names.FALLBACK_REASON: report.fallback_reason} if report.fallback_reason else {}),
        }
        # Edges report durations, not start times: their spans begin with the turn.
        span = self._tracer.start_span(
            f"{names.CHANNEL} {event.sender}",
            trace.set_span_in_context(turn.outer, self._around),
            attributes=attributes,
            links=[Link(sender)] if sender is not None else [],
            start_time=self._time(turn.began),
        )
        span.end(self._time(min(turn.began + sum(report.seconds.values()), event.at)))
        if self._instruments is not None:
            self._instruments.edge(report)

    # Tools

    def _tool(self, event: ToolCalled) -> None:
        turn, call = self._open.get(event.turn), event.call
        if turn is None:
            return
        # An extension runs on the side of the model's caller.
        attributes = {names.OPERATION: names.TOOL, names.TOOL_NAME: call.tool, names.TOOL_TYPE: "extension"}
        about = {**attributes, **({names.ERROR_TYPE: "tool_error"} if call.error else {})}
        span = self._tracer.start_span(
            f"{names.TOOL} {call.tool}",
            trace.set_span_in_context(turn.outer, self._around),
            attributes=about,
            start_time=self._time(event.at - call.seconds),
        )
        if call.error:
            span.set_status(Status(StatusCode.ERROR))
        if self._inputs is not None:
            span.set_attribute(names.TOOL_ARGUMENTS, json.dumps(call.arguments, default=str, ensure_ascii=False))
            span.set_attribute(names.TOOL_RESULT, call.result)
        span.end(self._time(event.at))
        if self._instruments is not None:
            self._instruments.tool.record(call.seconds, about)


def _usage(result: AgentResult) -> dict[str, Any]:
    tokens, first = result.tokens, result.timing.first_token
    return {
        names.RESPONSE_MODEL: result.model,
        names.INPUT_TOKENS: tokens.prefilled + tokens.reused,
        names.CACHED_TOKENS: tokens.reused,
        names.OUTPUT_TOKENS: tokens.generated,
        **({names.FIRST_CHUNK: first} if first is not None else {}),
    }


def _phases(result: AgentResult) -> dict[str, float]:
    timing = result.timing
    return {
        f"{names.SECONDS}.{phase}": seconds
        for phase in ("queued", "prefill", "transfer", "fuse", "decode")
        if (seconds := getattr(timing, phase))
    }


def _said(role: str, text: str, finish: str | None = None) -> str:
    """Format a message by the conventions: JSON in an attribute."""
    message: dict[str, Any] = {"role": role, "parts": [{"type": "text", "content": text}]}
    return json.dumps([{**message, "finish_reason": finish} if finish is not None else message], ensure_ascii=False)
