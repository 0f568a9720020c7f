"""What a run's reader sees line by line."""

import io
from collections.abc import AsyncIterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from rich.console import Console

from cachegraph.agents.base import Timing, Tokens
from cachegraph.channels.payload import EdgeReport
from cachegraph.cli.progress_view import _follow
from cachegraph.cli.result_tables import _print_agents, print_tables
from cachegraph.graph.run.events import AgentFinished, AgentStarted, Event, TextDelta
from cachegraph.graph.run.result import AgentResult, Loading, Result, Totals


class Stream:
    """A run that was over before: its events, one after the other."""

    def __init__(self, *events: Event):
        self.events = events
        self.result = SimpleNamespace(run_id=None, seconds=0.0, status="finished", text="")

    async def __aenter__(self) -> "Stream":
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def __aiter__(self) -> AsyncIterator[Event]:
        for event in self.events:
            yield event


def shown(capsys: pytest.CaptureFixture[str], *events: Event) -> str:
    """Replies and notes as a terminal shows them, one behind the other."""

    class Screen(io.StringIO):
        def write(self, text: str) -> int:
            print(text, end="")
            return len(text)

    stream: Any = Stream(*events)
    anyio.run(_follow, stream, "writer", False, Console(file=Screen(), width=100), None)
    return capsys.readouterr().out


def finished(agent: str, text: str) -> Event:
    return AgentFinished(0.0, agent, AgentResult(text=text))


def test_a_note_and_the_next_round_begin_on_lines_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    rounds = (
        AgentStarted(0.0, "writer"),
        TextDelta(0.0, "writer", "A dra"),
        TextDelta(0.0, "writer", "ft."),
        finished("writer", "A draft."),
        AgentStarted(0.0, "critic"),
        finished("critic", "Too short."),
        AgentStarted(0.0, "writer"),
        TextDelta(0.0, "writer", "A longer draft."),
    )
    assert shown(capsys, *rounds) == "A draft.\ncritic: Too short.\nA longer draft.\n"


def test_rounds_without_a_note_between_them_are_lines_too(capsys: pytest.CaptureFixture[str]) -> None:
    rounds = [
        event for n in range(2) for event in (AgentStarted(0.0, "writer"), TextDelta(0.0, "writer", f"Round {n}."))
    ]
    assert shown(capsys, *rounds) == "Round 0.\nRound 1.\n"


NAMES = ("asked_where_it_was", "asked_who_it_was", "reader")


@pytest.mark.parametrize("width", [40, 60, 80, 90, 100])
def test_a_narrow_terminal_shows_numbers_and_names_whole(width: int) -> None:
    timing = Timing(0.12, 0.34, 0.56, 0.0, 0.78, 0.91, 12.34)
    agent = AgentResult("finished", model="m", timing=timing, tokens=Tokens(128, 24, 105, 3_700_000))
    out = io.StringIO()
    result: Any = SimpleNamespace(agents=dict.fromkeys(NAMES, agent))
    _print_agents(result, Console(file=out, width=width))
    shown = out.getvalue()
    assert "…" not in shown
    assert shown.count("12.34") == 3
    lines = shown.splitlines()
    if width >= 80:
        assert max(map(len, lines)) <= width
    folded = "".join(line[: lines[0].index("read")].strip() for line in lines) if width > 80 else shown
    for name in NAMES:
        assert name in folded


def test_edges_of_long_names_are_folded_and_their_numbers_stay() -> None:
    out = io.StringIO()
    long = {f"the_one_who_checks_all_the_{what}": AgentResult("finished") for what in ("citations", "figures")}
    edge = EdgeReport("cache", "cache", bytes=123_456_789, positions_fused=7)
    pairs = {(name, "somebody_with_a_long_name_of_his_own"): edge for name in long}
    result = Result(graph="g", status="finished", output="a", agents=long, edges=pairs)
    print_tables(result, Console(file=out, width=80))
    shown = out.getvalue()
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.count("123,456,789") == 2
    folded = "".join(line[:40].strip() for line in shown.splitlines())
    for name, other in pairs:
        assert f"{name} → {other}".replace(" ", "") in folded.replace(" ", "")


@pytest.mark.parametrize("width", [80, 200])
def test_a_reply_that_was_cut_is_seen_at_a_glance(width: int) -> None:
    timing = Timing(0.12, 0.34, 0.56, 0.0, 0.78, 0.91, 12.34)
    writer = AgentResult(
        "finished", model="m", timing=timing, tokens=Tokens(1, 2, 3, 4_000_000), finish_reason="length"
    )
    whole = replace(writer, finish_reason="eos", earlier=[writer, writer])
    out = io.StringIO()
    result = Result(graph="g", status="finished", output="writer", agents={"writer": writer, "looping": whole})
    print_tables(result, Console(file=out, width=width))
    shown = out.getvalue()
    assert "cut at the token limit (length): writer; looping, 2 of 3 turns" in shown
    assert ("finish" in shown.splitlines()[0]) == (width == 200)


def test_the_table_sums_all_turns_and_says_how_many_there_were() -> None:
    out = io.StringIO()
    agent = AgentResult("finished", model="m", timing=Timing(total=1.0), tokens=Tokens(10, 2), turns=3)
    agent = replace(agent, total_timing=Timing(total=3.0), total_tokens=Tokens(30, 6))
    listing = AgentResult("finished", model="m", turns=1, items=[AgentResult(), AgentResult()])
    totals = Totals(5, Timing(), Tokens(1234, 56), 7890)
    result = Result(graph="g", status="finished", output="a", agents={"a": agent, "b": listing}, totals=totals,
                    loading=Loading(1.25, {"m": {"read": 0.5, "check": 0.25}}))  # fmt: skip
    print_tables(result, Console(file=out, width=120))
    shown = out.getvalue()
    assert "a ×3" in shown
    assert "b, 2 items" in shown
    header, units, first, *_ = shown.splitlines()
    assert header.split()[2:5] == ["read", "wrote", "total"]
    assert units.split() == ["tokens", "tokens", "s"]
    assert first.split()[-3:] == ["30", "6", "3.00"]
    assert "in all: 5 turns in 0.00 s, 1,234 tokens read, 56 tokens written, 7,890 bytes over edges" in shown
    assert "loading models: 1.25 s (m read 0.50 s, check 0.25 s)" in shown


@pytest.mark.parametrize("width", [1, 2, 20, 100_000])
@pytest.mark.parametrize("names", [(), ("a",), ("a_" * 9, "b" * 50)], ids=len)
def test_a_run_of_which_nothing_finished_is_shown_at_any_width(width: int, names: tuple[str, ...]) -> None:
    out = io.StringIO()
    agents = {name: AgentResult("failed", error="x") for name in names}
    edges = {("a", "b"): EdgeReport("cache", "text", fallback_reason="none")}
    print_tables(
        Result(graph="g", status="failed", output="a", agents=agents, edges=edges), Console(file=out, width=width)
    )
    shown = "".join(out.getvalue().split())
    assert all(name in shown for name in names)
