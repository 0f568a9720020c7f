"""Evidence for a fuser's card: whether its own cache does better than a mismatched one in a comparison."""

from pathlib import Path

from cachegraph.agents.spec import AgentSpec
from cachegraph.channels.fusers.files.card import Card, Carries, Evidence, change_card, read_card
from cachegraph.channels.spec import AutoEdge, BothEdge, CacheEdge, TextEdge
from cachegraph.errors import InputError
from cachegraph.graph.recipe.load import parse_recipe
from cachegraph.graph.recipe.spec import GraphSpec

from .comparison import Comparison

__all__ = ["evidence_of", "record_evidence"]


def evidence_of(comparison: Comparison, card: Card) -> Evidence:
    """The evidence of a comparison's variants `cache` and `mismatched` for the fuser of its only cache edge.

    Uses the first metric. Raises InputError if a variant is missing, several edges carry caches, or other models ran.
    """
    own, mismatched = comparison.row("cache"), comparison.row("mismatched")
    difference = comparison.difference("cache", "mismatched")
    if own is None or mismatched is None or difference is None or not own.was_run or not mismatched.was_run:
        raise InputError("the comparison lacks the variant 'cache' or 'mismatched'; run it with both")
    if own.cache_share != 1:
        raise InputError("in the comparison not every edge that was asked for a cache had one, so it shows nothing")
    recipe = parse_recipe(comparison.recipe, allow_paths=True, allow_code=True)
    caching = [edge for edge in recipe.edges if not isinstance(edge, TextEdge)]
    if len(caching) != 1:
        raise InputError(f"the comparison's recipe has {len(caching)} cache edges, and evidence is of one fuser's edge")
    ran = {(facts.name, facts.identity) for facts in comparison.environment.models}
    for end in (card.receiver, card.sharer):
        if not any(
            name == end.name and (None in (identity, end.identity) or identity == end.identity)
            for name, identity in ran
        ):
            raise InputError(f"the comparison ran other models than the fuser's: {end.name!r} was not among them")
    metric = comparison.metrics[0].name
    return Evidence(
        task="private" if card.kind == "graft" else "shared",
        data=Path(comparison.environment.data).name or "unnamed data",
        metric=metric,
        examples=own.examples,
        own=round(own.quality[metric].value, 4),
        mismatched=round(mismatched.quality[metric].value, 4),
        low=round(difference.low, 4),
        high=round(difference.high, 4),
        carries=_carries(recipe, caching[0]) if card.kind == "graft" else None,
    )


def _carries(recipe: GraphSpec, edge: CacheEdge | BothEdge | AutoEdge) -> Carries:
    sender = recipe.agents[edge.sender]
    reads_only = isinstance(sender, AgentSpec) and sender.generate.max_new_tokens == 0
    return "prompt" if reads_only else edge.carries or "reply"


def _check_fuser(comparison: Comparison, folder: Path) -> None:
    """Raise InputError if the comparison used another fuser. Older comparisons don't name theirs."""
    used = {edge.report.fuser for record in comparison.records_of("cache") for edge in record.edges} - {None}
    names = {Path(part.strip()).name for fuser in used if fuser is not None for part in fuser.split(",")}
    if names and names.isdisjoint({folder.name, folder.parent.name}):
        raise InputError(
            f"the comparison ran the fuser {', '.join(map(repr, sorted(names)))}, so it shows nothing of "
            f"{folder.name!r}"
        )


def record_evidence(folder: Path, comparison: Comparison) -> Evidence:
    """Add a comparison's evidence to the card of the fuser in `folder`. Replaces older evidence on the same data.

    Raises InputError as `evidence_of`, FuserError if the card is damaged, ConfigError if it can't be written.
    """
    _check_fuser(comparison, folder)
    new = evidence_of(comparison, read_card(folder))
    same = (new.task, new.data, new.metric, new.carries)

    def add(card: Card) -> Card:
        others = [
            evidence
            for evidence in card.evidence
            if (evidence.task, evidence.data, evidence.metric, evidence.carries) != same
        ]
        return card.model_copy(update={"evidence": (*others, new)})

    change_card(folder, add)
    return new
