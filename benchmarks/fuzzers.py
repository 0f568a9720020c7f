"""How many odd recipes, inputs, files and streams the fuzzers of the tests try, and how these end.

Prints the table of docs/reference/security.md. A fuzzer fails on any error that is not our own.

    python benchmarks/fuzzers.py [--seconds 40] [--only schema] [--json]
"""

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from fuzz_counts import FUZZERS, MARK

ROOT = Path(__file__).parents[1]


def counts(output: Iterable[str]) -> dict[str, Counter[str]]:
    """Sum the counts that the fuzzers printed, by fuzzer."""
    found: dict[str, Counter[str]] = {}
    for line in output:
        _, mark, rest = line.partition(MARK)
        name, colon, ends = rest.partition(": ")
        if not (mark and colon and name in FUZZERS):
            continue
        for each in ends.strip().split(", "):
            count, _, end = each.partition(" ")
            found.setdefault(name, Counter())[end] += int(count)
    return found


def table(found: dict[str, Counter[str]]) -> str:
    """The counts as Markdown."""
    rows = ["| what | tried | how they ended | where |", "|---|---|---|---|"]
    for name in (each for each in FUZZERS if each in found):
        ends = found[name]
        words = ", ".join(f"{count:,} {end}" for end, count in ends.items())
        rows.append(f"| {name} | {sum(ends.values()):,} | {words} | `{FUZZERS[name]}` |")
    return "\n".join(rows)


def run(seconds: float, only: str) -> tuple[dict[str, Counter[str]], int]:
    """Run the fuzzers, and give their counts and pytest's exit code."""
    files = dict.fromkeys(file for name, file in FUZZERS.items() if only in name)
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "-o", "timeout=0", *files]
    variables = os.environ | ({"CACHEGRAPH_FUZZ_SECONDS": str(seconds)} if seconds else {})
    done = subprocess.run(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        print(done.stdout[-10_000:], file=sys.stderr)
    return counts(done.stdout.splitlines()), done.returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0, help="of each fuzzer; by default as in the tests")
    parser.add_argument("--only", default="", help="only fuzzers whose name contains this")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found, code = run(given.seconds, given.only)
    print(json.dumps(found) if given.json else table(found))
    sys.exit(code)


if __name__ == "__main__":
    main()
