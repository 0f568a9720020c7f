"""Models whose cache can't travel: named, refused for cache edges, and served all the same."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch
from tiny import load_tiny, save_model
from transformers import AutoModelForCausalLM
from transformers import models as hf

from cachegraph.engine.engine import Engine
from cachegraph.engine.spec import GenerateSpec

NO_SPECIAL: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}

NATIVE: dict[str, tuple[Callable[[], Any], str]] = {
    "mamba": (
        lambda: hf.mamba.MambaConfig(
            vocab_size=300, hidden_size=32, state_size=8, num_hidden_layers=2, initializer_range=0.3, **NO_SPECIAL
        ),
        "its 'linear_attention' layers keep no KV cache",
    ),
    "rwkv": (
        lambda: hf.rwkv.RwkvConfig(
            vocab_size=300, hidden_size=32, attention_hidden_size=32, num_hidden_layers=2, **NO_SPECIAL
        ),
        "'rwkv' models have no attention layers, so they keep no KV cache",
    ),
    "recurrent_gemma": (
        lambda: hf.recurrent_gemma.RecurrentGemmaConfig(
            **SIZES, lru_width=32, attention_window_size=64, head_dim=8, tie_word_embeddings=True, **NO_SPECIAL
        ),
        "'recurrent_gemma' models keep their recurrent state elsewhere than in transformers' cache",
    ),
    "minimax": (
        lambda: hf.minimax.MiniMaxConfig(
            **SIZES,
            head_dim=8,
            num_local_experts=4,
            num_experts_per_tok=2,
            layer_types=["linear_attention", "full_attention", "linear_attention"],
            block_size=32,
            **NO_SPECIAL,
        ),
        "'minimax' models keep their recurrent state elsewhere than in transformers' cache",
    ),
    "bloom": (
        lambda: hf.bloom.BloomConfig(
            vocab_size=300, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3, **NO_SPECIAL
        ),
        "'bloom' models compute attention in a way of their own",
    ),
}


def tokens(count: int, seed: int = 0) -> list[int]:
    return torch.randint(0, 300, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture(params=NATIVE)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def engine(kind: str, tmp_path: Path) -> Iterator[Engine]:
    engine = Engine(load_tiny(NATIVE[kind][0](), tmp_path))
    yield engine
    engine.close()


def test_the_reason_is_given_by_name(kind: str, engine: Engine) -> None:
    assert engine.model.why_no_cache == NATIVE[kind][1]


def test_logits_and_greedy_replies_are_the_models_own(kind: str, engine: Engine, tmp_path: Path) -> None:
    """Prompts longer than a step's share of tokens, one of one token, all at once."""
    network: Any = AutoModelForCausalLM.from_pretrained(save_model(NATIVE[kind][0](), tmp_path / "again"))
    prompts = [tokens(20, 1), tokens(600, 2), tokens(1, 3)]

    async def run() -> None:
        async with anyio.create_task_group() as group:
            for ids in prompts:
                group.start_soon(check, ids)

    async def check(ids: list[int]) -> None:
        done = await engine.prefill(ids, logits="all")
        assert (done.segments, done.kv) == ((), None)
        reply = await engine.generate(ids, spec=GenerateSpec(max_new_tokens=5))
        with torch.inference_mode():
            expected = network(torch.tensor([ids]), use_cache=False).logits[0]
            whole = list(ids)
            for _ in range(5):
                whole.append(int(network(torch.tensor([whole]), use_cache=False).logits[0, -1].argmax()))
        torch.testing.assert_close(done.logits, expected, rtol=1e-3, atol=1e-3)
        assert list(reply.ids) == whole[len(ids) :]

    anyio.run(run)


def test_a_failing_request_leaves_the_others_recurrent_state_alone(engine: Engine) -> None:
    async def run() -> None:
        ids, spec = tokens(9), GenerateSpec(max_new_tokens=6)
        expected = await engine.generate(ids, spec=spec)
        replies: list[Any] = []

        async def right() -> None:
            replies.append((await engine.generate(ids, spec=spec)).ids)

        async def wrong() -> None:
            with pytest.raises(Exception, match="failed in a forward pass"):
                await engine.generate([10**6], spec=spec)

        async with anyio.create_task_group() as group:
            for each in (right, wrong, right):
                group.start_soon(each)
        assert replies == [expected.ids, expected.ids]

    anyio.run(run)
