"""A contender in a process of its own, which may crash without taking the benchmark with it. Knows no torch."""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import IO, Any

__all__ = ["Crashed", "Separate"]


class Crashed(Exception):
    """Raised for a contender whose process has ended: it takes no further part."""


class Separate:
    """Makes a contender in a new process, and calls its methods there.

    `make` is 'module:function', called with `arguments`. All that is passed and returned is pickled. An exception of
    the contender ends its process; its traceback goes to stderr.
    """

    def __init__(self, make: str, *arguments: object):
        paths = os.pathsep.join(path for path in sys.path if path)
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths},
        )
        self.methods: frozenset[str] = self._ask((make, arguments))

    def call(self, method: str, *arguments: object) -> Any:
        """Call a method of the contender. Raises Crashed if its process ends, now or earlier."""
        return self._ask((method, arguments))

    def close(self) -> None:
        """End the process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:  # it has crashed
                    continue
        self._process.wait()

    def _ask(self, question: object) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            pickle.dump(question, self._process.stdin)
            self._process.stdin.flush()
            return pickle.load(self._process.stdout)
        except (BrokenPipeError, EOFError, pickle.UnpicklingError) as error:
            raise Crashed(_ending(self._process.wait())) from error


def _ending(code: int) -> str:
    if code >= 0:
        return f"its process ended with exit code {code}"
    try:
        return f"its process died with {signal.Signals(-code).name}"
    except ValueError:
        return f"its process died with signal {-code}"


def serve(questions: IO[bytes], answers: IO[bytes]) -> None:
    """Make the contender that the first question names; then answer calls until the questions end."""
    make, arguments = pickle.load(questions)
    module, _, name = make.partition(":")
    contender = getattr(import_module(module), name)(*arguments)
    _answer(answers, frozenset(each for each in dir(contender) if not each.startswith("_")))
    while True:
        try:
            method, arguments = pickle.load(questions)
        except EOFError:
            return
        call: Callable[..., Any] = getattr(contender, method)
        _answer(answers, call(*arguments))


def _answer(answers: IO[bytes], value: object) -> None:
    pickle.dump(value, answers)
    answers.flush()


def _main(_: Sequence[str]) -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    _main(sys.argv[1:])
