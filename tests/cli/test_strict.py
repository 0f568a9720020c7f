"""What a recipe's channels drop, on the command line: `validate`, `show` and `run`, with and without `--strict`."""

import json
from pathlib import Path

import pytest

from .conftest import Call

RECIPE = """\
version: 1
name: gate
models: {small: ./llama}
inputs:
  topic: {}
  tone: {default: dry}
agents:
  critic: {model: small, prompt: "{{ topic }}", generate: {max_new_tokens: 2, ignore_eos: true}}
  writer:
    model: small
    prompt: |
      {% if critic %}Better.{% endif %}
      {{ topic }} {tone}
    generate: {max_new_tokens: 2, ignore_eos: true}
edges:
  - {from: critic, to: writer}
output: writer
"""
DROPPED = "the output never gets what 'critic' wrote: 'critic' -x 'writer', since the prompt of 'writer' only asks"
UNUSED = "no prompt names the input 'tone', so nobody reads it"
BRACES = "the prompt of agent 'writer' holds '{tone}', which stays as it is; write '{{ tone }}' for the input 'tone'"


@pytest.fixture
def recipe(recipes: Path) -> Path:
    path = recipes / "gate.yaml"
    path.write_text(RECIPE)
    return path


def test_validate_warns_with_places_and_is_fine_unless_it_is_to_be_strict(recipe: Path, call: Call) -> None:
    told = call("validate", recipe)
    assert told.code == 0
    assert f"warning: {recipe}:16:5: {DROPPED}" in told.out
    assert f"warning: {recipe}:6:3: {UNUSED}" in told.out
    assert f"warning: {recipe}:13:19: {BRACES}" in told.out
    assert call("validate", recipe, "--strict").code == 2
    (found,) = json.loads(call("validate", recipe, "--json").out)
    assert found["valid"]
    assert [each["line"] for each in found["warnings"]] == [6, 16, 13]


def test_show_draws_a_lossy_edge_dashed_with_a_legend(recipe: Path, call: Call) -> None:
    assert f"warning: {DROPPED}" in call("show", recipe).out
    mermaid = call("show", recipe, "--format", "mermaid").out
    assert "linkStyle 0 stroke:#bc4c00,stroke-dasharray:3 5" in mermaid
    assert "dashed: something is lost here" in mermaid
    drawn = call("show", recipe, "--format", "svg").out
    assert '<path class="line text drops" d="M' in drawn
    assert f"<title>{DROPPED}" in drawn
    assert "something is lost" in drawn


def test_run_tells_before_and_in_the_result_and_strict_runs_nothing(recipe: Path, call: Call, tmp_path: Path) -> None:
    told = call("run", recipe, "-i", "topic=rain", "--no-store")
    assert told.code == 0
    assert f"warning: {DROPPED}" in told.err + told.out
    found = json.loads(call("run", recipe, "-i", "topic=rain", "--no-store", "--json").out)
    assert [each["kind"] for each in found["warnings"][:3]] == ["unused_input", "dropped", "single_braces"]
    events = tmp_path / "events.jsonl"
    strict = call("run", recipe, "-i", "topic=rain", "--no-store", "--json", "--strict", "--events", events)
    assert strict.code != 0
    assert DROPPED in json.loads(strict.out)["error"]
    assert '"agent_started"' not in (events.read_text() if events.exists() else "")
