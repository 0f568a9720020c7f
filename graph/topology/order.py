"""An order of agents in which senders come before receivers."""

from collections.abc import Iterable, Mapping

__all__ = ["senders_first"]


def senders_first(agents: Iterable[str], after: Mapping[str, Iterable[str]]) -> list[str]:
    """Return the reverse postorder of a depth-first search; `after` maps each agent to its receivers."""
    postorder: list[str] = []
    seen: set[str] = set()
    for start in agents:
        if start in seen:
            continue
        seen.add(start)
        path = [(start, iter(after.get(start, ())))]
        while path:
            name, receivers = path[-1]
            new = next((receiver for receiver in receivers if receiver not in seen), None)
            if new is None:
                postorder.append(name)
                path.pop()
            else:
                seen.add(new)
                path.append((new, iter(after.get(new, ()))))
    return postorder[::-1]
