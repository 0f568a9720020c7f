"""Fill in the presets of endpoints that a recipe's models name."""

import re
from collections.abc import Mapping
from typing import Any

from cachegraph.agents.endpoint_presets import expand_preset, preset_of

__all__ = ["with_presets"]


def with_presets(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a recipe's data in which every model behind a preset is an entry of `models` with its address.

    An agent may name such a model itself; it then gets an entry of its own.
    """
    models, agents = data.get("models"), data.get("agents")
    if not isinstance(models, Mapping | None) or not isinstance(agents, Mapping):
        return data
    entries = {name: expand_preset(entry) for name, entry in (models or {}).items()}
    named = {
        name: model for name, agent in agents.items() if preset_of(model := _model(agent)) and model not in entries
    }
    if not named and all(entry is models[name] for name, entry in entries.items() if models):
        return data
    keys: dict[str, str] = {}
    for model in named.values():
        if model not in keys:
            keys[model] = _free(model, entries)
            entries[keys[model]] = expand_preset(model)
    changed = {name: _with_model(agents[name], keys[model]) for name, model in named.items()}
    return {**data, "models": entries, "agents": {**agents, **changed}}


def _model(agent: Any) -> Any:
    return agent.get("model") if isinstance(agent, Mapping) else getattr(agent, "model", None)


def _with_model(agent: Any, key: str) -> Any:
    return {**agent, "model": key} if isinstance(agent, Mapping) else agent.model_copy(update={"model": key})


def _free(model: str, taken: Mapping[str, Any]) -> str:
    """Return a key of `models` for this model that is not taken."""
    key = re.sub(r"[^A-Za-z0-9]+", "_", model)[:80].strip("_")
    number, free = 2, key
    while free in taken:
        free, number = f"{key}_{number}", number + 1
    return free
