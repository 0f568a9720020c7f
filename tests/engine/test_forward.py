"""Rows side by side, without padding, against what transformers computes of each row alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import KINDS, Tiny, config_of, save_model
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from cachegraph.engine.kv.cache import KV, RowCache, concat
from cachegraph.engine.model.forward import Row, cache_argument, forward
from cachegraph.engine.model.load import LoadedModel

UNEVEN = ["gemma4", "deepseek_v3", "mimo_v2_flash"]  # layers of several shapes, shared ones, and made of a latent


def tokens(count: int, seed: int = 0) -> list[int]:
    return torch.randint(0, 300, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def read(model: LoadedModel, ids: list[int], *past: KV) -> tuple[RowCache, Tensor]:
    cache = RowCache(past)
    with torch.inference_mode():
        (logits,) = forward(model.network, model.info, [Row(ids, cache, "all")])
    assert logits is not None
    return cache, logits


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_what_transformers_computes(kind: str, tiny: Tiny, tmp_path: Path) -> None:
    """Longer than the sliding windows; the keys and values of full layers are compared too."""
    network: Any = AutoModelForCausalLM.from_pretrained(
        save_model(config_of(kind), tmp_path), attn_implementation="eager", dtype=torch.float32
    )
    model, ids = tiny(kind), tokens(40)
    cache = DynamicCache(config=network.config)
    with torch.inference_mode():
        expected = network(torch.tensor([ids]), **{cache_argument(network): cache}, use_cache=True).logits[0]
    row, logits = read(model, ids)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    layers = [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]  # others share theirs
    for window, ours, layer in zip(model.info.windows[: len(layers)], row.tail().layers, layers, strict=True):
        last = 40 if window is None or window > 40 else window - 1
        theirs = (layer.values, layer.keys) if model.info.reversed else (layer.keys, layer.values)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one[:, :, -last:], other[:, :, -last:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_read_in_pieces_is_the_row_read_at_once(kind: str, tiny: Tiny) -> None:
    """In all ways that pieces may come: behind one's own tail, behind shared segments, token by token."""
    model, ids = tiny(kind), tokens(36)
    whole, expected = read(model, ids)
    first, _ = read(model, ids[:20])
    second, _ = read(model, ids[20:33], *first.freeze())
    parts = [read(model, ids[33:], *second.freeze())[1]]
    cache = RowCache(second.freeze())
    with torch.inference_mode():
        steps = [forward(model.network, model.info, [Row([id_], cache)])[0] for id_ in ids[33:]]
    torch.testing.assert_close(torch.cat(parts), expected[33:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        torch.cat([step for step in steps if step is not None]), expected[33:], rtol=1e-4, atol=1e-5
    )
    for ours, theirs in zip(concat(cache.freeze()).layers, whole.tail().layers, strict=True):
        torch.testing.assert_close(ours.keys, theirs.keys, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gemma3_short_window", "gpt_oss", *UNEVEN])
def test_rows_of_very_different_lengths_together_are_each_alone(kind: str, tiny: Tiny) -> None:
    model = tiny(kind)
    prompts = [tokens(count, seed=count) for count in (1, 70, 2, 13, 1)]
    past, _ = read(model, tokens(25, seed=99))
    pasts = [(), (), past.freeze(), past.freeze(), past.freeze()]
    alone = [read(model, ids, *before)[1] for ids, before in zip(prompts, pasts, strict=True)]
    rows = [Row(ids, RowCache(before), "all") for ids, before in zip(prompts, pasts, strict=True)]
    with torch.inference_mode():
        together = forward(model.network, model.info, rows)
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_rows_of_one_pass_may_ask_for_different_logits(tiny: Tiny) -> None:
    model, ids = tiny("llama"), tokens(5)
    _, expected = read(model, ids)
    rows = [Row(ids, RowCache(), "none"), Row(ids, RowCache(), "last"), Row(ids, RowCache(), "all")]
    with torch.inference_mode():
        none, last, every = forward(model.network, model.info, rows)
    assert none is None
    assert last is not None
    assert every is not None
    assert last.shape == (1, 300)
    torch.testing.assert_close(every, expected)
    torch.testing.assert_close(last, expected[-1:])


def test_an_output_head_nobody_reads_is_not_run(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")

    def never(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(model.network.lm_head, "forward", never)
    with torch.inference_mode():
        forward(model.network, model.info, [Row(tokens(5), RowCache(), "none")])


@pytest.mark.parametrize("kind", ["llama", "gemma3_short_window", "gpt_oss"])
def test_a_pass_ends_with_the_entries_of_the_layers_that_are_wanted(kind: str, tiny: Tiny) -> None:
    """Beside rows that want all, and behind a past that has no more of them; the layers behind are not run."""
    model, ids = tiny(kind), tokens(30)
    whole, expected = read(model, ids)
    ran: list[int] = []
    for number, layer in enumerate(model.network.get_decoder().layers):
        layer.mlp.register_forward_hook(lambda *_, number=number: ran.append(number))
    for layers in range(1, model.info.layers + 1):
        first = RowCache()
        ran.clear()
        with torch.inference_mode():
            forward(model.network, model.info, [Row(ids[:20], first, "none", layers=layers)])
            assert ran == list(range(layers - 1))
            second, beside = RowCache(first.freeze()), RowCache()
            rows = [Row(ids[20:], second, "none", layers=layers), Row(ids, beside, "all")]
            none, logits = forward(model.network, model.info, rows)
        assert none is None
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
        row = concat(second.freeze())
        assert (len(row.layers), len(row)) == (layers, 30)
        for ours, theirs in zip(row.layers, whole.tail().layers[:layers], strict=True):
            torch.testing.assert_close(ours.keys, theirs.keys, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(ours.values, theirs.values, rtol=1e-4, atol=1e-5)


def test_half_precision_gives_the_same_bits_alone_and_beside_others(tiny: Tiny) -> None:
    model = tiny("llama", torch.bfloat16)
    past, _ = read(model, tokens(9))
    alone = [read(model, [id_], *past.freeze())[1] for id_ in (5, 6, 7)]
    rows = [Row([id_], RowCache(past.freeze())) for id_ in (5, 6, 7)]
    with torch.inference_mode():
        together = forward(model.network, model.info, rows)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True) if b is not None)


def test_explicit_positions_leave_gaps(tiny: Tiny, tmp_path: Path) -> None:
    """Tokens at 0, 1, 2 and 7, 8: attention knows their distance, and what follows stands at 9."""
    model, ids = tiny("llama"), tokens(6)
    network: Any = AutoModelForCausalLM.from_pretrained(save_model(config_of("llama"), tmp_path), dtype=torch.float32)
    positions = torch.tensor([0, 1, 2, 7, 8, 9])
    with torch.inference_mode():
        expected = network(torch.tensor([ids]), position_ids=positions[None]).logits[0]
        cache = RowCache()
        (first,) = forward(model.network, model.info, [Row(ids[:5], cache, "all", positions[:5])])
        (second,) = forward(model.network, model.info, [Row(ids[5:], cache)])
    assert first is not None
    assert second is not None
    assert cache.next_position == 10
    torch.testing.assert_close(torch.cat([first, second]), expected, rtol=1e-4, atol=1e-5)


def test_keys_and_values_put_in_place_of_a_tokens_own_are_what_is_attended_to(tiny: Tiny) -> None:
    """Giving a token its own keys and values changes nothing; giving it others, only what comes of them."""
    model, ids = tiny("llama"), tokens(6)
    whole, expected = read(model, ids)
    past, _ = read(model, ids[:4])
    own = [layer.select(slice(4, 6)) for layer in whole.tail().layers]
    zeros = [type(layer)(torch.zeros_like(layer.keys), torch.zeros_like(layer.values)) for layer in own]
    with torch.inference_mode():
        (same,) = forward(model.network, model.info, [Row(ids[4:], RowCache(past.freeze()), "all", override=own)])
        cache = RowCache(past.freeze())
        (other,) = forward(model.network, model.info, [Row(ids[4:], cache, "all", override=zeros)])
    assert same is not None
    assert other is not None
    torch.testing.assert_close(same, expected[4:], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(other, expected[4:], atol=1e-2)
    assert all(float(layer.keys.abs().max()) == 0 for layer in cache.tail().layers)


def test_a_failed_pass_leaves_its_rows_as_they_were(tiny: Tiny) -> None:
    model, ids = tiny("llama"), tokens(8)
    _, expected = read(model, ids)
    cache = RowCache()
    with torch.inference_mode():
        forward(model.network, model.info, [Row(ids[:3], cache)])
        with pytest.raises((IndexError, RuntimeError)):
            forward(model.network, model.info, [Row(ids[3:5], cache), Row([10**6], RowCache())])
        (rest,) = forward(model.network, model.info, [Row(ids[3:], cache, "all")])
    assert rest is not None
    assert len(cache) == 8
    torch.testing.assert_close(rest, expected[3:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gemma3_short_window"])
def test_branches_of_one_row_are_rows_of_their_own(kind: str, tiny: Tiny) -> None:
    """Two continuations of a shared past as one row: each token sees its own branch alone."""
    model = tiny(kind)
    past = read(model, tokens(20))[0].tail()
    branches = [tokens(5, 1), tokens(7, 2)]
    sees = torch.zeros(12, 12, dtype=torch.bool)
    sees[:5, :5], sees[5:, 5:] = True, True
    positions = torch.cat([20 + torch.arange(5), 20 + torch.arange(7)])
    row = Row([*branches[0], *branches[1]], RowCache([past]), [3, 4, 11], positions, sees=sees.tril())
    with torch.inference_mode():
        (logits,) = forward(model.network, model.info, [row])
    apart = [read(model, ids, past)[1] for ids in branches]
    torch.testing.assert_close(logits, torch.stack([apart[0][3], apart[0][4], apart[1][6]]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", UNEVEN)
def test_entries_of_first_layers_are_those_of_a_whole_pass(kind: str, tiny: Tiny) -> None:
    model, ids = tiny(kind), tokens(20)
    whole, _ = read(model, ids)
    cache, told = RowCache(), list[int]()
    with torch.inference_mode():
        row = Row(ids, cache, "none", on_layer=lambda layer, _: told.append(layer), layers=1)
        assert forward(model.network, model.info, [row]) == [None]
    assert told == [0]
    (first,) = cache.tail().layers
    assert all(torch.equal(a, b) for a, b in zip(first, whole.tail().layers[0], strict=True))


@pytest.mark.parametrize("kind", UNEVEN)
def test_entries_may_be_given_instead_of_computed_ones(kind: str, tiny: Tiny) -> None:
    """Those of another prompt: what is decoded behind them is what is decoded behind that prompt."""
    model, ids, other = tiny(kind), tokens(20), tokens(20, seed=1)
    row, _ = read(model, other)
    cache = RowCache()
    with torch.inference_mode():
        forward(model.network, model.info, [Row(ids, cache, "none", override=row.tail().layers)])
        mine, theirs = (forward(model.network, model.info, [Row([7], each)])[0] for each in (cache, row))
    assert mine is not None
    assert theirs is not None
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
