"""The command line: one module per command or group of commands. Errors become one sentence and an exit code here.

batch               cachegraph run --data
compare             cachegraph compare
console             Consoles for tables, notes and progress bars
doctor              cachegraph doctor
event_files         Files of a run's events and traces
failures            The JSON error object of a failed command
fetch               Fetch a recipe's models and fusers before a run
fusers              cachegraph fusers: list, info, import, export, pull, push, ...
garbage_collection  Turn Python's garbage collector off while a command starts
init                cachegraph init
mcp                 cachegraph mcp
models              cachegraph models: list, pull, remove, info, check
options             Options shared by commands, and opening a recipe as a graph
output              Text that commands print
process             Run a command as a process and end it quickly
progress_view       Live view of a run
recipes             cachegraph validate, schema and show
replies_file        The file of a batch's replies
result_tables       Tables of a run's result
run                 cachegraph run
runs                cachegraph runs: list, show, resume, rm, prune
serve               cachegraph serve
server_connection   HTTP to a server of cachegraph
server_run          cachegraph run on a server
sessions            cachegraph sessions: list, show, rm
show_run            Drawing of a stored run, for cachegraph show --run
signals             The end of a command that a signal stops
standard_streams    Standard streams that may be closed, full or not UTF-8
text_arguments      UTF-8 text from arguments, files and stdin
train               cachegraph train
"""

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

import typer

from cachegraph import __version__
from cachegraph.common.stop_signals import catch_signals, exit_code
from cachegraph.errors import CachegraphError

from . import failures
from .output import echo
from .signals import Commands, Stopped, end_stopped
from .standard_streams import complete_output, standard_streams
from .text_arguments import check_arguments, check_variables

__all__ = ["create_app", "main"]

# The commands, in the order of the help, by the modules that register them.
COMMANDS = {
    "init": ("init",),
    "run": ("run",),
    "serve": ("serve",),
    "mcp": ("mcp",),
    "compare": ("compare",),
    "plan": ("plan",),
    "train": ("train",),
    "recipes": ("validate", "schema", "show"),
    "doctor": ("doctor",),
    "models": ("models",),
    "fusers": ("fusers",),
    "runs": ("runs",),
    "sessions": ("sessions",),
}


def __getattr__(name: str) -> Any:
    if name == "app":  # with all commands, so with all imports
        return globals().setdefault("app", create_app())
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def create_app(arguments: Sequence[str] = ()) -> typer.Typer:
    """Create the command line. If the arguments name a command, with this command alone, which spares imports."""
    command = next((argument for argument in arguments if not argument.startswith("-")), None)
    named = [module for module, commands in COMMANDS.items() if command in commands]
    app = typer.Typer(
        name="cachegraph",
        cls=Commands,
        help="Graphs of LLM agents whose edges carry text or KV caches.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"auto_envvar_prefix": "CACHEGRAPH"},
    )
    app.callback()(_options)
    for name in named or COMMANDS:
        module = import_module(f".{name}", __name__)
        if hasattr(module, "register"):
            module.register(app)
        else:
            app.add_typer(module.app)
    return app


def _version(wanted: bool) -> None:
    if wanted:
        echo(f"cachegraph {__version__}")
        raise typer.Exit


def _options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error, as CACHEGRAPH_DEBUG=1 does.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if debug:
        os.environ["CACHEGRAPH_DEBUG"] = "1"


def main() -> None:
    """Run a command.

    Exit codes: 0 success, 1 a run failed, 2 wrong recipe or input, 3 configuration, 4 a run waits for a person,
    130 Ctrl-C, 143 SIGTERM, 129 SIGHUP. With --json a failing command also prints a JSON object with its error.
    """
    with standard_streams():
        _run_app()


def _run_app() -> None:
    debug = "--debug" in sys.argv or os.environ.get("CACHEGRAPH_DEBUG", "0") not in ("", "0")
    app = create_app(sys.argv[1:])
    failures.reset(app)
    catch_signals()
    try:
        check_arguments(sys.argv[1:])
        check_variables(sys.argv[1:])
        with complete_output(), failures.file_errors():
            app()
    except CachegraphError as error:
        if debug:
            traceback.print_exc()
        else:
            echo(f"cachegraph: {error}", err=True)
        failures.print_failure(error, str(error), error.exit_code)
        sys.exit(error.exit_code)
    except (Stopped, KeyboardInterrupt) as error:
        stopped = error.__cause__ if isinstance(error, Stopped) else error
        failures.print_failure(stopped or error, "interrupted", exit_code())
        end_stopped(stopped)
    except SystemExit as ended:
        failures.print_exit(ended)
        raise
    except BrokenPipeError:  # the reader of stdout is gone
        sys.exit(1)
    except MemoryError as error:
        sentence = "out of memory; use a smaller model, shorter inputs or fewer agents"
        echo(f"cachegraph: {sentence}", err=True)
        failures.print_failure(error, sentence, 1)
        sys.exit(1)
    except Exception as error:  # users get a sentence, and with --debug the traceback
        sentence = f"this should not have happened: {type(error).__name__}: {error}"
        failures.print_failure(error, sentence, 1)
        if debug:
            raise
        echo(f"cachegraph: {sentence}; run again with --debug and report what it prints", err=True)
        sys.exit(1)
