"""What reaches a terminal, a pipe, a full disk: never a command to the terminal, never the end of a run."""

import ast
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table
from rich.text import Text

from cachegraph.cli import main, output
from cachegraph.cli.console import open_console
from cachegraph.cli.standard_streams import TolerantStream

from .conftest import Call

CLI = Path(__file__).parents[2] / "src" / "cachegraph" / "cli"
EVIL = (
    "A\x1b]0;PWNED\x07B\x1b[31mRED\x1b[0m C\x9b31mX \x1b]52;c;cHduZWQ=\x07 "
    "[bold red]x[/] [link=http://e]y[/link] [/] \u202ez"
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm-256color")
    return screen


def _assert_harmless(shown: str) -> None:
    for bad in ("\x1b]", "\x1b[31mRED", "\x9b", "\x07", "\u202e"):
        assert bad not in shown
    assert "[bold red]x[/]" in shown
    assert "[link=http://e]y[/link] [/]" in shown


def test_a_reply_on_a_terminal_commands_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _terminal(monkeypatch)
    output.echo(EVIL)
    output.echo(EVIL, err=True)
    _assert_harmless(terminal.getvalue())


def test_json_is_escaped_wherever_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stdout", pipe)
    output.echo_json(json.dumps({"a": EVIL}, ensure_ascii=False))
    _assert_harmless(pipe.getvalue())
    assert json.loads(pipe.getvalue()) == {"a": EVIL}


def test_a_reply_in_a_pipe_is_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stdout", pipe)
    output.echo(EVIL)
    assert pipe.getvalue() == f"{EVIL}\n"


@pytest.mark.parametrize("shape", ["text", "str", "cell", "title", "rule", "status"])
def test_tables_and_notes_read_no_markup_and_command_nothing(monkeypatch: pytest.MonkeyPatch, shape: str) -> None:
    terminal = _terminal(monkeypatch)
    console = open_console()
    console.width = 500
    table = Table(title=EVIL if shape == "title" else None)
    table.add_column("x", min_width=300, no_wrap=True)
    table.add_row(EVIL if shape == "cell" else "-")
    match shape:
        case "text":
            console.print(Text(EVIL))
        case "rule":
            console.rule(Text(EVIL))
        case "status":
            with console.status(Text(EVIL)):
                pass
            console.print(EVIL)
        case "str":
            console.print(EVIL)
        case _:
            console.print(table)
    _assert_harmless(terminal.getvalue())


@pytest.mark.parametrize("file", sorted(CLI.glob("*.py")), ids=lambda file: file.name)
def test_commands_print_through_the_one_door(file: Path) -> None:
    if file.name in ("output.py", "streams.py"):
        return
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in (
                *("print", "Console", "typer.echo", "typer.secho", "click.echo"),
                *("sys.stdout.write", "sys.stderr.write"),
            ), f"line {node.lineno}: print through output.py"


class _Full(io.StringIO):
    def flush(self) -> None:
        raise OSError(28, "No space left on device")


def test_a_full_stream_is_remembered_and_a_closed_one_too() -> None:
    for stream, words in ((_Full(), "No space"), (None, "closed")):
        tolerant = TolerantStream(stream)
        tolerant.write("x")
        tolerant.flush()
        tolerant.write("y")
        assert words in str(tolerant.trouble)


def _without_reader() -> io.TextIOWrapper:
    read, write = os.pipe()
    os.close(read)
    return open(write, "w")


STREAMS: dict[str, Callable[[], Any]] = {
    "fine": io.StringIO,
    "closed": lambda: None,
    "full": lambda: open("/dev/full", "w"),  # noqa: SIM115, `opened` closes them
    "read-only": lambda: open(os.open(os.devnull, os.O_RDONLY), "w"),  # noqa: SIM115
    "without reader": _without_reader,
}


@pytest.fixture
def opened() -> Iterator[Callable[[str], Any]]:
    """Call it with a key of STREAMS for such a stream, which the test's end closes."""
    streams: list[Any] = []

    def open_one(kind: str) -> Any:
        streams.append(STREAMS[kind]())
        return streams[-1]

    yield open_one
    for stream in streams:
        with suppress(OSError, AttributeError):
            stream.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
@pytest.mark.parametrize("err", ["fine", "closed", "without reader"])
@pytest.mark.parametrize("out", STREAMS)
def test_any_pair_of_streams_ends_in_the_right_code(
    out: str, err: str, monkeypatch: pytest.MonkeyPatch, opened: Callable[[str], Any]
) -> None:
    """A failing command keeps its code, and one whose output is lost has 1. Nothing but SystemExit comes out."""
    for arguments, wanted in (
        (["--version"], int(out != "fine")),
        (["validate", "nowhere.yaml"], 2),
        (["run", "nowhere.yaml", "--json"], 2),
        (["frobnicate"], 2),
    ):
        monkeypatch.setattr(sys, "argv", ["cachegraph", *arguments])
        monkeypatch.setattr(sys, "stdout", opened(out))
        monkeypatch.setattr(sys, "stderr", opened(err))
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == wanted, arguments


def test_a_file_without_a_reader_does_not_end_the_run(opened: Callable[[str], Any]) -> None:
    """As --events to a pipe whose reader left."""
    stream = TolerantStream(opened("without reader"))
    stream.write("x")
    stream.flush()
    assert stream.trouble == "Broken pipe"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
@pytest.mark.parametrize("form", ["-q", "--json"])
def test_a_reply_is_printed_although_its_events_are_incomplete(form: str, recipes: Path, call: Call) -> None:
    options = ("-i", "question=x", "--no-store", "--events", "/dev/full")
    ended = call("run", recipes / "duo.yaml", form, *options)
    assert ended.code == 3
    assert ended.out.strip()
    assert "'/dev/full' is incomplete: No space left on device" in ended.err
    if form == "--json":
        assert json.loads(ended.out)["status"] == "finished"


def _run(arguments: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    command = f"{sys.executable} -m cachegraph {arguments}"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | variables
    return subprocess.run(["bash", "-c", command], capture_output=True, check=False, env=env, timeout=120)


def test_an_output_that_is_closed_or_full_is_one_sentence() -> None:
    for redirection in (">&-", "> /dev/full"):
        done = _run(f"--version {redirection}")
        assert done.returncode == 1, done
        assert done.stderr.startswith(b"cachegraph: the output can't be written: ")
        assert done.stderr.count(b"\n") == 1


def test_a_closed_or_full_stderr_costs_nothing() -> None:
    for redirection in ("2>&-", "2> /dev/full"):
        assert _run(f"--version {redirection}").returncode == 0
        assert _run(f"validate nowhere.yaml {redirection}").returncode == 2


def test_an_output_that_is_not_utf8_gets_a_replacement(tmp_path: Path) -> None:
    (tmp_path / "😀.yaml").write_text("version: 1\n")
    done = _run(f"validate '{tmp_path}/😀.yaml'", PYTHONIOENCODING="cp1252")
    assert done.returncode == 2
    assert b"/?.yaml" in done.stderr


def test_an_argument_that_is_not_utf8_is_one_sentence() -> None:
    done = _run("run x.yaml -i q=$'caf\\xe9'")
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert b"'q' is not UTF-8 text" in done.stderr


def test_stdin_is_read_as_utf8_whatever_the_locale(tmp_path: Path) -> None:
    agents = "agents: {a: {model: m/x, prompt: '{{ q }}'}}"
    (tmp_path / "r.yaml").write_text(f"version: 1\nname: t\ninputs: {{q: {{}}}}\n{agents}\noutput: a\n")
    done = _run(f"run {tmp_path}/r.yaml -i q=@- <<< $'caf\\xe9'", LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0")
    assert done.returncode == 2
    assert b"it is not UTF-8 text (byte 4 is 0xe9)" in done.stderr


@pytest.mark.parametrize("home", ["~nobody-of-this-name/x", "/tmp/" + "x" * 300, "/dev/null"])
def test_a_home_that_cannot_be_used_is_one_sentence(home: str, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHEGRAPH_HOME", home)
    for arguments in (("models", "list"), ("fusers", "info", "x"), ("sessions", "list"), ("runs", "list")):
        ended = call(*arguments)
        assert "should not have happened" not in ended.err
        assert ended.err.count("cachegraph: ") == (ended.code != 0), arguments


def test_a_variable_that_is_not_utf8_is_one_sentence(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHEGRAPH_RUN_SERVER", "http://caf\udce9")
    ended = call("run", "nowhere.yaml")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "'CACHEGRAPH_RUN_SERVER' is not UTF-8 text" in ended.err


@pytest.mark.parametrize("command", ["info", "pull", "check"])
def test_a_model_without_a_name_is_one_sentence(command: str, call: Call) -> None:
    ended = call("models", command, "")
    assert (ended.code, ended.err.count("\n")) == (3, 1)
    assert ended.err.startswith("cachegraph: source can't be ''")
