"""Models whose layers are on several devices: fake tensors stand in for two GPUs, and refuse to meet across devices."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from tiny import config_of, save_model
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from transformers import AutoModelForCausalLM

from cachegraph import Graph
from cachegraph.engine.batching.kv_budget import choose_budget
from cachegraph.engine.catalogue.placement import place
from cachegraph.engine.kv.cache import RowCache
from cachegraph.engine.kv.rope import Rotation
from cachegraph.engine.model.attention import NAME
from cachegraph.engine.model.devices import DeviceLock, check_map, home_of, is_spread, layer_devices
from cachegraph.engine.model.forward import Row, forward
from cachegraph.engine.model.load import load_model
from cachegraph.engine.model.model_config import ModelInfo
from cachegraph.engine.spec import ModelSpec
from cachegraph.errors import ConfigError, ModelError, RecipeError

GPUS = (torch.device("meta:0"), torch.device("meta:1"))
KINDS = ("llama", "qwen2", "qwen3")


@pytest.fixture
def fake() -> Iterator[FakeTensorMode]:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


def spread(network: Any) -> Any:
    """Half of the layers on one fake GPU and half on the other, with accelerate's hooks."""
    decoder = network.get_decoder()
    half = len(decoder.layers) // 2
    places = {"embed_tokens": 0, "rotary_emb": 0, "norm": 1} | {
        f"layers.{index}": int(index >= half) for index in range(len(decoder.layers))
    }
    for name, gpu in places.items():
        _put(decoder.get_submodule(name), GPUS[gpu])
    _put(network.lm_head, GPUS[1])
    network.hf_device_map = {f"model.{name}": place for name, place in places.items()} | {"lm_head": 1}
    add_hook_to_module(network, AlignDevicesHook(io_same_device=True))
    return network


def positions(start: int, count: int) -> Tensor:
    with unset_fake_temporarily():  # they are known on the host
        return torch.arange(start, start + count)


def _put(module: Any, device: torch.device) -> None:
    for part in module.modules():
        for name, weight in list(part.named_parameters(recurse=False)):
            setattr(part, name, torch.nn.Parameter(torch.empty(weight.shape, device=device), requires_grad=False))
        for name, buffer in list(part.named_buffers(recurse=False)):
            setattr(part, name, torch.empty(buffer.shape, device=device))
    add_hook_to_module(module, AlignDevicesHook(execution_device=device))


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")  # positions are real
@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_computes_on_its_own_device(fake: FakeTensorMode, kind: str) -> None:
    config = config_of(kind)
    network = spread(AutoModelForCausalLM.from_config(config, attn_implementation=NAME).eval())
    info = ModelInfo.from_hf(config, None)
    assert is_spread(network)
    assert home_of(network) == GPUS[0]
    devices = layer_devices(network, info.layers)
    assert set(devices) == set(GPUS)
    caches = [RowCache(), RowCache()]
    with torch.inference_mode():
        for row, more in ((4, 2), (1, 3), (2, 1)):  # several tokens, and one; with and without a mask
            at = [positions(len(cache), count) for count, cache in zip((row, more), caches, strict=True)]
            rows = [Row([7] * len(each), cache, "all", each) for each, cache in zip(at, caches, strict=True)]
            assert [logits.device for logits in forward(network, info, rows) if logits is not None] == [GPUS[0]] * 2
        forward(network, info, [Row([7], caches[0], "none", positions(7, 1))])
        kv, turn = caches[0].tail(), Rotation(network, info).shifter(torch.arange(8))
        moved = [turn(index, layer.keys) for index, layer in enumerate(kv.layers)]
    assert tuple(layer.keys.device for layer in kv.layers) == devices
    assert tuple(keys.device for keys in moved) == devices
    gathered = kv.to(GPUS[:1] * info.layers, torch.float16)
    assert {layer.values.device for layer in gathered.layers} == {GPUS[0]}


def test_a_model_with_accelerates_hooks_reads_as_without(tmp_path: Path) -> None:
    folder = save_model(config_of("llama"), tmp_path)
    plain, hooked = load_model(folder), load_model(folder, device_map={"": "cpu"})
    names = ("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head")
    layers = [f"model.layers.{index}" for index in range(plain.info.layers)]
    dispatch_model(hooked.network, dict.fromkeys([*names, *layers], "cpu"), force_hooks=True)
    with torch.inference_mode():
        mine, theirs = (
            forward(model.network, model.info, [Row([1, 2, 3], RowCache())])[0] for model in (plain, hooked)
        )
    assert mine is not None
    assert theirs is not None
    assert torch.equal(mine, theirs)
    assert hooked.devices == plain.devices


def test_layers_that_would_be_fetched_at_every_step_are_refused(tmp_path: Path) -> None:
    network = load_model(save_model(config_of("llama"), tmp_path)).network
    for places, where in (({"a": 0, "b": "cpu"}, "the cpu"), ({"a": 0, "b": "disk"}, "the disk"), ({"a": "cpu"}, "")):
        network.hf_device_map = places
        if not where:
            check_map(network, "auto", "big")
            continue
        with pytest.raises(ModelError, match=f"the device map of 'big' leaves layers on {where}, from where"):
            check_map(network, "auto", "big")


def test_the_device_that_its_layers_fill_first_decides_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    free = {"cuda:0": 1200, "cuda:1": 900}
    monkeypatch.setattr("cachegraph.engine.batching.kv_budget.default_budget", free.__getitem__)
    monkeypatch.delenv("CACHEGRAPH_KV_MEMORY", raising=False)
    assert choose_budget(None, ["cuda:0"] * 6) == 1200
    assert choose_budget(None, ["cuda:0"] * 2 + ["cuda:1"] * 4) == 1350  # cuda:1 holds two thirds of it
    assert choose_budget(None, ["cuda:0"] * 4 + ["cuda:1"] * 2) == 1800
    assert choose_budget(77, ["cuda:0"]) == 77


def test_two_engines_that_share_a_device_take_turns() -> None:
    one, other = DeviceLock(GPUS), DeviceLock(GPUS[1:])
    with one:
        assert not other._locks[0].acquire(blocking=False)
    with other, DeviceLock(GPUS[:1]):
        pass


def test_a_map_that_names_what_is_not_there_is_refused(tmp_path: Path) -> None:
    folder = save_model(config_of("llama"), tmp_path)
    with pytest.raises(ConfigError, match="there is no device 'cuda:7' here; this machine has: "):
        place(folder, ModelSpec(source="m", device_map={"model": 7}))
    message = r"names 'model.lay', which '.*' does not have; it has 'lm_head', 'lm_head.weight'"
    with pytest.raises(ModelError, match=message):
        load_model(folder, device_map={"model.lay": "cpu"})


def test_a_recipe_says_once_where_a_model_runs() -> None:
    agents = {"a": {"model": "m", "prompt": ""}}
    models = {"m": {"source": "x", "device": "cuda:0", "device_map": "auto"}}
    with pytest.raises(RecipeError, match="the model 'm' has a 'device' and a 'device_map'; keep the one that says"):
        Graph.from_dict({"version": 1, "name": "g", "models": models, "agents": agents, "output": "a"})
