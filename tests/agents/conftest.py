"""Agents on tiny models, and the way of a message from one to the other without a graph around them."""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch
from tiny import CHATML, config_of, save_model, save_tokenizer

from cachegraph.agents.base import Control, Delivery, Reply, Turn
from cachegraph.agents.local.agent import LocalAgent
from cachegraph.agents.prompt.prompt_view import PromptView
from cachegraph.agents.spec import AgentSpec
from cachegraph.channels.load_route import route
from cachegraph.channels.payload import Route
from cachegraph.channels.spec import AutoEdge, BothEdge, CacheEdge, EdgeSpec, TextEdge
from cachegraph.engine.pool import lease
from cachegraph.engine.spec import ModelSpec

EDGES: dict[str, type[TextEdge | CacheEdge | BothEdge | AutoEdge]] = {
    "text": TextEdge,
    "cache": CacheEdge,
    "both": BothEdge,
    "auto": AutoEdge,
}
OTHER_TEMPLATE = (
    "{% for m in messages %}<turn of {{ m.role }}>\n{{ m.content | trim }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn of model>\n{% endif %}"
)


@dataclass
class Cast:
    """Open agents and the edges between them, in the order in which they speak."""

    agents: dict[str, LocalAgent]
    edges: list[EdgeSpec]
    folder: Path
    inputs: Mapping[str, str]
    replies: dict[str, Reply] = field(default_factory=dict)
    routes: dict[tuple[str, str], Route] = field(default_factory=dict)
    prompts: dict[str, PromptView] = field(default_factory=dict)

    def decide(self) -> None:
        for edge in self.edges:
            sender, receiver = (self.agents[name].peer() for name in (edge.sender, edge.receiver))
            self.routes[edge.sender, edge.receiver] = route(edge, sender, receiver, self.folder)

    async def play(self, keep: Sequence[str] = (), control: Control | None = None) -> dict[str, Reply]:
        """Everybody's turn, under a control if one is given. Those named in `keep` hand their cache out, too."""
        self.decide()
        for name, agent in self.agents.items():
            out = [way for (sender, _), way in self.routes.items() if sender == name]
            into = [(sender, way) for (sender, receiver), way in self.routes.items() if receiver == name]
            self.replies[name] = await agent.turn(
                Turn(
                    self.inputs,
                    [Delivery(way, self.replies[sender].payload) for sender, way in into],
                    needs_text=not out or any(way.needs_text for way in out),
                    needs_cache=name in keep or any(way.needs_cache for way in out),
                    control=control,
                    on_prefill=partial(self.prompts.__setitem__, name),
                )
            )
        return self.replies


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`small`, a Llama; `other`, a Gemma with another tokenizer and template; `third`, a Qwen; `plain` without chat."""
    kinds = {
        "small": ("llama", {}),
        "other": ("gemma3_short_window", {"vocabulary": 280, "template": OTHER_TEMPLATE}),
        "third": ("qwen2", {"template": CHATML}),
        "plain": ("llama", {"template": None}),
    }
    folders = {}
    for seed, (name, (kind, options)) in enumerate(kinds.items()):
        folders[name] = tmp_path_factory.mktemp(name) / name
        save_model(config_of(kind), folders[name], seed=seed)
        save_tokenizer(folders[name], **options)  # type: ignore[arg-type]
    return folders


@pytest.fixture(scope="session")
def loaded(tiny_folders: dict[str, Path]) -> Iterator[dict[str, ModelSpec]]:
    """The tiny models, kept in memory from test to test."""
    specs = {
        name: ModelSpec(source=str(folder), dtype="float32", device="cpu") for name, folder in tiny_folders.items()
    }
    leases = [anyio.run(lease, spec, Path()) for spec in specs.values()]
    yield specs
    for each in leases:
        each.release()


Opens = Callable[..., Any]


@pytest.fixture
def cast(loaded: dict[str, ModelSpec], tmp_path: Path) -> Opens:
    """`async with cast({agent: {...}}, [edge, ...], inputs) as players`: agents on tiny models, closed at the end."""

    @asynccontextmanager
    async def opened(
        agents: Mapping[str, Mapping[str, Any]],
        edges: Sequence[Mapping[str, Any]] = (),
        models: Mapping[str, ModelSpec] | None = None,
        **inputs: str,
    ) -> AsyncIterator[Cast]:
        made = {}
        for name, parts in agents.items():
            spec = AgentSpec.model_validate({"prompt": "", **parts})
            source = {**loaded, **(models or {})}[spec.model]
            upstream = [edge["from"] for edge in edges if edge["to"] == name]
            made[name] = LocalAgent(name, spec, source, tmp_path, inputs=list(inputs), upstream=upstream)
        checked = [EDGES[edge.get("channel", "text")].model_validate(edge) for edge in edges]
        try:
            for agent in made.values():
                await agent.open()
            yield Cast(made, checked, tmp_path, inputs)
        finally:
            for agent in made.values():
                await agent.close()

    return opened
