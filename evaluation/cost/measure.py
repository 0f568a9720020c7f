"""Measure the constants of models and edges: prompts and steps of an engine, and runs of a graph with one edge."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from statistics import median
from typing import Any

import anyio

from cachegraph.channels.payload import Route
from cachegraph.channels.spec import named_fusers
from cachegraph.engine.batching.request_context import current_context, request_context
from cachegraph.engine.engine import Engine
from cachegraph.engine.spec import GenerateSpec
from cachegraph.engine.text.tokenizer import Tokenizer
from cachegraph.errors import ConfigError
from cachegraph.graph.graph import Graph
from cachegraph.graph.recipe.spec import GraphSpec
from cachegraph.graph.run.result import Result

from .constants import Curve, EdgeConstants, Form, ModelConstants, Point

__all__ = ["OnStage", "english", "measure_edge", "measure_model"]

OnStage = Callable[[str], None]
LENGTHS = (16, 128, 512, 1024)  # tokens of prompts
POSITIONS = (16, 128, 512)  # tokens of what edges carry
ROWS = (1, 4)
STEPS = 16  # decoded tokens
SAMPLE = 6 * LENGTHS[-1]  # characters of the text that models read
REPEATS = 3
SENTENCES = (
    "Anna keeps bees on the roof of the old library in Lisbon.",
    "Every morning she carries a bucket of sugar water up ninety-four steps, because the elevator broke in March.",
    "Her neighbour Tomas laughs at her, but in autumn he buys three jars of the honey for a cake.",
    "The hives stand in a row behind the big clock, where the wind from the river is weak.",
)


def english(characters: int) -> str:
    """English sentences of this length, over and over."""
    once = " ".join(SENTENCES)
    return " ".join([once] * (characters // len(once) + 1))[:characters]


async def measure_model(engine: Engine) -> ModelConstants:
    """Prefill and decoding of one model. Nothing that was read before is reused.

    Raises ConfigError for a model without a tokenizer.
    """
    model = engine.model
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ConfigError(f"the model {model.name!r} has no tokenizer, so its costs can't be measured")
    ids = list(tokenizer.encode(english(SAMPLE), special=False).ids)
    longest = min(len(ids), model.info.max_positions - STEPS - 1)
    lengths = [length for length in LENGTHS if length <= longest] or [longest]
    with request_context(replace(current_context(), reuse=False)):
        await engine.prefill(ids[: lengths[0]])
        prefill = [Point(length, await _median(lambda n=length: engine.prefill(ids[:n]))) for length in lengths]  # type: ignore[misc]
        step = [Point(rows, await _step(engine, ids[: lengths[0]], rows)) for rows in ROWS]
        read = await engine.prefill(ids[: lengths[0]])
    user = {"role": "user", "content": "Hi"}
    return ModelConstants(
        name=model.name,
        dtype=model.weights or str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        prefill=Curve(points=_rising(prefill)),
        step=Curve(points=_rising(step)),
        bytes_per_position=sum(segment.nbytes for segment in read.segments) / lengths[0],
        characters_per_token=_characters_per_token(engine),
        chat_tokens=_chat_tokens(tokenizer, user),
        system_tokens=_chat_tokens(tokenizer, {"role": "system", "content": "Hi"}, user),
        measured=_today(),
    )


def _characters_per_token(engine: Engine) -> float:
    assert engine.model.tokenizer is not None
    return SAMPLE / len(engine.model.tokenizer.encode(english(SAMPLE), special=False).ids)


def _chat_tokens(tokenizer: Tokenizer, *messages: Mapping[str, str]) -> int:
    """What the chat template adds to these messages of one token each."""
    if not tokenizer.has_chat:
        return 0
    return max(len(tokenizer.encode(tokenizer.chat(messages), special=False).ids) - len(messages), 0)


async def measure_edge(
    graph: Graph, route: Route, form: Form, keys: tuple[str, str], engines: tuple[Engine, Engine]
) -> EdgeConstants | None:
    """One edge of the recipe between its two models, over several lengths. None if it falls back to text.

    `keys` and `engines` are of the sharer's and the receiver's models.
    """
    pair = graph.with_spec(_pair(graph.spec, route, form))
    room = min(engine.model.info.max_positions for engine in engines) - 2 * STEPS
    per_token = min(_characters_per_token(engine) for engine in engines)
    lengths = [min(positions, room) for positions in POSITIONS]
    try:
        with request_context(replace(current_context(), reuse=False)):
            runs = [await _median_run(pair, int(per_token * positions)) for positions in dict.fromkeys(lengths)]
    finally:
        await pair.aclose()
    moves, sharers, sizes = [], [], []
    for run in runs:
        if run is None:
            return None
        positions, move, sharer, size = run
        moves.append(Point(positions, move))
        sharers.append(Point(positions, sharer))
        sizes.append(size / positions)
    return EdgeConstants(
        form=form,
        sharer=keys[0],
        receiver=keys[1],
        fuser=route.fuser,
        move=Curve(points=_rising(moves)),
        sharer_prefill=Curve(points=_rising(sharers)),
        bytes_per_position=sizes[-1],
        measured=_today(),
    )


def _pair(spec: GraphSpec, route: Route, form: Form) -> GraphSpec:
    """A recipe of two agents with this edge. For a fuse both read the document, else the sharer alone."""
    edge = route.edge
    sharer, receiver = (spec.models.get(name, name) for name in _models(spec, edge.sender, edge.receiver))
    fuser = getattr(edge, "fuser", None)
    channel: dict[str, Any] = {"from": "sharer", "to": "receiver", "channel": "cache"}
    if form != "fuse":
        channel["carries"] = "prompt"
    if fuser is not None:
        channel["fuser"] = fuser if isinstance(fuser, str) else fuser.model_dump()
    elif route.fuser is not None and route.fuser not in named_fusers(fuser):
        channel["fuser"] = route.fuser
    reads: dict[str, Any] = {"chat": False, "prompt": "{{ document }}", "generate": {"max_new_tokens": 0}}
    writes = {"chat": False, "generate": {"max_new_tokens": 1, "ignore_eos": True}}
    prompt = "{{ document }}" if form == "fuse" else "{{ sharer }}\nWhy?"
    return GraphSpec.model_validate(
        {
            "version": 1,
            "name": "costs",
            "models": {"one": _entry(sharer), "other": _entry(receiver)},
            "inputs": {"document": {}},
            "agents": {
                "sharer": {"model": "one", **reads},
                "receiver": {"model": "other", "prompt": prompt, **writes},
            },
            "edges": [channel],
            "output": "receiver",
        }
    )


def _models(spec: GraphSpec, *agents: str) -> list[str]:
    return [spec.speaker(name).model for name in agents]


def _entry(entry: Any) -> Any:
    return entry if isinstance(entry, str) else entry.model_dump(by_alias=True, exclude_unset=True)


async def _median_run(pair: Graph, characters: int) -> tuple[int, float, float, int] | None:
    """Positions that the edge carries, seconds of moving them and of the sharer's prefill, and bytes."""
    document = english(characters)
    await pair.arun(document=document)  # compiles and allocates
    results = [await pair.arun(document=document) for _ in range(REPEATS)]
    measured = [_measured(result) for result in results]
    if any(run is None for run in measured):
        return None
    runs = [run for run in measured if run is not None]
    return runs[0][0], median(run[1] for run in runs), median(run[2] for run in runs), runs[0][3]


