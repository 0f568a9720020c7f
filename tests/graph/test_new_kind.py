"""A kind of agent is one file and one line in the registry: what the graph must know of it, the registry tells it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RECIPE = """
version: 1
name: echoes
inputs: {word: {}}
agents:
  first: {echo: "{{ word }}"}
  second: {echo: "{{ first }}", times: 2}
edges:
  - {from: first, to: second, channel: cache}
output: second
"""


@pytest.fixture(scope="module")
def told() -> Any:
    script = Path(__file__).with_name("new_kind.py")
    done = subprocess.run([sys.executable, script], input=RECIPE, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_an_agent_of_a_new_kind_runs_from_yaml_and_from_python(told: Any) -> None:
    assert told["text"] == "hi hi hi hi"
    assert told["built"] == "yo yo yo"
    assert told["again"] == told["text"]


def test_an_agent_of_a_new_kind_is_drawn_with_what_it_reads(told: Any) -> None:
    assert "an echo, 2 times" in told["outline"]
    assert "reads word" in told["outline"]
    assert told["warnings"] == ["edge 'first' -> 'second' hands over text: agent 'first' has no KV cache"]


def test_mistakes_in_an_agent_of_a_new_kind_are_found(told: Any) -> None:
    said = "\n".join(told["problems"])
    assert "'times' must be a whole number of 1 or more, got 0" in said
    assert "unknown key 'timse'" in said
    assert "echo of agent 'first' names 'wrd', which is neither an input nor an agent" in said.replace("the ", "")


def test_a_new_kind_is_in_the_schema_for_editors(told: Any) -> None:
    assert told["in_schema"]


def test_a_cache_edge_between_agents_without_a_model_loads_no_torch(told: Any) -> None:
    assert told["torch"] is False
