"""Who gets whose cache in the mismatched control: a seeded derangement of the examples."""

from collections.abc import Callable, Sequence

import numpy as np

from cachegraph.graph.data.examples import Example

__all__ = ["partners", "sample"]


def sample(examples: Sequence[Example], limit: int | None, seed: int) -> list[Example]:
    """`limit` examples chosen by the seed, in the data's order: files are often sorted, so their head is no sample."""
    if limit is None or limit >= len(examples):
        return list(examples)
    chosen = np.random.default_rng([seed, 1]).permutation(len(examples))[:limit]
    return [examples[index] for index in sorted(chosen.tolist())]


def partners(examples: Sequence[Example], seed: int) -> list[Example] | None:
    """By example the one whose caches it gets: every example once, none its own.

    Two questions about one story would hand each other the right cache. So partners share no input, but for inputs that
    all have in common; where that can't be, they differ in some input; None if all examples are alike.
    """
    names = [name for name in examples[0].inputs if len({each.inputs[name] for each in examples}) > 1]

    def strangers(a: Example, b: Example) -> bool:
        return a.index != b.index and all(a.inputs[name] != b.inputs[name] for name in names)

    def different(a: Example, b: Example) -> bool:
        return any(a.inputs[name] != b.inputs[name] for name in names)

    if not names:
        return None
    return _derange(examples, strangers, seed) or _derange(examples, different, seed)


def _derange(examples: Sequence[Example], fits: Callable[[Example, Example], bool], seed: int) -> list[Example] | None:
    """A random permutation in which everybody fits, mended by swaps; None where none is found."""
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
