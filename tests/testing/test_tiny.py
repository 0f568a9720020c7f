"""Tiny models: deterministic, quick, and with caches that travel."""

import subprocess
import sys
import time
from pathlib import Path

import anyio
import pytest

from cachegraph import Graph
from cachegraph.engine.catalogue import ensure
from cachegraph.engine.spec import ModelSpec
from cachegraph.testing import tiny_model, with_tiny_models

ROOT = Path(__file__).parents[2]


def relay() -> Graph:
    return with_tiny_models(Graph.from_yaml(ROOT / "recipes" / "document-relay.yaml"))


def test_a_recipe_runs_over_its_cache_edges_without_weights() -> None:
    with relay() as graph:
        one, two = graph.run(document="A short letter."), graph.run(document="A short letter.")
        text = graph.with_channels("text").run(document="A short letter.")
    assert one.text == two.text
    assert one.text.replace("\n", "").isprintable()
    assert one.text
    report = one.edges["reader", "asked_who"]
    assert (report.channel_used, report.positions_grafted) == ("cache", len("A short letter."))
    assert text.edges["reader", "asked_who"].channel_used == "text"


def test_two_models_of_a_recipe_stay_two_and_fuse() -> None:
    graph = Graph(name="duo", models={"one": "smollm2-135m-instruct", "two": "gemma-3-270m"}).add_input("question")
    graph.add_agent("expert", model="two", prompt="{{ question }}", generate={"max_new_tokens": 2})
    graph.add_agent("writer", model="one", prompt="{{ expert }}{{ question }}", generate={"max_new_tokens": 8})
    graph.add_edge("expert", "writer", channel="cache", fallback="error").output = "writer"
    with with_tiny_models(graph) as tiny:
        fused = tiny.run(question="Why is the sky blue?")
        alone = tiny.with_channels("text").run(question="Why is the sky blue?")
    assert fused.edges["expert", "writer"].positions_fused > 0
    assert len({agent.model for agent in fused.agents.values()}) == 2
    assert fused.text != alone.text


def test_a_reply_has_the_length_that_was_asked_for() -> None:
    graph = Graph(
        models={"m": tiny_model()},
        agents={"a": {"model": "m", "prompt": "x", "generate": {"max_new_tokens": 9}}},
        output="a",
    )
    with graph:
        assert len(graph.run().text) == 9


def test_the_same_seed_gives_the_same_weights_in_every_process_and_another_seed_others() -> None:
    code = (
        "from cachegraph.testing import tiny_model; from cachegraph.engine.catalogue import ensure\n"
        "from cachegraph.engine.spec import ModelSpec; print(ensure(ModelSpec(source=tiny_model(3))).identity)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "src", capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ensure(ModelSpec(source=tiny_model(3))).identity
    assert ensure(ModelSpec(source=tiny_model(3))).identity != ensure(ModelSpec(source=tiny_model(4))).identity


def test_a_tiny_model_is_made_and_loaded_in_well_under_a_second() -> None:
    from cachegraph.engine.model.load import load_model

    load_model(tiny_model(7))  # what a first model costs any process
    began = time.process_time()
    load_model(tiny_model(8))
    assert time.process_time() - began < 1.0


def test_importing_the_kit_needs_neither_torch_nor_pytest() -> None:
    code = "import sys, cachegraph.testing; print({'torch', 'pytest', 'transformers'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "src", capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.anyio
async def test_many_runs_share_a_tiny_model() -> None:
    async with relay() as graph:
        results = await graph.amap([{"document": f"Letter {number}."} for number in range(4)])
    assert all(result.status == "finished" for result in results)
    await anyio.lowlevel.checkpoint()
