"""Live view of a run: the reply streams to stdout; other agents' replies, and tables at the end, go to stderr."""

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress

import anyio
from rich.console import Console
from rich.text import Text

from cachegraph.common.printable import printable, printable_line
from cachegraph.errors import RunError
from cachegraph.graph.graph import Graph
from cachegraph.graph.run.events import (
    AgentFailed,
    AgentFinished,
    AgentStarted,
    Event,
    RunFinished,
    RunStarted,
    TextDelta,
    ToolCalled,
)
from cachegraph.graph.run.result import Result
from cachegraph.graph.run.stream import RunStream

from .console import open_console
from .event_files import OnEvent
from .failures import add_facts
from .output import write
from .result_tables import print_questions, print_tables
from .signals import ReportedStop

__all__ = ["run_and_print", "warm_up"]


def warm_up(graphs: Sequence[Graph], inputs: Mapping[str, str]) -> None:
    """Run once without counting it, so that the first channel does not pay for the models' first run."""
    console = open_console(stderr=True)
    with console.status("warming up"):
        graphs[0].run(inputs)


def run_and_print(
    stream: RunStream, output: str, quiet: bool, record: OnEvent | None = None, title: str | None = None
) -> Result:
    """Run once, and pass every event to `record`. An interrupted or failed run still prints what has finished."""
    add_facts(lambda: json.loads(stream.result.to_json()))
    console = open_console(stderr=True, quiet=quiet)
    if title:
        console.rule(Text(title, "bold"))
    try:
        anyio.run(_follow, stream, output, quiet, console, record)
    except (KeyboardInterrupt, RunError) as error:
        stopped = isinstance(error, KeyboardInterrupt)
        if not quiet:
            with suppress(OSError) if stopped else nullcontext():  # the terminal may be gone: SIGHUP
                if stopped:
                    console.print(Text("interrupted; finished so far:", "yellow"))
                print_tables(stream.result, console)
                if stream.result.run_id:
                    console.print(f"To continue: cachegraph runs resume {stream.result.run_id}")
            if stopped:
                raise ReportedStop from error
        raise
    if not quiet:
        print_tables(stream.result, console)
        print_questions(stream.result, console, f"cachegraph runs resume {stream.result.run_id} --answer ...")
    return stream.result


async def _follow(stream: RunStream, output: str, quiet: bool, console: Console, record: OnEvent | None) -> None:
    streamed = False  # whether part of the reply is printed
    within_line = False
    ended = False
    try:
        async with stream:
            async for event in stream:
                ended = isinstance(event, RunFinished)
                if record is not None:
                    record(event)
                if quiet:
                    continue
                if isinstance(event, TextDelta) and event.agent == output:
                    write(event.text)
                    streamed = within_line = True
                    continue
                if isinstance(event, RunStarted):
                    _print_start(event, stream.result.run_id, console)
                note = _note(event, output)
                next_round = isinstance(event, AgentStarted) and event.agent == output
                if within_line and (note is not None or next_round):
                    write("\n")
                    within_line = False
                if note is not None:
                    console.print(note)
    finally:
        if within_line:
            write("\n")
        if record is not None and not ended:  # interrupted: the stream was left before its last event
            record(RunFinished(stream.result.seconds, stream.result))
    if not (quiet or streamed or stream.result.status == "paused"):
        write(f"{stream.result.text}\n")


def _print_start(event: RunStarted, run: str | None, console: Console) -> None:
    if run:
        console.print(Text(f"run {run}", "dim"))
    for warning in event.warnings:
        console.print(Text.assemble(("warning", "yellow"), f": {printable(str(warning))}"), soft_wrap=True)


def _note(event: Event, output: str) -> Text | None:
    """The line to print for an event, if any. The output agent's reply is printed elsewhere."""
    if isinstance(event, AgentFinished) and event.agent != output:
        shown = _short(event.result.text or "")
        note = Text(f"{event.agent}: {shown or '(hands over its cache)'}", "dim")
        return note.append(f" [{event.result.finish_reason}]", "yellow") if event.result.is_cut else note
    if isinstance(event, ToolCalled):
        call = event.call
        given = ", ".join(f"{name}={value!r}" for name, value in call.arguments.items())
        return Text(_short(f"{event.agent}: {call.tool}({given}) → {call.result}"), "red" if call.error else "dim")
    if isinstance(event, AgentFailed):
        return Text(f"{event.agent}: {printable(event.error)}", "red")
    return None


def _short(text: str) -> str:
    line = printable_line(text)
    return line if len(line) <= 100 else f"{line[:99]}…"
