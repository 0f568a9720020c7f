"""Models that can't take our attention: they attend by themselves to one row a pass, and their caches travel."""

from functools import partial
from pathlib import Path

import anyio
import pytest
import torch
from tiny import SIZES, save_model
from transformers import models as hf

from cachegraph.engine.engine import Engine
from cachegraph.engine.kv.cache import RowCache
from cachegraph.engine.model import load
from cachegraph.engine.model.forward import Row, forward
from cachegraph.engine.model.load import load_model
from cachegraph.engine.spec import GenerateSpec
from cachegraph.errors import ModelError

_FALCON = {key: value for key, value in SIZES.items() if key not in ("intermediate_size", "num_key_value_heads")}
KINDS = {
    "falcon": lambda: hf.falcon.FalconConfig(**_FALCON, new_decoder_architecture=True, num_kv_heads=2, alibi=False),
    "gpt_neo": lambda: hf.gpt_neo.GPTNeoConfig(
        vocab_size=300,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=12,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=None,
    ),
}
FIRST, SECOND = list(range(3, 43)), list(range(90, 105))


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return save_model(KINDS[request.param](), tmp_path / "model")


@torch.inference_mode()
def test_a_row_behind_another_rows_cache_is_read_as_behind_its_text(folder: Path) -> None:
    model = load_model(folder)
    assert model.why_no_cache is None
    assert model.info.alone
    whole = model.network(input_ids=torch.tensor([FIRST + SECOND]), use_cache=False).logits[0, len(FIRST) :]

    async def run() -> torch.Tensor | None:
        engine = Engine(model)
        read = await engine.prefill(FIRST)
        got = (await engine.prefill(SECOND, read.segments, logits="all")).logits
        await anyio.to_thread.run_sync(engine.close)
        return got

    torch.testing.assert_close(anyio.run(run), whole, rtol=0, atol=1e-4 * float(whole.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_together_are_to_the_bit_as_alone(folder: Path, dtype: torch.dtype) -> None:
    engine = Engine(load_model(folder, dtype=dtype))
    rows, spec = [FIRST, SECOND, FIRST[:5]], GenerateSpec(max_new_tokens=6, ignore_eos=True)

    async def together() -> list[list[int]]:
        got: dict[int, list[int]] = {}

        async def one(index: int) -> None:
            got[index] = list((await engine.generate(rows[index], (), spec)).ids)

        async with anyio.create_task_group() as group:
            for index in range(len(rows)):
                group.start_soon(one, index)
        return [got[index] for index in range(len(rows))]

    try:
        alone = [list(anyio.run(partial(engine.generate, row, (), spec)).ids) for row in rows]
        assert anyio.run(together) == alone
    finally:
        engine.close()


def test_branches_of_one_row_are_refused_by_name(folder: Path) -> None:
    model = load_model(folder)
    row = Row(FIRST[:4], RowCache(), sees=torch.ones(4, 4, dtype=torch.bool).tril())
    with pytest.raises(ModelError, match="attend by themselves, which can't read branches"):
        forward(model.network, model.info, [row])


def test_a_kept_verdict_says_so(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHEGRAPH_HOME", str(tmp_path / "home"))
    first = load_model(folder, checks="once")
    monkeypatch.setattr(load, "verify_model", None)
    second = load_model(folder, checks="once")
    assert second.info == first.info
    logits = [forward(each.network, each.info, [Row(FIRST, RowCache())])[0] for each in (first, second)]
    assert logits[0] is not None
    assert logits[1] is not None
    assert torch.equal(logits[0], logits[1])
