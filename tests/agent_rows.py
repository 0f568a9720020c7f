"""What an agent's row holds, and untrained fusers of tiny models: what tests of agents look at."""

from pathlib import Path
from typing import Any

import torch

from cachegraph.agents.base import Reply
from cachegraph.channels.cache.sent_cache import SentCache
from cachegraph.channels.fusers.files.card import Geometry
from cachegraph.channels.fusers.files.weights import save_fuser
from cachegraph.channels.fusers.networks.create import new_fuser
from cachegraph.engine.kv.cache import KV, concat

__all__ = ["check_row", "fuser", "info", "plane", "row", "same_bits"]


def plane(reply: Reply) -> SentCache:
    found = reply.payload.cache
    assert isinstance(found, SentCache)
    return found


def row(reply: Reply) -> KV:
    return concat(plane(reply).segments)


def same_bits(a: KV, b: KV) -> bool:
    pairs = zip([x for layer in a.layers for x in layer], [x for layer in b.layers for x in layer], strict=True)
    return torch.equal(a.positions, b.positions) and all(torch.equal(x, y) for x, y in pairs)


def check_row(reply: Reply) -> None:
    """Every entry has a token and an origin, and a position of its own, without gaps."""
    held = plane(reply)
    count = sum(map(len, held.segments))
    assert count == len(held.ids) == len(held.origins)
    assert row(reply).positions.tolist() == list(range(count))


def fuser(folder: Path, *, receiver: Any, sharer: Any, gate: float = 1.0, **card: Any) -> str:
    """An untrained fuser of two tiny models, saved; its name as a recipe gives it."""
    ends = [Geometry(each.layers, each.kv_heads, each.head_dim) for each in (receiver, sharer)]
    made = new_fuser("c2c", *ends, gate_logit=gate, hidden_dim=16, intermediate_dim=16, names=("here", "there"))
    object.__setattr__(made, "card", made.card.model_copy(update=card))
    name = f"fuser{len(list(folder.iterdir()))}"
    save_fuser(made, folder / name)
    return name


def info(players: Any, agent: str) -> Any:
    return players.agents[agent].peer().engine.model.info
