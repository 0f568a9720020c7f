"""Warnings of a finished run."""

from collections.abc import Iterator, Mapping

from cachegraph.channels.payload import EdgeReport

from ..run_warning import RunWarning
from .result import AgentResult

__all__ = ["run_warnings"]


def run_warnings(agents: Mapping[str, AgentResult], edges: Mapping[tuple[str, str], EdgeReport]) -> list[RunWarning]:
    """Return the warnings of a finished or running run, including those of included recipes."""
    return [*_empty_edges(agents, edges), *_of_agents(agents)]


def _empty_edges(
    agents: Mapping[str, AgentResult], edges: Mapping[tuple[str, str], EdgeReport]
) -> Iterator[RunWarning]:
    for (sender, receiver), report in edges.items():
        if not report.carried_nothing:
            continue
        message = f"the {report.asked} edge {sender!r} -> {receiver!r} carried no position"
        if sender in agents and agents[sender].text == "":
            message += f", since the reply of {sender!r} is empty"
        yield RunWarning("empty_edge", message, (sender, receiver), (sender, receiver))


def _of_agents(agents: Mapping[str, AgentResult]) -> Iterator[RunWarning]:
    for name, agent in agents.items():
        parts = [part for turn in (*agent.earlier, agent) for part in (turn.items or [turn]) if part.inside]
        if not parts:
            yield from (*_withheld(name, agent), *_cut(name, agent))
        inner = (warning.inside(name) for part in parts for warning in _of_agents(part.inside))
        yield from dict.fromkeys(inner)


def _cut(name: str, agent: AgentResult) -> Iterator[RunWarning]:
    """Warn of replies that a token limit has truncated."""
    turns = [*agent.earlier, agent]
    cut = sum(turn.finish_reason == "length" for turn in turns)
    if cut:
        which = f"the reply of {name!r} was" if len(turns) == 1 else f"{cut} of {len(turns)} replies of {name!r} were"
        message = f"{which} cut at the token limit; raise its max_new_tokens, or ask it for less"
        yield RunWarning("cut", message, (name,))


def _withheld(name: str, agent: AgentResult) -> Iterator[RunWarning]:
    """Warn of a reply that a content filter or a refusal has cut off."""
    if agent.status == "finished" and agent.finish_reason in ("content_filter", "refusal"):
        what = "the endpoint's filter" if agent.finish_reason == "content_filter" else "the model's refusal"
        yield RunWarning("withheld", f"the reply of {name!r} was broken off by {what}", (name,))
