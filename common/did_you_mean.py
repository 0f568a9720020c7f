"""Suggestions for unknown names."""

from collections.abc import Collection, Iterable
from difflib import get_close_matches

__all__ = ["did_you_mean", "near_names", "near_or_known", "suggest"]

MAX_LENGTH = 100  # difflib's ratio is quadratic in the length of names
MAX_NAMES = 500  # and linear in their number
PART = 4  # characters of a name that can stand for the whole, as 'smol' for 'smollm2-135m-instruct'
CUTOFF = 0.61  # 'schema' and 'chat' have 0.6


def near_names(name: str, known: Iterable[str], most: int = 1, cutoff: float = CUTOFF) -> list[str]:
    """Return the known names most similar to this one, nearest first; else those that it is a part of."""
    if len(name) > MAX_LENGTH:
        return []
    names = [other for other in known if len(other) <= MAX_LENGTH][:MAX_NAMES]
    near = get_close_matches(name, names, most, cutoff)
    if near or len(name) < PART:
        return near
    return [other for other in names if name.lower() in other.lower()][:most]


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "", *, most: int = 1, cutoff: float = CUTOFF) -> str:
    """Return a hint: "did you mean 'x'?", or `otherwise` if no known name is similar."""
    near = near_names(name, known, most, cutoff)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else otherwise


def near_or_known(name: str, known: Collection[str]) -> str:
    """Return a hint: the most similar known name, or all names if there are at most eight."""
    return did_you_mean(name, known, f"known are {', '.join(map(repr, known))}" if 0 < len(known) <= 8 else "")


def suggest(name: object, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: "; did you mean 'x'?", or "; there is 'a', 'b'"."""
    names = list(known)
    shown = ", ".join(repr(candidate) for candidate in names[:10]) + (", ..." if len(names) > 10 else "")
    return f"; {did_you_mean(str(name), names, f'there is {shown}' if names else 'there are none')}"
