"""What all benchmarks share: taking turns, medians with ranges, and a line that says on what they were measured."""

import argparse
import gc
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from json import dumps
from pathlib import Path
from statistics import median
from typing import Any

import torch
from separate import Crashed

__all__ = [
    "Range",
    "alternate",
    "machine",
    "options",
    "parsed",
    "profiled",
    "progress",
    "ratios",
    "seconds",
    "show",
]

PACKAGES = ("cachegraph", "torch", "transformers", "llama-cpp-python")


class Range(dict[str, float]):
    """A median, and the lowest and the highest of `n` values; a dict, so that JSON holds it as it is."""

    def __init__(self, values: Sequence[float]):
        super().__init__(median=median(values), low=min(values), high=max(values), n=len(values))

    def __format__(self, form: str) -> str:
        return f"{self['median']:{form}} ({self['low']:{form}} to {self['high']:{form}})"


def alternate(contenders: Mapping[str, Callable[[], Any]], rounds: int, *, warm_up: int = 1) -> dict[str, list[Any]]:
    """What each contender gives, round by round. They take turns, every second round in the opposite order.

    A contender that crashes has no results. Progress goes to stderr.
    """
    left = dict(contenders)
    given: dict[str, list[Any]] = {name: [] for name in contenders}
    for number in range(-warm_up, rounds):
        began = time.perf_counter()
        for name in reversed(list(left)) if number > 0 and number % 2 else list(left):
            gc.collect()
            try:
                result = left[name]()
            except Crashed as error:
                progress(f"{name}: {error}; it is left out")
                del left[name], given[name]
                continue
            if number >= 0:
                given[name].append(result)
        took, what = time.perf_counter() - began, "warm-up" if number < 0 else f"round {number + 1} of {rounds}"
        remaining = (rounds - 1 - number) * took
        progress(f"{what}: {took:.1f} s" + (f", about {remaining:.0f} s left" if remaining else ""))
    return given


def progress(text: str) -> None:
    """Print a line to stderr, where it is no part of the result."""
    print(text, file=sys.stderr, flush=True)


def seconds(function: Callable[[], Any]) -> Callable[[], float]:
    """The same function, giving how long it took."""

    def timed() -> float:
        began = time.perf_counter()
        function()
        return time.perf_counter() - began

    return timed


def ratios(over: Sequence[float], under: Sequence[float]) -> Range:
    """Round by round, so that a slow minute of the machine counts on both sides."""
    return Range([a / b for a, b in zip(over, under, strict=True)])


def options(doc: str, **sizes: tuple[int, int]) -> argparse.ArgumentParser:
    """A parser with what all benchmarks take. Of each size: what is measured, and what `--quick` takes instead."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, (whole, quick) in {"repeats": (5, 1), **sizes}.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"default {whole}; with --quick {quick}")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch, and of every rival")
    parser.add_argument("--quick", action="store_true", help="the smallest sizes: that it runs, not how fast")
    parser.add_argument("--profile", action="store_true", help="where the time goes, instead of the comparison")
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(sizes={"repeats": (5, 1), **sizes})
    return parser


def parsed(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options, every size filled in; torch has its threads from here on."""
    found = parser.parse_args(arguments)
    for name, both in vars(found).pop("sizes").items():
        if getattr(found, name) is None:
            setattr(found, name, both[found.quick])
    torch.set_num_threads(found.threads)
    return found


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **versions,
    }


def show(found: Mapping[str, Any], head: Sequence[str], rows: Sequence[Sequence[Any]], *, json: bool) -> None:
    """`found` as JSON, or as people read it: a table under its title, and below it what it was measured on."""
    on = machine()
    if json:
        print(dumps({**found, "machine": on}, indent=2))
        return
    lines = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(found["title"])
    for first, *rest in lines:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        print("  ".join([first.ljust(widths[0]), *cells]))
    print(", ".join(f"{name} {value}" for name, value in on.items()))


@contextmanager
def profiled(rows: int = 15) -> Iterator[None]:
    """Print what all threads spend their time on, by torch operation."""
    every_thread = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    with torch.profiler.profile(experimental_config=every_thread) as profile:
        yield
    print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=rows, max_name_column_width=48))


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