def _measured(result: Result) -> tuple[int, float, float, int] | None:
    report = result.edges["sharer", "receiver"]
    positions = report.positions_fused + report.positions_grafted
    if report.channel_used == "text" or not positions:
        return None
    sharer, receiver = result.agents["sharer"].timing, result.agents["receiver"].timing
    prefill = report.seconds.get("sharer_prefill", 0.0) or sharer.prefill
    return positions, receiver.transfer + receiver.fuse, prefill, report.bytes


async def _median(call: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        await call()
        seconds.append(time.perf_counter() - began)
    return median(seconds)


async def _step(engine: Engine, ids: Sequence[int], rows: int) -> float:
    """Seconds of one decoding step of a number of rows."""
    spec = GenerateSpec(max_new_tokens=STEPS, ignore_eos=True)
    costs: list[float] = []

    async def generate(number: int) -> None:
        done = await engine.generate([*ids[:-1], ids[number]], spec=spec)
        costs.append(done.cost.decode / max(done.cost.generated - 1, 1))

    for _ in range(REPEATS):
        async with anyio.create_task_group() as group:
            for number in range(rows):
                group.start_soon(generate, number)
    return median(costs)


def _rising(points: Sequence[Point]) -> tuple[Point, ...]:
    """The points by size, where more never costs less: a shorter measurement may have been disturbed."""
    best: list[Point] = []
    for point in sorted(set(points), reverse=True):
        ceiling = best[-1].seconds if best else point.seconds
        if not best or point.size < best[-1].size:
            best.append(Point(point.size, min(point.seconds, ceiling)))
    return tuple(reversed(best))


def _today() -> str:
    return datetime.now(UTC).date().isoformat()
