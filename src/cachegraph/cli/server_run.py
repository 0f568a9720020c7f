"""A run on a server that has its models loaded: the one of `--server URL`, or one of this user on this machine.

Imports neither torch nor transformers, and before the reply not even the graph: the first token must not wait for them.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cachegraph.common.json_text import JSONProblem, parse_json
from cachegraph.errors import ConfigError, InputError, RunError
from cachegraph.serving.local_servers import find_server

from .options import by_option
from .output import echo, write
from .server_connection import ServerAnswer, ServerConnection, ServerConnectionError

if TYPE_CHECKING:
    from cachegraph.channels.channel import Channel
    from cachegraph.graph.graph import Graph
    from cachegraph.graph.run.result import Result

__all__ = ["run_on_local_server", "run_on_server", "run_unchanged"]

NAME = re.compile(rb"^name: *([\w.-]+) *$", re.MULTILINE)  # of a recipe, as it is usually written
SILENCE = 60.0  # seconds; the server sends a comment four times a minute


def run_unchanged(
    url: str,
    key_file: Path | None,
    recipe: Path,
    texts: Mapping[str, str],
    channels: "Sequence[Channel]",
    session: str | None,
    quiet: bool,
) -> "list[Result] | None":
    """Run a recipe whose file is the server's, byte by byte, so that it needs no check here; once for each channel.

    None if it is another file, or if its inputs are missing or can't be parsed. Raises what `run_on_server` raises.
    """
    try:
        content = recipe.read_bytes() if recipe.is_file() else b""
    except (OSError, ValueError):
        return None
    named = NAME.search(content)
    if named is None:
        return None
    with _connection(url, key_file) as server:
        answer = server.get(f"/graphs/{named[1].decode()}")
        try:
            graph = answer.json()
            if answer.status != 200 or graph["sha256"] != hashlib.sha256(content).hexdigest():
                return None
            kinds = {name: entry["type"] for name, entry in graph["inputs"].items()}
            inputs = {name: _parsed(kinds.get(name), text) for name, text in texts.items()}
            output = next(iter(graph["outputs"].values()))
            if any(entry["default"] is None for name, entry in graph["inputs"].items() if name not in texts):
                return None
        except (JSONProblem, ValueError, KeyError, TypeError, AttributeError):
            return None
        return [
            _run(server, {"graph": model, "inputs": inputs, "session": session}, output, quiet)
            for model in _models(graph["name"], channels)
        ]


def run_on_server(
    url: str,
    key_file: Path | None,
    graph: "Graph",
    texts: Mapping[str, str],
    channels: "Sequence[Channel]",
    session: str | None,
    quiet: bool,
) -> "list[Result]":
    """Run the server's recipe of the same name, once for each channel, and print the replies as they are written.

    Raises ConfigError where no server answers, InputError for what it refuses, and RunError.
    """
    from cachegraph.graph.recipe.inputs import check_inputs, parse_inputs

    inputs = check_inputs(graph.spec.inputs, parse_inputs(graph.spec.inputs, texts), remedy=by_option)
    with _connection(url, key_file) as server:
        return [
            _run(server, {"graph": model, "inputs": dict(inputs), "session": session}, graph.output, quiet)
            for model in _models(graph.spec.name, channels)
        ]


@contextmanager
def _connection(url: str, key_file: Path | None) -> Iterator[ServerConnection]:
    """A connection for this block. Raises ConfigError if no server answers."""
    key = _key(key_file) if key_file is not None else None
    try:
        with closing(ServerConnection(url, SILENCE, key)) as server:
            yield server
    except ServerConnectionError as error:
        raise ConfigError(
            f"no cachegraph server answers at {url!r} ({error}); start one with `cachegraph serve`"
        ) from error


def _models(name: str, channels: "Sequence[Channel]") -> list[str]:
    return [f"{name}@{channel}" for channel in channels] or [name]


def run_on_local_server(
    recipe: Path,
    permitted: Mapping[str, Any],
    texts: Mapping[str, str],
    channel: str | None,
    session: str | None,
    quiet: bool,
) -> "Result | None":
    """Run on a server of this user that serves this very recipe. None if there is none that takes the run."""
    found = find_server(recipe, permitted)
    if found is None:
        return None
    model = f"{found.recipe.name}@{channel}" if channel is not None else found.recipe.name
    with closing(ServerConnection(found.url, SILENCE)) as server:
        try:
            inputs = {name: _parsed(found.recipe.inputs.get(name), text) for name, text in texts.items()}
            answer = server.post("/runs", {"graph": model, "inputs": inputs, "session": session})
            run = str(answer.json()["id"]) if answer.status == 201 else None
        except (ServerConnectionError, JSONProblem, ValueError, KeyError, TypeError):
            return None
        if run is None:  # it is loading, full, or stopping, or the inputs are wrong, which a run here reports
            return None
        if not quiet:
            echo(f"on the server at {found.url} (--no-server runs it here)", err=True)
        return _watch(server, run, found.recipe.output, quiet)


def _parsed(kind: str | None, text: str) -> Any:
    return text if kind in ("string", None) else parse_json(text)


def _run(server: ServerConnection, body: Mapping[str, Any], output: str, quiet: bool) -> "Result":
    answer = _checked(server.post("/runs", body), server)
    try:
        run = str(answer.json()["id"])
    except (ValueError, KeyError, TypeError):
        raise _foreign(answer, server) from None
    return _watch(server, run, output, quiet)


def _watch(server: ServerConnection, run: str, output: str, quiet: bool) -> "Result":
    """Print a run's reply as it comes, then its tables. Ctrl-C cancels the run. Raises RunError if it fails."""
    try:
        result = _follow(server, run, output, quiet)
    except KeyboardInterrupt:
        server.close()  # its answer is not read to the end
        with suppress(ServerConnectionError):
            server.post(f"/runs/{run}/cancel")
        raise
    if not quiet:
        from .console import open_console
        from .result_tables import print_questions, print_tables  # not before the reply, which must not wait for them

        console = open_console(stderr=True)
        print_tables(result, console)
        print_questions(result, console, f'curl {server.url}/runs/{run}/answer --json \'{{"answer": "..."}}\'')
    if result.status in ("failed", "cancelled"):
        raise RunError(result.error or f"the run was {result.status}", result)
    return result


