"""The shape of one layer's KV. Needs no torch."""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["KVShape", "describe_shapes"]


class KVShape(NamedTuple):
    """What one layer keeps of a position: `kv_heads` keys of `key_dim` numbers, and as many values of `value_dim`."""

    kv_heads: int
    key_dim: int
    value_dim: int

    @property
    def key_width(self) -> int:
        return self.kv_heads * self.key_dim

    @property
    def value_width(self) -> int:
        return self.kv_heads * self.value_dim

    @property
    def width(self) -> int:
        """Numbers of keys and values together."""
        return self.key_width + self.value_width

    def __str__(self) -> str:
        same = self.key_dim == self.value_dim
        return f"{self.kv_heads} KV heads of {self.key_dim}" + (
            "" if same else f" (keys) and {self.value_dim} (values)"
        )


def describe_shapes(shapes: Iterable[KVShape]) -> str:
    """All layers of a cache in words."""
    return " and ".join(f"{count} layers of {shape}" for shape, count in Counter(shapes).items())
