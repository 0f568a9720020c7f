"""A run on a server that has its models loaded: the one of `--server URL`, or one of this user on this machine.

Imports neither torch nor transformers, and before the reply not even the graph: the first token must not wait for them.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
from rich.console import Console

from cachegraph.common.json_text import JSONProblem, parse_json
from cachegraph.errors import ConfigError, InputError, RunError
from cachegraph.serving.local_servers import find_server

from .output import open_console, write

if TYPE_CHECKING:
    from cachegraph.graph.run.result import Result

__all__ = ["run_on_local_server", "run_on_server"]

SILENCE = 60.0  # seconds; the server sends a comment four times a minute


def run_on_server(
    url: str,
    key_file: Path | None,
    models: Sequence[tuple[str, str]],
    inputs: Mapping[str, Any],
    session: str | None,
    quiet: bool,
) -> "list[Result]":
    """Run each of these models, of which the output is named too, and print their replies as they are written.

    Raises ConfigError where no server answers, InputError for what it refuses, and RunError.
    """
    headers = {"Authorization": f"Bearer {_key(key_file)}"} if key_file is not None else {}
    console = open_console(stderr=True, quiet=quiet)
    results: list[Result] = []
    try:
        with httpx2.Client(base_url=url, headers=headers, timeout=SILENCE, trust_env=False) as client:
            for model, output in models:
                body = {"graph": model, "inputs": dict(inputs), "session": session}
                results.append(_run(client, body, output, quiet, console))
    except (httpx2.TransportError, httpx2.InvalidURL, httpx2.UnsupportedProtocol, json.JSONDecodeError) as error:
        why = str(error) or type(error).__name__
        raise ConfigError(
            f"no cachegraph server answers at {url!r} ({why}); start one with `cachegraph serve`"
        ) from error
    return results


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
    console = open_console(stderr=True, quiet=quiet)
    model = f"{found.recipe.name}@{channel}" if channel is not None else found.recipe.name
    with httpx2.Client(base_url=found.url, timeout=SILENCE, trust_env=False) as client:
        try:
            inputs = {name: _parsed(found.recipe.inputs.get(name), text) for name, text in texts.items()}
            answer = client.post("/runs", json={"graph": model, "inputs": inputs, "session": session})
            run = str(answer.json()["id"]) if answer.status_code == 201 else None
        except (httpx2.HTTPError, JSONProblem, ValueError, KeyError, TypeError):
            return None
        if run is None:  # it is loading, full, or stopping, or the inputs are wrong, which a run here reports
            return None
        console.print(f"on the server at {found.url} (--no-server runs it here)", soft_wrap=True)
        return _watch(client, run, found.recipe.output, quiet, console)


def _parsed(kind: str | None, text: str) -> Any:
    return text if kind in ("string", None) else parse_json(text)


def _run(client: httpx2.Client, body: Mapping[str, Any], output: str, quiet: bool, console: Console) -> "Result":
    run = _checked(client.post("/runs", json=body)).json()["id"]
    return _watch(client, run, output, quiet, console)


def _watch(client: httpx2.Client, run: str, output: str, quiet: bool, console: Console) -> "Result":
    """Print a run's reply as it comes, then its tables. Ctrl-C cancels the run. Raises RunError if it fails."""
    try:
        result = _follow(client, run, output, quiet)
    except KeyboardInterrupt:
        with suppress(httpx2.HTTPError):
            client.post(f"/runs/{run}/cancel")
        raise
    if not quiet:
        from .progress_view import print_questions, print_tables  # not before the reply: they import the graph

        print_tables(result, console)
        print_questions(result, console, f'curl {client.base_url}/runs/{run}/answer --json \'{{"answer": "..."}}\'')
    if result.status in ("failed", "cancelled"):
        raise RunError(result.error or f"the run was {result.status}", result)
    return result


def _follow(client: httpx2.Client, run: str, output: str, quiet: bool) -> "Result":
    """Print the output's reply as it comes, and give the result of the run's end."""
    within_line = streamed = cut = False
    for event in _all_events(client, run):
        kind = event.get("type")
        if kind in ("run_finished", "run_stored"):
            result = _result(event if kind == "run_finished" else event["run"], run)
            if not quiet and result.status != "paused":
                write("\n" if streamed else f"{result.text}\n")
            return result
        if kind == "gap":  # pieces are missing: print the whole reply at the end
            write("\n" if within_line else "")
            within_line, streamed, cut = False, False, True
        mine = not quiet and not cut and event.get("agent") == output
        if mine and kind == "agent_started" and within_line:
            write("\n")
            within_line = False
        if mine and kind == "text_delta":
            write(str(event["text"]))
            within_line = streamed = True
    raise ConfigError(f"the server stopped before run {run!r} had ended; it resumes the run when it is started again")


def _all_events(client: httpx2.Client, run: str) -> Iterator[dict[str, Any]]:
    """A run's events; `gap` stands for those that the server has dropped, or `run_stored` if the run has ended."""
    last: str | None = ""
    while last is not None:
        headers, last = {"Last-Event-ID": last} if last else {}, None
        with client.stream("GET", f"/runs/{run}/events", headers=headers) as answer:
            for id, event in _events(_checked(answer)):
                if event.get("type") == "run_stored" and event["run"]["status"] == "running":
                    event, last = {"type": "gap"}, id
                yield event


def _events(answer: httpx2.Response) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """The events of an answer, with their ids."""
    id: str | None = None
    for line in answer.iter_lines():
        if line.startswith("id: "):
            id = line.removeprefix("id: ")
        elif line.startswith("data: "):
            yield id, json.loads(line.removeprefix("data: "))


def _result(event: Mapping[str, Any], run: str) -> "Result":
    from pydantic import ValidationError

    from cachegraph.graph.run.result import Result

    if event.get("result") is None:
        raise ConfigError(f"the server has only the replies of run {run!r} left; ask it for /runs/{run}")
    try:
        return Result.model_validate(event["result"])
    except (ValidationError, KeyError) as error:
        raise ConfigError("the server's result can't be read; it may be another version of cachegraph") from error


def _checked(answer: httpx2.Response) -> httpx2.Response:
    """The answer. Raises what the server says is wrong."""
    if answer.status_code < 400:
        return answer
    answer.read()
    try:
        words = str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"the server at {str(answer.url)!r} is none of cachegraph ({answer.status_code})") from None
    if answer.status_code in (401, 403, 421, 429) or answer.status_code >= 500:
        raise ConfigError(f"the server says: {words}")
    raise InputError(f"the server says: {words}")


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