def _follow(server: ServerConnection, run: str, output: str, quiet: bool) -> "Result":
    """Print the output's reply as it comes, and give the result of the run's end."""
    within_line = streamed = cut = False
    for event in _all_events(server, run):
        kind = event.get("type")
        if kind in ("run_finished", "run_stored"):
            end = event if kind == "run_finished" else event["run"]
            reply = end.get("result") or {"status": None}
            if not quiet and reply["status"] not in ("paused", None):
                write("\n" if streamed else f"{reply['text']}\n")  # before the import that `_result` needs
            return _result(end, run)
        if kind == "gap":  # pieces are missing: print the whole reply at the end
            write("\n" if within_line else "")
            within_line, streamed, cut = False, False, True
        shown = not quiet and not cut and event.get("agent") == output
        if shown and kind == "agent_started" and within_line:
            write("\n")
            within_line = False
        if shown and kind == "text_delta":
            write(str(event["text"]))
            within_line = streamed = True
    raise ConfigError(f"the server stopped before run {run!r} had ended; it resumes the run when it is started again")


def _all_events(server: ServerConnection, run: str) -> Iterator[dict[str, Any]]:
    """A run's events; `gap` stands for those that the server has dropped, or `run_stored` if the run has ended."""
    last: str | None = ""
    while last is not None:
        events, last = server.events(f"/runs/{run}/events", last), None
        if isinstance(events, ServerAnswer):
            _checked(events, server)
            return
        for id, event in events:
            if event.get("type") == "run_stored" and event["run"]["status"] == "running":
                event, last = {"type": "gap"}, id
            yield event


def _result(event: Mapping[str, Any], run: str) -> "Result":
    from pydantic import ValidationError

    from cachegraph.graph.run.result import Result

    if event.get("result") is None:
        raise ConfigError(f"the server has only the replies of run {run!r} left; ask it for /runs/{run}")
    try:
        return Result.model_validate(event["result"])
    except (ValidationError, KeyError) as error:
        raise ConfigError("the server's result can't be read; it may be another version of cachegraph") from error


def _checked(answer: ServerAnswer, server: ServerConnection) -> ServerAnswer:
    """The answer. Raises what the server says is wrong."""
    if answer.status < 400:
        return answer
    try:
        words = str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        raise _foreign(answer, server) from None
    if answer.status in (401, 403, 421, 429) or answer.status >= 500:
        raise ConfigError(f"the server says: {words}")
    raise InputError(f"the server says: {words}")


def _foreign(answer: ServerAnswer, server: ServerConnection) -> ConfigError:
    return ConfigError(f"the server at {server.url!r} is not a cachegraph server ({answer.status})")


def _key(file: Path) -> str:
    """The key in a file, which may be one line of the server's own."""
    try:
        lines = [line.split() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"the key file {str(file)!r} can't be read: {why}") from error
    keys = [words[-1] for words in lines if words and not words[0].startswith("#")]
    if not keys or not keys[0].isascii():
        raise ConfigError(f"the key file {str(file)!r} holds no key")
    return keys[0]
