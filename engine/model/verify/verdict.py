"""What the check at load found out about a model: plain values, which can be kept and read again."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ...kv.shapes import KVShape

if TYPE_CHECKING:
    from ...kv.recurrent_state import StateShapes

__all__ = ["OutputComparison", "Verdict"]


@dataclass(frozen=True)
class OutputComparison:
    """One thing that was computed in two ways: how far apart the results are, and how far they may be."""

    what: str
    error: float  # norm of the difference over the norm of what the model itself gives
    limit: float

    @property
    def passed(self) -> bool:
        return self.error <= self.limit


@dataclass(frozen=True)
class Verdict:
    """What a model may be trusted with, and the comparisons that say so. A reason of None is a yes."""

    why_no_cache: str | None  # why its KV cache can't travel
    why_no_rotation: str | None  # why its keys can't be moved to other positions
    why_no_kernels: str | None  # why torch alone decodes
    shapes: tuple[KVShape, ...]  # by layer: what it was seen to cache
    expands: bool
    reversed: bool
    reach: int | None  # keys can be moved below this position; None: everywhere
    rotations: tuple[tuple[str, int, str] | None, ...]  # by layer: the scheme by which its keys are rotated
    compared: tuple[OutputComparison, ...]
    state_shapes: "StateShapes" = ()  # by tensor of a row's recurrent state
    alone: bool = False  # it attends by itself, to one row a pass
    by_rows: tuple[tuple[str, bool], ...] = ()  # recurrent modules, and whether they read a token at a time

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"turns" if name == "rotations" else name: value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> "Verdict":
        """What `to_dict` gave. Raises TypeError or KeyError for anything else."""
        return cls(
            **{
                **{name: value for name, value in kept.items() if name != "turns"},
                "shapes": tuple(KVShape(*shape) for shape in kept["shapes"]),
                "rotations": tuple(rotation and (rotation[0], rotation[1], rotation[2]) for rotation in kept["turns"]),
                "compared": tuple(OutputComparison(**comparison) for comparison in kept["compared"]),
                "state_shapes": tuple((name, tuple(shape)) for name, shape in kept["state_shapes"]),
                "by_rows": tuple((name, by_token) for name, by_token in kept["by_rows"]),
            }
        )
