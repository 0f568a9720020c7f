"""Stores in a folder of the test's own, and small graphs to run in them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cachegraph import Graph
from cachegraph.agents.testing import ScriptedAgent, scripted
from cachegraph.graph.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "runs.db") as opened:
        yield opened


def chain(*agents: ScriptedAgent, names: str = "abc", **parts: Any) -> Graph:
    """One agent behind the other, over text edges; those that are not given repeat what they hear."""
    return Graph(
        name="chain",
        inputs={"question": {}},
        agents={name: {"model": "m", "prompt": "{{ question }}"} for name in names},
        edges=[{"from": one, "to": other} for one, other in zip(names, names[1:], strict=False)],
        output=names[-1],
        create=scripted(*agents),
        **parts,
    )
