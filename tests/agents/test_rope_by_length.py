"""Models whose RoPE frequencies depend on a row's length (longrope): each row as `generate` would write it alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SIZES, save_model, save_tokenizer
from transformers import AutoModelForCausalLM
from transformers import models as hf

from cachegraph import Graph
from cachegraph.engine.kv.rope_by_length import ByLength, RowLength, row_lengths, watch_lengths
from cachegraph.engine.model.load import load_model

BORDER = 140
ROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 4,
    "long_factor": [8.0] * 4,
    "original_max_position_embeddings": BORDER,
}
TEXT = "the sea is green and the sky is blue, what is the question of the answer? "
KINDS: dict[str, Callable[[], Any]] = {
    "phi3": lambda: hf.phi3.Phi3Config(
        **{**SIZES, "pad_token_id": 0}, original_max_position_embeddings=BORDER, rope_parameters=ROPE
    ),
    # Its generate goes on from keys of both kinds.
    "llama": lambda: hf.llama.LlamaConfig(**SIZES, rope_parameters={**ROPE, "factor": 4.0}),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for kind, config in KINDS.items():
        made[kind] = save_model(config(), tmp_path_factory.mktemp(kind))
        save_tokenizer(made[kind])
    return made


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    return folders[request.param]


def text_of(count: int, folder: Path) -> tuple[str, list[int]]:
    """A text of so many tokens."""
    tokenizer = load_model(folder).tokenizer
    assert tokenizer is not None
    text = ""
    while len(ids := tokenizer.encode(text, special=False).ids) < count:
        text += (TEXT * 20)[len(text)]
    return text, ids


def by_transformers(folder: Path, ids: list[int], new: int) -> str:
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = torch.tensor([ids])
    out = network.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new, do_sample=False, pad_token_id=0
    )
    tokenizer = load_model(folder).tokenizer
    assert tokenizer is not None
    return tokenizer.decode(out[0, len(ids) :].tolist())


def writer(folder: Path, new: int) -> Graph:
    generate = {"max_new_tokens": new, "ignore_eos": True}
    graph = Graph(models={"m": {"source": str(folder), "dtype": "float32", "device": "cpu"}}, output="w")
    graph.add_input("d").add_agent("w", model="m", prompt="{{ d }}", chat=False, generate=generate)
    return graph


@pytest.mark.parametrize("count", [20, 130, 300], ids=["short", "crosses the border", "long"])
def test_a_reply_is_what_generate_writes(count: int, folder: Path) -> None:
    text, ids = text_of(count, folder)
    with writer(folder, 24) as graph:
        assert graph.run(d=text).text == by_transformers(folder, ids, 24)


def test_a_row_is_the_same_beside_a_longer_one_and_behind_its_prefix(folder: Path) -> None:
    """The long row's first block is kept as a prefix; the short row begins with the same tokens."""
    long, ids = text_of(300, folder)
    short, _ = text_of(133, folder)
    assert long.startswith(short)
    with writer(folder, 4) as graph:
        alone = graph.run(d=short).text
    with writer(folder, 4) as graph:
        graph.run(d=long)
        assert [each.text for each in graph.map([{"d": short}, {"d": long}], max_concurrent=2)] == [
            alone,
            by_transformers(folder, ids, 4),
        ]


def relay(folder: Path, new: int, prompt: str = "{{ r }} why?") -> Graph:
    graph = Graph(models={"m": {"source": str(folder), "dtype": "float32", "device": "cpu"}}, output="w")
    graph.add_input("d").add_agent("r", model="m", prompt="{{ d }}", chat=False, generate={"max_new_tokens": 0})
    generate: dict[str, Any] = {"max_new_tokens": new, "ignore_eos": True}
    graph.add_agent("w", model="m", prompt=prompt, chat=False, generate=generate)
    return graph.add_edge("r", "w", "cache")


def test_a_graft_that_stays_below_the_border_is_exact(folder: Path) -> None:
    text, _ = text_of(90, folder)
    with relay(folder, 20) as graph, graph.with_channels("text") as plain:
        result = graph.run(d=text)
        assert result.edges["r", "w"].channel_used == "cache"
        assert result.text == plain.run(d=text).text


def test_a_graft_between_two_long_rows_is_exact(folder: Path) -> None:
    text, _ = text_of(200, folder)
    with relay(folder, 20) as graph, graph.with_channels("text") as plain:
        result = graph.run(d=text)
        assert result.edges["r", "w"].channel_used == "cache"
        assert result.text == plain.run(d=text).text


@pytest.mark.parametrize(
    ("count", "new", "prompt", "reason"),
    [
        (90, 100, "{{ r }} why?", f"beyond {BORDER} it rotates all keys by other frequencies"),
        (138, 4, "{{ r }} the sea is green and the sky is blue?", "the receiver's row is so long that its keys have"),
        (200, 4, "Now: {{ r }} why?", f"moved below position {BORDER} alone"),
    ],
    ids=["by its reply", "by the receiver's prompt", "behind other tokens"],
)
def test_a_graft_beyond_the_border_falls_back_by_name(
    count: int, new: int, prompt: str, reason: str, folder: Path
) -> None:
    text, _ = text_of(count, folder)
    with relay(folder, new, prompt) as graph, graph.with_channels("text") as plain:
        result = graph.run(d=text)
        assert result.edges["r", "w"].channel_used == "text"
        assert reason in (result.edges["r", "w"].fallback_reason or "")
        assert result.text == plain.run(d=text).text


def test_dynamic_frequencies_are_of_each_rows_own_length() -> None:
    """Behind the longest row that was met, transformers keeps its frequencies for shorter ones."""
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    config = hf.llama.LlamaConfig(**{**SIZES, "max_position_embeddings": 64}, rope_parameters=rope)
    network, fresh = (hf.llama.LlamaForCausalLM(config).model for _ in range(2))
    how = watch_lengths(network, "past_key_values")
    assert how == ByLength(64, each_length=True)
    assert [how.factors(length) for length in (64, 65)] == [0, 65]
    x = torch.zeros(1)
    with row_lengths([RowLength(10, 100), RowLength(5, 5)]):
        places = torch.cat([torch.arange(10), torch.arange(5)])[None]
        cos, _ = network.rotary_emb(x, places)
    short, _ = fresh.rotary_emb(x, torch.arange(5)[None])
    long, _ = fresh.rotary_emb(x, torch.arange(100)[None])
    assert torch.equal(cos[:, 10:], short)
    assert torch.equal(cos[:, :10], long[:, :10])
