"""Graphs that are closed while runs begin or are at work."""

from pathlib import Path

import anyio
import pytest
from tiny import config_of, save_model, save_tokenizer

from cachegraph import CachegraphError, Graph

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_model(config_of("llama"), folder)
    save_tokenizer(folder)
    return folder


def graph(model: Path) -> Graph:
    agent = {"model": "m", "prompt": "{{ q }}", "generate": {"max_new_tokens": 8, "ignore_eos": True}}
    reader = {"model": "m", "prompt": "{{ a }} so", "generate": {"max_new_tokens": 8, "ignore_eos": True}}
    return Graph(
        name="closing",
        models={"m": {"source": str(model), "dtype": "float32", "device": "cpu"}},
        inputs={"q": {}},
        agents={"a": agent, "b": reader},
        edges=[{"from": "a", "to": "b", "channel": "cache"}],
        output="b",
    )


@pytest.mark.parametrize("steps", [0, 1, 3, 10, 40, 200])
async def test_closing_while_runs_begin_or_go_on_is_a_sentence_and_the_graph_works_again(
    model: Path, steps: int
) -> None:
    made, outcomes = graph(model), []

    async def run(number: int) -> None:
        try:
            outcomes.append((await made.arun(q=f"Why {number}?")).status)
        except CachegraphError as error:
            assert "Assertion" not in str(error)  # noqa: PT017
            outcomes.append("failed")

    with anyio.fail_after(200):
        async with anyio.create_task_group() as group:
            for number in range(4):
                group.start_soon(run, number)
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
            await made.aclose()
            group.start_soon(made.aclose)
            group.start_soon(made.aclose)
        assert len(outcomes) == 4
        assert (await made.arun(q="Again?")).status == "finished"
        await made.aclose()
