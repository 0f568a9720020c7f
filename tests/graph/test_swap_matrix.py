"""A word that only the first agent reads reaches the output's context over every channel, or a warning says where not.

Held over ten shapes of graphs, on one model and on two, with small random models and a random translator between them:
its word in the context changes what the output thinks of it, to the bit or not at all.
"""

from pathlib import Path
from typing import Any

import pytest
import swap_matrix
import torch
from lean_fusers import geometry
from tiny import config_of, load_tiny, save_model, save_tokenizer

from cachegraph.channels.fusers.files.card import Evidence, ModelEnd
from cachegraph.channels.fusers.files.weights import save_fuser
from cachegraph.channels.fusers.networks.translator import new_translator

pytestmark = pytest.mark.anyio

EVIDENCE = Evidence(
    task="private", data="stories", metric="accuracy", examples=300, own=0.6, mismatched=0.3, low=0.2, high=0.4
)
CACHES = {"cache", "both"}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, and on the shelf a translator from the other's cache to the small one's, whose card qualifies it."""
    home = tmp_path_factory.mktemp("home")
    for seed, (name, kind) in enumerate((("small", "llama"), ("other", "qwen2"))):
        save_tokenizer(save_model(config_of(kind), home / name, seed=seed))
    models = {name: load_tiny(config_of(kind), home / name) for name, kind in (("small", "llama"), ("other", "qwen2"))}
    ends = [ModelEnd(name=name, geometry=geometry(models[name])) for name in ("small", "other")]
    made = new_translator(*ends, rank=6, hidden=4, seed=2)
    object.__setattr__(made, "card", made.card.model_copy(update={"evidence": (EVIDENCE,)}))
    with torch.no_grad():
        made.network.gate.fill_(0.9)
    save_fuser(made, home / "fusers" / "stories")
    return home


@pytest.fixture
def sources(home: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The two models, where their translator is installed."""
    monkeypatch.setenv("CACHEGRAPH_HOME", str(home))
    return {name: {"source": str(home / name), "dtype": "float32"} for name in ("small", "other")}


@pytest.mark.parametrize("models", ["same", "mixed"])
@pytest.mark.parametrize("shape", swap_matrix.SHAPES)
async def test_the_first_word_reaches_the_output_over_every_channel(
    sources: dict[str, Any], tmp_path: Path, shape: str, models: str
) -> None:
    travelled: set[str] = set()
    async with swap_matrix.build(shape, models, tmp_path, sources) as graph:
        for channel in swap_matrix.CHANNELS:
            shift, used, warnings = await swap_matrix.measure(graph.with_channels(channel))
            assert shift != 0 or warnings, f"over {channel} the word is lost in silence"
            travelled |= set(used) if channel != "text" else set()
    if shape != "router" and (models, shape) != ("mixed", "sub-graph"):
        assert travelled & CACHES, "no edge of this graph ever carried a cache"


@pytest.mark.models
@pytest.mark.usefixtures("demo_engines")
@pytest.mark.parametrize("models", ["same", "mixed"])
async def test_the_demo_models_recognise_the_word(tmp_path: Path, models: str) -> None:
    async with swap_matrix.build("chain", models, tmp_path) as graph:
        for channel in ("text", "cache", "auto"):
            shift, _, _ = await swap_matrix.measure(graph.with_channels(channel))
            assert shift > 1
