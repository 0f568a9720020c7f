"""Every architecture of the installed transformers: what it writes is what transformers writes, or it is refused.

A few run by default. `pytest -m architectures` runs all the others, in CI too.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch
from architectures import ARCHITECTURES, NOT_IN_THE_TABLE, build, reference
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from cachegraph.engine.cpu import backend as cpu
from cachegraph.engine.engine import Engine
from cachegraph.engine.model.load import LoadedModel, load_model
from cachegraph.engine.model.verify.probe import relative_difference
from cachegraph.engine.spec import GenerateSpec
from cachegraph.errors import ModelError

QUICK = ["llama", "gemma3_text", "gpt_oss", "ministral3", "phi3-longrope", "deepseek_v3", "bloom", "gpt2"]

# In our words, and why.
REFUSED = {
    "cpmant": "reading a text piece by piece fails in transformers",
    "longcat_flash": "reading a text piece by piece fails in transformers",
    "mllama": "transformers knows no 'mllama_text_model' model that writes text",
    "openai-gpt": "takes no cache",
    "xlnet": "takes no cache",
}

NEW = 8  # tokens


def test_every_architecture_is_in_the_table_or_known_not_to_be() -> None:
    known = {each.model_type for each in ARCHITECTURES.values()}
    known |= {kind for kinds in NOT_IN_THE_TABLE.values() for kind in kinds}
    assert sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - known) == []


def tokens(count: int, seed: int) -> list[int]:
    return torch.randint(1, 250, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def written(network: Any, ids: list[int]) -> list[int]:
    prompt = torch.tensor([ids])
    out = network.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NEW, do_sample=False)
    reply: list[int] = out[0, len(ids) :].tolist()
    return reply


@pytest.fixture(autouse=True)
def kernels_for_tiny_models(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(cpu, "_LARGE_ENOUGH", 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.architectures) for name in ARCHITECTURES]
)
@torch.inference_mode()
def test_an_architecture_is_exact_or_refused(name: str, tmp_path: Path) -> None:
    folder = build(name, tmp_path)
    if name in REFUSED:
        with pytest.raises(ModelError, match=REFUSED[name]):
            load_model(folder)
        return
    model = load_model(folder)
    model = replace(model, info=replace(model.info, eos_ids=frozenset()))  # whose tokens ours would never choose
    network = reference(folder)
    prompts = [tokens(5, 1), tokens(150, 2), tokens(40, 3)]  # behind a window, a border of RoPE, a piece of a prompt
    expected = [written(network, ids) for ids in prompts]
    for each in [model, *([replace(model, decoder=None)] if model.decoder is not None else [])]:
        engine = Engine(each)
        try:
            assert anyio.run(replies, engine, prompts) == expected
            if model.why_no_cache is None:
                anyio.run(check_graft, engine, network)
        finally:
            engine.close()


async def replies(engine: Engine, prompts: list[list[int]]) -> list[list[int]]:
    """All at once."""
    got: dict[int, list[int]] = {}

    async def one(index: int) -> None:
        spec = GenerateSpec(max_new_tokens=NEW, ignore_eos=True)
        got[index] = list((await engine.generate(prompts[index], spec=spec)).ids)

    async with anyio.create_task_group() as group:
        for index in range(len(prompts)):
            group.start_soon(one, index)
    return [got[index] for index in range(len(prompts))]


async def check_graft(engine: Engine, network: Any) -> None:
    """What stands behind another row's cache is computed as behind its text; its keys move as the model has them."""
    model: LoadedModel = engine.model
    first, second = tokens(45, 4), tokens(20, 5)
    read = await engine.prefill(first)
    got = (await engine.prefill(second, read.segments, logits="all")).logits
    assert got is not None
    whole = network(input_ids=torch.tensor([first + second]), use_cache=False).logits[0, len(first) :]
    assert relative_difference(list(got), list(whole.float())) < 1e-3
    if model.rotation.why_not is None:
        (here,), at = read.segments, torch.arange(50, 95)
        (there,) = (await engine.prefill(first, positions=at)).segments
        for moved, expected in zip(model.rotation.move(here, at).layers, there.layers, strict=True):
            torch.testing.assert_close(moved.keys, expected.keys, rtol=0, atol=1e-3 * float(expected.keys.abs().max()))
