"""What tests of graphs on Ray share: a recipe whose agents hand their caches on, and the deaths of replicas."""

import os
import signal
from contextlib import suppress
from typing import Any

__all__ = ["chain_recipe", "kill_replicas"]


def chain_recipe(source: str, **tokens: int) -> str:
    """A recipe of agents by these names, each writing so many tokens; each takes the cache of the one before it."""
    names = list(tokens)
    lines = ["version: 1", "name: chain", f"models: {{small: {{source: {source}, dtype: float32}}}}", "agents:"]
    for number, (name, count) in enumerate(tokens.items()):
        prompt = f"{{{{ {names[number - 1]} }}}} what?" if number else "the sky is blue"
        settings = f"{{max_new_tokens: {count}, ignore_eos: true}}"
        lines.append(f'  {name}: {{model: small, prompt: "{prompt}", generate: {settings}}}')
    lines.append("edges:")
    lines += [f"  - {{from: {a}, to: {b}, channel: cache}}" for a, b in zip(names, names[1:], strict=False)]
    return "\n".join([*lines, f"output: {names[-1]}", ""])


def kill_replicas(cluster: Any) -> int:
    """Kill the processes of all replicas, as the system would if memory ran out; returns their number."""
    handles = [handle for replicas in cluster.sets.values() for handle in replicas.handles if handle.facts]
    for handle in handles:
        with suppress(ProcessLookupError):  # killed before, and idle since
            os.kill(handle.facts.process, signal.SIGKILL)
    return len(handles)
