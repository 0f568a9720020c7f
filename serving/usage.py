"""Token usage and edge details of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cachegraph.graph.run.result import AgentResult, Result

from .hide_paths import hide_paths

__all__ = ["Usage", "answer_of", "details_of", "finish_of", "usage_of"]


@dataclass(frozen=True)
class Usage:
    """Token counts of all agents, summed over one or more runs."""

    prompt: int  # prompt tokens, computed or cached
    cached: int  # of these, reused from the prefix cache or grafted
    completion: int
    unseen: int  # of these, written by agents other than the answering one


def usage_of(results: Sequence[Result], speaker: str) -> Usage:
    """Sum the usage of all runs."""
    totals = [result.totals.tokens for result in results]
    cached = sum(tokens.reused for tokens in totals)
    written = sum(tokens.generated for tokens in totals)
    said = sum(_tokens(result.agents, speaker) for result in results)
    return Usage(cached + sum(tokens.prefilled for tokens in totals), cached, written, max(written - said, 0))


def finish_of(result: Result) -> str | None:
    """Return the finish reason of the reply."""
    agent = answer_of(result)
    return agent.finish_reason if agent is not None else None


def details_of(results: Sequence[Result], warnings: Sequence[str]) -> dict[str, Any]:
    """Return details beyond the API: every edge, fallbacks, and lost sources."""
    found = [*warnings, *(str(warning) for result in results for warning in result.warnings)]
    return {
        "graph": results[0].graph if results else None,
        "seconds": round(max((result.seconds for result in results), default=0.0), 6),
        "finish_reasons": [finish_of(result) for result in results],
        "bytes": sum(result.totals.bytes for result in results),
        "edges": [edge for choice, result in enumerate(results) for edge in _edges(result, choice)],
        "fallbacks": [
            {"choice": choice, "from": pair[0], "to": pair[1], "reason": hide_paths(report.fallback_reason)}
            for choice, result in enumerate(results)
            for pair, report in result.edges.items()
            if report.fallback_reason is not None
        ],
        "warnings": list(dict.fromkeys(map(hide_paths, found))),
    }


def _edges(result: Result, choice: int) -> list[dict[str, Any]]:
    edges = []
    for pair, report in result.edges.items():
        traffic = result.traffic.get(pair)
        edges.append(
            {
                "choice": choice,
                "from": pair[0],
                "to": pair[1],
                "asked": report.asked,
                "channel": report.channel_used,
                "messages": traffic.messages if traffic else 1,
                "bytes": traffic.bytes if traffic else report.bytes,
                "positions_fused": traffic.positions_fused if traffic else report.positions_fused,
                "positions_grafted": traffic.positions_grafted if traffic else report.positions_grafted,
                "fallback_reason": hide_paths(report.fallback_reason) if report.fallback_reason else None,
                "fuser": hide_paths(report.fuser) if report.fuser else None,
            }
        )
    return edges


def answer_of(result: Result) -> AgentResult | None:
    """Return the output agent whose reply is the result's text."""
    replies = [result.agents[name] for name in (result.output, *result.outputs) if name in result.agents]
    return next((agent for agent in replies if agent.text is not None), None)


def _tokens(agents: Mapping[str, AgentResult], speaker: str) -> int:
    name, _, inner = speaker.partition("/")
    agent = agents.get(name)
    if agent is None:
        return 0
    return _tokens(agent.inside, inner) if inner else agent.total_tokens.generated
