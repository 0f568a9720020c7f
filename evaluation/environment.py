"""Environment of a comparison: the versions, hardware, models and settings that are needed to repeat it."""

import os
import platform
from typing import TYPE_CHECKING

from pydantic import BaseModel

from cachegraph import __version__
from cachegraph.engine.cpu_capabilities import has_tiles
from cachegraph.engine.diagnostics import installed, processor
from cachegraph.graph.plan.wiring import Wiring
from cachegraph.graph.run.subgraph import all_nodes

if TYPE_CHECKING:
    from cachegraph.engine.model.load import LoadedModel

__all__ = ["Environment", "ModelFacts", "batches_exactly", "describe"]


class ModelFacts(BaseModel):
    """One agent's model: `identity` is equal for equal weights."""

    agent: str
    name: str
    identity: str | None = None
    dtype: str | None = None
    weights: str | None = None
    device: str | None = None


class Environment(BaseModel):
    """Versions, hardware, models and settings. `key` hashes recipe, data, models, machine and settings."""

    key: str = ""
    cachegraph: str = __version__
    python: str = platform.python_version()
    versions: dict[str, str] = {}
    system: str = ""
    processor: str = ""
    cores: int = 0
    threads: int = 0
    memory_bytes: int = 0
    gpus: list[str] = []
    models: list[ModelFacts] = []
    recipe_hash: str = ""
    data: str = ""  # name of the data
    data_hash: str = ""
    rows: int = 0  # examples in the data
    limit: int | None = None
    seeds: list[int] = []
    concurrency: int = 1
    started: str = ""  # UTC
    command: str = ""  # as typed, if it was run from the command line


def describe(wiring: Wiring) -> Environment:
    """The machine, the versions, and the models of an open graph."""
    import psutil
    import torch

    return Environment(
        versions={name: found for name in ("torch", "transformers", "numpy") if (found := installed(name))},
        system=f"{platform.system()} {platform.machine()}",
        processor=processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        memory_bytes=psutil.virtual_memory().total,
        gpus=[torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        models=_models(wiring),
    )


def batches_exactly(wiring: Wiring) -> bool:
    """Whether batching changes no bit of a result.

    True in bfloat16 on x86 CPUs without AMX, where torch rounds each row alone, or with our own kernels. With AMX,
    torch's rounding depends on the number of rows.
    """
    peers = [node.agent.peer() for _, node in all_nodes(wiring) if not node.is_graph]
    models = [model for peer in peers if (model := getattr(peer.sharer, "model", None)) is not None]
    return all(map(_batches_exactly, models))


def _batches_exactly(model: "LoadedModel") -> bool:
    import torch

    if model.dtype != torch.bfloat16 or model.weights is not None or model.device.type != "cpu":
        return False
    return not has_tiles(torch) or (model.decoder is not None and model.decoder.reads_prompts)


def _models(wiring: Wiring) -> list[ModelFacts]:
    facts = []
    for name, node in all_nodes(wiring):
        if node.is_graph:
            continue
        peer = node.agent.peer()
        model = getattr(peer.sharer, "model", None)
        known = {} if model is None else {"identity": model.identity, "device": str(model.device)}
        weights = None if model is None else model.weights
        dtype = None if model is None else str(model.dtype).removeprefix("torch.")
        facts.append(ModelFacts(agent=name, name=peer.name, dtype=dtype, weights=weights, **known))
    return facts
