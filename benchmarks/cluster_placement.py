"""Simulated placement: 1,000 agents in groups that hand over caches, on the 64 GPUs of 8 nodes.

Prints the seconds of planning, how the GPUs' memory is filled, and a run's cache bytes between nodes, beside a naive
placement that fills nodes in the order of the recipe. Nothing is loaded, and no cluster is needed.
"""

import random
from collections.abc import Sequence
from itertools import cycle
from statistics import median
from time import perf_counter

from cachegraph.cluster.placement import CacheTraffic, Need, NodeResources, place, split_bytes

AGENTS, MODELS, NODES, GPUS = 1000, 64, 8, 8
BYTES = (12 * 1024, 36 * 1024, 112 * 1024, 144 * 1024)  # of one token's cache
GPU_MEMORY = 80 * 10**9


def simulate(seed: int) -> tuple[dict[str, Need], list[CacheTraffic], list[NodeResources]]:
    """Models with a GPU each, whose agents mostly talk within teams, and nodes that they just fill."""
    dice = random.Random(seed)
    names = [f"model{index}" for index in range(MODELS)]
    dice.shuffle(names)  # a recipe lists models in any order
    needs = {name: Need(dice.choice((20, 40, 60, 75)) * 10**9, gpus=1.0) for name in sorted(names)}
    teams = [names[start : start + 4] for start in range(0, MODELS, 4)]
    traffic = []
    for _ in range(AGENTS - 1):
        team = dice.choice(teams)
        sender = dice.choice(team)
        receiver = dice.choice(team if dice.random() < 0.9 else names)
        if sender != receiver:
            traffic.append(CacheTraffic(sender, receiver, dice.choice(BYTES) * dice.randint(200, 4000)))
    nodes = [NodeResources(f"node{index}", GPU_MEMORY * GPUS, float(GPUS)) for index in range(NODES)]
    return needs, traffic, nodes


def naive(needs: dict[str, Need], nodes: Sequence[NodeResources]) -> dict[str, tuple[str, ...]]:
    """One model after another, a node each in turn."""
    turns = cycle(nodes)
    return {name: (next(turns).name,) for name in needs}


def main() -> None:
    seconds, shares, spread = [], [], []
    for seed in range(10):
        needs, traffic, nodes = simulate(seed)
        began = perf_counter()
        placement = place(needs, traffic, nodes)
        seconds.append(perf_counter() - began)
        other, _ = split_bytes(naive(needs, nodes), traffic)
        shares.append((placement.network_bytes / 1e9, other / 1e9))
        filled = [sum(needs[model].memory for model in placement.on(node.name)) / node.memory for node in nodes]
        spread.append((min(filled), max(filled)))
    ours, others = (median(each) for each in zip(*shares, strict=True))
    low, high = (median(each) for each in zip(*spread, strict=True))
    print(f"{AGENTS} agents of {MODELS} models on {NODES} nodes of {GPUS} GPUs; medians of 10 simulated recipes")
    print(f"planning                      {median(seconds) * 1e3:.1f} ms")
    print(f"memory used on a node         {low:.0%} to {high:.0%}")
    print(f"cache bytes between nodes     {ours:.1f} GB a run")
    print(f"the same, naive placement     {others:.1f} GB a run ({others / ours:.1f} times as much)")


if __name__ == "__main__":
    main()
