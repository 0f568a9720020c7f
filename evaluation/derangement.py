"""Seeded derangement of the examples: whose cache each one gets in the `mismatched` control."""

from collections.abc import Callable, Sequence

import numpy as np

from cachegraph.graph.data.examples import Example

__all__ = ["derange", "sample"]


def sample(examples: Sequence[Example], limit: int | None, seed: int) -> list[Example]:
    """`limit` examples drawn by the seed, in the data's order. The head of a sorted file is not a sample."""
    if limit is None or limit >= len(examples):
        return list(examples)
    chosen = np.random.default_rng([seed, 1]).permutation(len(examples))[:limit]
    return [examples[index] for index in sorted(chosen.tolist())]


def derange(examples: Sequence[Example], seed: int) -> list[Example] | None:
    """For each example a donor, whose caches it gets: every example is a donor once, and never its own.

    Two questions about one story would hand each other the right cache. So an example and its donor share no input,
    except inputs that all examples share. If that is impossible, they differ in at least one input. None if all
    examples are equal.
    """
    names = [name for name in examples[0].inputs if len({example.inputs[name] for example in examples}) > 1]

    def share_nothing(a: Example, b: Example) -> bool:
        return a.index != b.index and all(a.inputs[name] != b.inputs[name] for name in names)

    def differ(a: Example, b: Example) -> bool:
        return any(a.inputs[name] != b.inputs[name] for name in names)

    if not names:
        return None
    return _fitting_permutation(examples, share_nothing, seed) or _fitting_permutation(examples, differ, seed)


def _fitting_permutation(
    examples: Sequence[Example], fits: Callable[[Example, Example], bool], seed: int
) -> list[Example] | None:
    """A random permutation in which all pairs fit, repaired by swaps. None if 50 passes of swaps find none."""
    generator = np.random.default_rng([seed, 2])
    order = generator.permutation(len(examples)).tolist()
    for _ in range(50):
        wrong = [at for at, other in enumerate(order) if not fits(examples[at], examples[other])]
        if not wrong:
            return [examples[other] for other in order]
        for at in wrong:
            for other in generator.permutation(len(order)).tolist():
                if fits(examples[at], examples[order[other]]) and fits(examples[other], examples[order[at]]):
                    order[at], order[other] = order[other], order[at]
                    break
    return None
