"""Counts of the fuzzers: how many cases each tried, and how they ended.

A fuzzer prints its counts with `report`, under a name of `FUZZERS`. `python benchmarks/fuzzers.py` runs all of them and
prints the table of docs/reference/security.md. CACHEGRAPH_FUZZ_SECONDS is the time that each fuzzer takes instead of
its own; fuzzers that try a number of cases then try as many more.
"""

import os
from collections.abc import Mapping

__all__ = ["FUZZERS", "MARK", "QUICK_SECONDS", "cases", "report", "seconds"]

MARK = "fuzzer: "  # begins a line of counts
QUICK_SECONDS = 4.0  # a fuzzer of the suite takes about this long at most

FUZZERS = {  # row of the table: the file that fills it
    "recipes": "tests/fuzz/test_fuzz.py",
    "inputs": "tests/fuzz/test_fuzz.py",
    "data files": "tests/fuzz/test_fuzz.py",
    "schemas": "tests/fuzz/test_fuzz.py",
    "prompts and conditions": "tests/fuzz/test_fuzz.py",
    "chat templates": "tests/fuzz/test_fuzz.py",
    "recorded turns": "tests/fuzz/test_recordings_fuzz.py",
    "GGUF headers": "tests/fuzz/test_files_fuzz.py",
    "sessions": "tests/fuzz/test_files_fuzz.py",
    "checkpoints": "tests/fuzz/test_files_fuzz.py",
    "endpoint streams, strange": "tests/agents/test_endpoint_fuzz.py",
    "endpoint streams, damaged": "tests/agents/test_endpoint_fuzz.py",
    "endpoint streams, cut": "tests/agents/test_endpoint_fuzz.py",
    "replies that a grammar writes": "tests/engine/test_schema_agreement.py",
    "values that a schema judges": "tests/engine/test_schema_agreement.py",
    "run stores": "tests/graph/store/test_damage.py",
    "fuser folders (c2c)": "tests/channels/test_fuser_damage.py",
    "fuser folders (lean)": "tests/channels/test_fuser_damage.py",
    "fuser folders (translator)": "tests/channels/test_fuser_damage.py",
    "fuser folders (published)": "tests/channels/test_fuser_damage.py",
    "model folders (config.json)": "tests/engine/test_model_damage.py",
    "model folders (model.safetensors)": "tests/engine/test_model_damage.py",
    "model folders (tokenizer.json)": "tests/engine/test_model_damage.py",
    "model folders (tokenizer_config.json)": "tests/engine/test_model_damage.py",
    "model folders (generation_config.json)": "tests/engine/test_model_damage.py",
}


def seconds(quick: float) -> float:
    """Return how long a fuzzer tries."""
    return float(os.environ.get("CACHEGRAPH_FUZZ_SECONDS", "0")) or quick


def cases(quick: int) -> int:
    """Return how many cases a fuzzer tries."""
    return max(quick, int(quick * seconds(QUICK_SECONDS) / QUICK_SECONDS))


def report(name: str, ends: Mapping[str, int]) -> None:
    """Print how many cases ended in which way."""
    assert name in FUZZERS, f"give {name!r} a row in FUZZERS and in docs/reference/security.md"
    print(f"\n{MARK}{name}: {', '.join(f'{count} {end}' for end, count in ends.items() if count)}")
