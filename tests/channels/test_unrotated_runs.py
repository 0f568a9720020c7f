"""Runs that fuse on unrotated keys: prompts, replies, several sharers, and which edges may."""

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
import torch
from lean_fusers import IDS, assert_close, by_hand, geometry, lean, same_bits
from tiny import config_of, load_tiny, save_model, save_tokenizer
from transformers import models as hf

from cachegraph.channels.cache.edge_plan import FusePlan
from cachegraph.channels.cache.fused_decode import FusedRow, ReplySharers
from cachegraph.channels.cache.fused_prefill import Sharer, fused_prefill
from cachegraph.channels.cache.shared_prompt import share_by_ids
from cachegraph.channels.fusers.files.weights import save_fuser
from cachegraph.channels.fusers.networks.create import new_fuser
from cachegraph.channels.load_route import route
from cachegraph.channels.peer import Peer
from cachegraph.channels.spec import CacheEdge
from cachegraph.engine.engine import Engine
from cachegraph.engine.kv.cache import KV, concat
from cachegraph.engine.kv.rope import Rotation
from cachegraph.engine.model.load import load_model


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Engine]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = {
        kind: Engine(load_tiny(config_of(kind), tmp_path_factory.mktemp(kind), seed=seed))
        for seed, kind in enumerate(("llama", "qwen3", "gemma3_long_window"))
    }
    yield made
    for engine in made.values():
        engine.close()
    torch.set_num_threads(threads)


def sharers(engines: dict[str, Engine]) -> list[Sharer]:
    names = ("qwen3", "gemma3_long_window", "qwen3")
    return [
        Sharer(engines[name], lean(engines["llama"].model, engines[name].model, seed=seed))
        for seed, name in enumerate(names)
    ]


def test_prompt_and_reply_are_corrected_as_by_hand(engines: dict[str, Engine]) -> None:
    receiver, sharer = engines["llama"], sharers(engines)[0]
    models = receiver.model, sharer.engine.model

    async def check() -> None:
        row = await fused_prefill(receiver, [sharer], share_by_ids([*IDS, 9], 1))
        own, theirs = await receiver.prefill(IDS), await sharer.engine.prefill(IDS)
        assert own.kv is not None
        assert theirs.kv is not None
        assert_close(concat(row.segments), by_hand(sharer.fuser, own.kv, theirs.kv, models))
        assert same_bits(row.uncorrected, own.segments)
        assert same_bits(row.sharers[0], theirs.segments)  # a reply goes on from it as it is, rotated

        plan = FusePlan(sharer.engine, sharer.fuser, "ids", "receiver-prompt", True)
        reply = FusedRow(receiver, ReplySharers([plan], row.sharers, row.uncorrected), row.segments)
        await reply.read([9, 11])
        mine = await receiver.prefill([9, 11], own.segments)
        others = await sharer.engine.prefill([9, 11], theirs.segments)
        assert mine.kv is not None
        assert others.kv is not None
        found = concat(reply.segments).select(slice(len(IDS), None))
        assert_close(found, by_hand(sharer.fuser, mine.kv, others.kv, models))

    anyio.run(check)


def test_the_sharer_s_keys_are_unrotated_in_its_engine_s_turn(
    engines: dict[str, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not on the event loop, which others wait for."""
    seen, unrotated = [], Rotation.unrotated

    def spy(rotation: Rotation, kv: KV) -> KV:
        seen.append((threading.current_thread() is threading.main_thread(), torch.is_inference_mode_enabled()))
        return unrotated(rotation, kv)

    monkeypatch.setattr(Rotation, "unrotated", spy)
    sharer = sharers(engines)[0]

    async def check() -> None:
        row = await fused_prefill(engines["llama"], [sharer], share_by_ids([*IDS, 9], 1))
        plan = FusePlan(sharer.engine, sharer.fuser, "ids", "receiver-prompt", True)
        await FusedRow(engines["llama"], ReplySharers([plan], row.sharers, row.uncorrected), row.segments).read([9])

    anyio.run(check)
    assert seen == [(False, True)] * 2


def test_the_order_of_parallel_sharers_changes_no_bit(engines: dict[str, Engine]) -> None:
    async def check() -> None:
        rows = [
            await fused_prefill(engines["llama"], order, share_by_ids([*IDS, 9], 3))
            for order in itertools.permutations(sharers(engines))
        ]
        assert all(same_bits(row.segments, rows[0].segments) for row in rows[1:])
        assert not same_bits(rows[0].segments, rows[0].uncorrected)

    anyio.run(check)


def test_closed_gates_leave_the_row_alone(engines: dict[str, Engine]) -> None:
    receiver, other = engines["llama"], engines["qwen3"]
    made = new_fuser(
        "lean", geometry(receiver.model), geometry(other.model), width=6, rope="unrotated", gate_logit=-1.0
    )

    async def check() -> None:
        kv = (await other.prefill(IDS)).segments
        for sharer in (Sharer(other, made), Sharer(other, made, kv)):  # reads along; has read its own prompt
            row = await fused_prefill(receiver, [sharer], share_by_ids([*IDS, 9], 1))
            assert same_bits(row.segments, (await receiver.prefill(IDS)).segments)
            assert row.nbytes == (0,)

    anyio.run(check)


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Engine]]:
    """With tokenizers; the keys of `fixed` have no RoPE that could be taken off."""
    config = hf.gpt2.GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    made = {}
    for name, each in {"llama": config_of("llama"), "qwen3": config_of("qwen3"), "fixed": config}.items():
        folder = save_model(each, tmp_path_factory.mktemp(name) / name)
        save_tokenizer(folder)
        made[name] = Engine(load_model(folder))
    yield made
    for engine in made.values():
        engine.close()


@pytest.mark.parametrize("ends", [("llama", "qwen3"), ("fixed", "llama"), ("llama", "fixed")])
@pytest.mark.parametrize("rope", ["unrotated", "rotated"])
def test_an_edge_fuses_unrotated_keys_where_both_models_allow_it(
    peers: dict[str, Engine], tmp_path: Path, ends: tuple[str, str], rope: str
) -> None:
    receiver, sharer = (peers[name] for name in ends)
    save_fuser(lean(receiver.model, sharer.model, rope=rope, alignment="offsets"), tmp_path / "fuser")
    edge = CacheEdge.model_validate({"from": "a", "to": "b", "channel": "cache", "fuser": "fuser"})
    there, here = (
        Peer(name, engine.model.name, engine, reads=frozenset(["text"]), holds=frozenset(["text"]))
        for name, engine in zip("ab", (sharer, receiver), strict=True)
    )
    found = route(edge, there, here, tmp_path)
    if rope == "unrotated" and "fixed" in ends:
        reason = "'gpt2' models have no RoPE, so their keys are bound to their positions"
        assert (found.used, found.plan) == ("text", None)
        assert found.fallback_reason == f"the keys of 'fixed' can't be unrotated: {reason}"
    else:
        assert isinstance(found.plan, FusePlan)
        assert (found.used, found.plan.fuser.card.rope) == ("cache", rope)
