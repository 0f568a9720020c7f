"""Counts per edge over all requests: channels used, and reasons of fallbacks."""

from collections import Counter
from collections.abc import Mapping

from cachegraph.channels.payload import EdgeReport

__all__ = ["Tally"]

End = tuple[str, str]


class Tally:
    """Counts deliveries per edge."""

    def __init__(self) -> None:
        self._used: dict[End, Counter[str]] = {}
        self._reasons: dict[End, Counter[str]] = {}

    def add(self, edges: Mapping[End, EdgeReport]) -> None:
        """Count one run's edges."""
        for end, report in edges.items():
            self._used.setdefault(end, Counter())[report.channel_used] += 1
            if report.fallback_reason is not None:
                self._reasons.setdefault(end, Counter())[report.fallback_reason] += 1

    @property
    def fell_back(self) -> bool:
        return bool(self._reasons)

    def sentences(self) -> list[str]:
        """Return one line per edge."""
        return [self._sentence(end, used) for end, used in self._used.items()]

    def to_json(self) -> dict[str, dict[str, dict[str, int]]]:
        """Return per edge the deliveries by channel and the fallbacks by reason."""
        return {
            f"{sender} -> {receiver}": {
                "used": dict(used),
                "fell_back": dict(self._reasons.get((sender, receiver), {})),
            }
            for (sender, receiver), used in self._used.items()
        }

    def _sentence(self, end: End, used: Counter[str]) -> str:
        sender, receiver = end
        parts = [f"{channel} {count} times" for channel, count in used.most_common()]
        text = f"edge {sender!r} -> {receiver!r}: {', '.join(parts)}"
        for reason, count in self._reasons.get(end, Counter()).most_common():
            text += f"; fell back {count} times: {reason}"
        return text
