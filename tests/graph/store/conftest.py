"""Stores of the test's own, and small graphs to run in them.

With CACHEGRAPH_TEST_POSTGRES=postgresql://user@host/name every test that has a store runs on that database too; what is
in its tables is lost.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cachegraph import Graph
from cachegraph.agents.scripted import ScriptedAgent, scripted
from cachegraph.graph.store import Store
from cachegraph.graph.store.schema import metadata

POSTGRES = os.environ.get("CACHEGRAPH_TEST_POSTGRES")


@pytest.fixture(
    params=["sqlite", pytest.param("postgresql", marks=pytest.mark.skipif(not POSTGRES, reason="no database is named"))]
)
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Store]:
    with Store(tmp_path / "runs.db" if request.param == "sqlite" else POSTGRES) as opened:
        if request.param == "postgresql":
            metadata.drop_all(opened._database._connectable())
        yield opened


@pytest.fixture
def file_store(tmp_path: Path) -> Iterator[Store]:
    """For what is asked of SQLite alone."""
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
