"""The harness's own command line, with `--model cachegraph`.

The harness finds models in a registry that only an import extends, so its own `lm_eval` can't find ours.
"""

import os
import sys
from contextlib import suppress
from importlib import import_module

from cachegraph.common.stop_signals import catch_signals, exit_code, flush_streams
from cachegraph.errors import CachegraphError, ConfigError

__all__ = ["main"]


def main() -> None:
    """Run the command. Exit codes are those of `cachegraph`."""
    catch_signals()
    try:
        _evaluate()
    except CachegraphError as error:
        sys.stderr.write(f"cachegraph: {error}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        with suppress(OSError, ValueError):  # the terminal may be gone
            sys.stderr.write("cachegraph: interrupted\n")
        flush_streams()
        os._exit(exit_code())  # don't wait for a model that another thread is loading


def _evaluate() -> None:
    try:
        from lm_eval.__main__ import cli_evaluate
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the module {error.name!r} is missing; install the harness with: pip install 'cachegraph[eval]'"
        ) from error
    import_module("cachegraph.evaluation.harness.model")  # registers it
    cli_evaluate()


if __name__ == "__main__":
    main()
