"""Variants of a graph that run on the same examples: channels, ends alone, controls, other fusers.

A variant's name is KIND, for a control on another channel KIND:CHANNEL, and with another fuser than the recipe's
KIND@FUSER: `mismatched`, `zero:both`, `cache@my-fuser`. KIND@mean is the mean over those that differ in their fuser.
`tuned@FOLDER` names a trained prefix instead of a fuser.
KIND:SENDER:RECEIVER has a cache on one edge and text on all others: `cache:reader:writer`, `mismatched:reader:writer`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from cachegraph.agents.spec import AgentSpec, EndpointSpec
from cachegraph.channels.spec import Channel, EdgeSpec, TextEdge
from cachegraph.common.did_you_mean import suggest
from cachegraph.engine.spec import GenerateSpec
from cachegraph.errors import FuserError, InputError
from cachegraph.graph.graph import Graph
from cachegraph.graph.plan.expected_routes import all_expected_routes
from cachegraph.graph.recipe.spec import GraphSpec, InputSpec

__all__ = [
    "CACHED",
    "DEFAULT",
    "TUNED",
    "VARIANTS",
    "ControlKind",
    "Name",
    "Variant",
    "baseline_of",
    "control_of",
    "edge_variants",
    "make_variants",
    "seeded",
]

ControlKind = Literal["zero", "mismatched"]

VARIANTS = {
    "text": "every edge hands over words",
    "cache": "every edge hands over its KV cache",
    "both": "every edge hands over words and their cache",
    "auto": "every edge takes the cache where it can",
    "alone": "the output agent without its edges: its slots are empty",
    "sharer": "the output agent's prompt, its slots empty, answered by the model of each agent before it",
    "mismatched": "as cache, but every receiver gets the caches of another example",
    "zero": "as cache, but every key and value of the sharers is 0, before a fuser or translator reads it",
    "identical": "as cache, but the receiver's own model is the sharer, through a fuser with itself",
    "ceiling": "agents upstream hand over, as words, all that they were given",
    "tuned": "as ceiling, behind a trained prefix of the output agent's model",
    "floor": "the output agent with nothing of what the others were given: the same as alone",
}
DEFAULT = ("text", "cache", "alone", "mismatched")
CONTROLS: tuple[ControlKind, ...] = ("zero", "mismatched")
CACHED: tuple[Channel, ...] = ("cache", "both", "auto")
TUNED = ("identical", "tuned")  # the receiver's own model, trained like the fuser
MEAN = "mean"


class Name(NamedTuple):
    """The parts of a variant's name. `of` and `fuser` may be empty."""

    kind: str
    of: str
    fuser: str

    @classmethod
    def parse(cls, name: str) -> "Name":
        head, _, fuser = name.partition("@")
        kind, _, of = head.partition(":")
        return cls(kind, of, fuser)

    @property
    def edge(self) -> tuple[str, str] | None:
        """The only edge with a cache, if the name has one."""
        sender, colon, receiver = self.of.partition(":")
        return (sender, receiver) if colon else None

    @property
    def channel(self) -> Channel:
        """The channel of the edges that a control replaces the caches of."""
        return next((channel for channel in CACHED if channel == self.of), "cache")


def control_of(name: str) -> str:
    """The mismatched control of a variant with caches: same channel, same edge, same fuser."""
    head, at, fuser = name.partition("@")
    of = "" if head == "cache" else f":{head.removeprefix('cache:')}"
    return f"mismatched{of}{at}{fuser}"


def baseline_of(baseline: str, name: str) -> str:
    """The baseline as a variant is compared with it: the mismatched control has the variant's edge and fuser."""
    _, _, fuser = parsed = Name.parse(name)
    if baseline != "mismatched":
        return baseline
    return control_of(name) if parsed.edge is not None else f"mismatched@{fuser}" if fuser else baseline


@dataclass(frozen=True)
class Variant:
    """A row of the table. `records` names the variant whose records it shows, with the hash of another fuser.
    `why_not` says why there are none.

    `owns`: the graph loads models of its own, so its user must close it. `mean_of`: the variants of which it is the
    mean; it does not run itself. `prefix`: the folder of a trained prefix for the output agent.
    """

    name: str
    records: str
    graph: Graph | None = None
    control: ControlKind | None = None
    why_not: str | None = None
    owns: bool = False
    mean_of: tuple[str, ...] = ()
    prefix: Path | None = None


def make_variants(names: Sequence[str], graph: Graph, examples: int) -> list[Variant]:
    """The requested variants, checked before any model is loaded. Raises InputError."""
    if len(set(names)) < len(names):
        raise InputError(f"a variant is named twice in {', '.join(names)}")
    variants: list[Variant] = []
    for name in names:
        kind, of, fuser = parsed = Name.parse(name)
        of_channel = kind in CONTROLS and of in CACHED
        of_edge = kind in ("cache", *CONTROLS) and parsed.edge is not None
        if kind not in VARIANTS or (of and not of_channel and not of_edge):
            raise InputError(f"there is no variant {name!r}{suggest(name, VARIANTS)}")
        if kind == "tuned" and (not fuser or fuser == MEAN):
            raise InputError(f"the variant {name!r} needs the folder of a trained prefix, as in tuned@FOLDER")
        if "@" in name and (not fuser or kind not in (*CACHED, *CONTROLS, *TUNED)):
            raise InputError(
                f"the variant {name!r} can't have a fuser: only a variant with caches can, as in cache@NAME"
            )
        if not (graph.spec.edges or graph.spec.graphs) and kind not in ("alone", "floor", "text"):
            raise InputError(f"the recipe has no edges, so there is no variant {name!r}; only 'alone' can run")
        if kind == "mismatched" and examples < 2:
            raise InputError("a mismatched cache is another example's, and there is only one; give more examples")
        if fuser == MEAN:
            variants.append(_mean(name, names))
        else:
            variants += _fused(name, graph) if fuser else _make(name, graph)
    return variants


def edge_variants(names: Sequence[str], edges: Sequence[tuple[str, str]]) -> list[str]:
    """The names, and behind them those that swap one edge at a time: each edge with its control, all, and none."""
    own = [f"{kind}:{sender}:{receiver}" for sender, receiver in edges for kind in ("cache", "mismatched")]
    return list(dict.fromkeys([*names, "text", "cache", *own]))


def seeded(graph: Graph, seed: int) -> Graph | None:
    """The graph with this seed for all agents that sample without one. None if there are none."""
    sampling = {
        name: agent.model_copy(update={"generate": agent.generate.model_copy(update={"seed": seed})})
        for name, agent in graph.spec.speakers.items()
        if agent.generate.temperature > 0 and agent.generate.seed is None
    }
    if not sampling:
        return None
    return graph.with_spec(graph.spec.model_copy(update={"agents": {**graph.spec.agents, **sampling}}))


def _make(name: str, graph: Graph) -> list[Variant]:
    kind, _, fuser = parsed = Name.parse(name)
    if parsed.edge is not None:
        swapped, every = _on_one_edge(graph, *parsed.edge), graph.with_channels("cache")
        records = kind if swapped.spec == every.spec else name  # it may be the only edge
        return [Variant(name, records, swapped, None if kind == "cache" else _control(kind))]
    match kind:
        case "text" | "cache" | "both" | "auto":
            return [Variant(name, name, graph.with_channels(kind))]
        case "mismatched" | "zero":
            return [Variant(name, name, graph.with_channels(parsed.channel), kind)]
        case "alone" | "floor" | "sharer" | "identical" | "tuned" if graph.output in graph.spec.graphs:
            return [Variant(name, name, why_not=f"the output {graph.output!r} is an included recipe, not an agent")]
        case "ceiling" | "tuned" if graph.spec.graphs:
            return [Variant(name, name, why_not="agents of included recipes can't be made to read only")]
        case "alone" | "floor":
            return [
                Variant(
                    name,
                    "alone",
                    graph.with_spec(_alone(graph.spec, graph.spec.speaker(graph.output).model)),
                    owns=True,
                )
            ]
        case "sharer":
            return _sharers(name, graph)
        case "ceiling" | "tuned":
            return [_ceiling(name, graph)]
        case _:
            return [_identical(name, graph, fuser or None)]


def _fused(name: str, graph: Graph) -> list[Variant]:
    """The variant with another fuser on edges that name one, or else on edges between different models."""
    from cachegraph.channels.fusers.files.atomic_folder import read_json
    from cachegraph.channels.fusers.fuser_folder import find_fuser

    kind, _, fuser = Name.parse(name)
    try:
        folder = find_fuser(fuser, graph.folder)
        card = folder / "card.json"
        mark = str(read_json(card).get("sha256"))[:8] if card.is_file() else ""
    except FuserError as error:
        raise InputError(f"the variant {name!r} can't run: {error}") from error
    (plain,) = _make(name, graph)
    if kind == "tuned":
        _check_prefix(name, folder)
        return [replace(plain, records=_records(name, mark), prefix=folder)]
    if kind == "identical":
        return [replace(plain, records=_records(name, mark))]
    assert plain.graph is not None
    spec = plain.graph.spec
    named = any(not isinstance(edge, TextEdge) and edge.fuser is not None for edge in spec.edges)
    takes = [
        not isinstance(edge, TextEdge) and (edge.fuser is not None if named else _differ(spec, edge))
        for edge in spec.edges
    ]
    if not any(takes):
        why = f"no edge of the recipe uses a fuser, so {fuser!r} would change nothing"
        return [Variant(name, name, why_not=f"{why}; included recipes name their own")]
    edges = tuple(
        edge.model_copy(update={"fuser": fuser}) if taken else edge
        for edge, taken in zip(spec.edges, takes, strict=True)
    )
    changed = graph.with_spec(spec.model_copy(update={"edges": edges}))
    return [Variant(name, _records(name, mark), changed, plain.control, owns=True)]


def _check_prefix(name: str, folder: Path) -> None:
    from cachegraph.channels.fusers.files.card import read_card

    if read_card(folder).kind != "prefix":
        raise InputError(
            f"the variant {name!r} can't run: {str(folder)!r} is a fuser; train a prefix with --control tuned"
        )


def _records(name: str, mark: str) -> str:
    """The name of a variant's records: with the first digits of its fuser's hash, if that is known."""
    return f"{name}#{mark}" if mark else name


def _control(kind: str) -> ControlKind:
    return "zero" if kind == "zero" else "mismatched"


def _on_one_edge(graph: Graph, sender: str, receiver: str) -> Graph:
    """Text on every edge but this one. Raises InputError if there is no such edge."""
    known = [f"{one}:{other}" for one, other in all_expected_routes(graph.spec, graph.folder)]
    if (name := f"{sender}:{receiver}") not in known:
        raise InputError(f"the recipe has no edge {name!r}{suggest(name, known)}")
    return graph.with_channels("text").with_channels({(sender, receiver): "cache"})


def _mean(name: str, names: Sequence[str]) -> Variant:
    plain = name.partition("@")[0]
    parts = tuple(part for part in names if part.partition("@")[0] == plain and part != name)
    if len(parts) < 2:
        raise InputError(
            f"{name!r} is the mean over variants that differ in their fuser: name two or more, as in "
            f"{plain}@seed-1,{plain}@seed-2,{name}"
        )
    return Variant(name, name, mean_of=parts)


def _differ(spec: GraphSpec, edge: EdgeSpec) -> bool:
    """Whether the two ends run different models."""
    ends = [spec.speakers.get(name) for name in (edge.sender, edge.receiver)]
    one, other = (spec.models.get(end.model, end.model) if end is not None else None for end in ends)
    return one != other


def _alone(spec: GraphSpec, model: str) -> GraphSpec:
    """The output agent alone, on this model, with its slots as empty inputs."""
    agent = spec.speaker(spec.output).model_copy(update={"model": model})
    slots = {edge.sender: InputSpec(default="") for edge in spec.edges if edge.receiver == spec.output}
    update = {"agents": {spec.output: agent}, "edges": (), "inputs": {**spec.inputs, **slots}, "evaluate": None}
    return spec.model_copy(update=update)


def _sharers(name: str, graph: Graph) -> list[Variant]:
    spec, output = graph.spec, graph.spec.speaker(graph.output)
    senders: dict[str, str] = {}  # model to the first agent that has it
    for edge in spec.edges:
        if edge.receiver == graph.output and edge.sender in spec.speakers:
            senders.setdefault(spec.speakers[edge.sender].model, edge.sender)
    models = {
        model: sender
        for model, sender in senders.items()
        if spec.models.get(model, model) != spec.models.get(output.model, output.model)
    }
    if not models:
        return [Variant(name, name, why_not="every agent before the output runs its model, so it equals 'alone'")]
    names = [name] if len(models) == 1 else [f"{name}:{sender}" for sender in models.values()]
    return [
        Variant(variant_name, variant_name, graph.with_spec(_alone(spec, model)), owns=True)
        for variant_name, model in zip(names, models, strict=True)
    ]


def _ceiling(name: str, graph: Graph) -> Variant:
    """Text edges, with upstream agents that write nothing: they hand over their whole prompts."""
    text = graph.with_channels("text")
    speakers = {
        agent_name: agent if agent_name == text.output else _reads_only(agent)
        for agent_name, agent in text.spec.speakers.items()
    }
    agents = {**text.spec.agents, **speakers}
    if agents == text.spec.agents:
        return Variant(name, "text", text)
    return Variant(name, name, graph.with_spec(text.spec.model_copy(update={"agents": agents})), owns=True)


def _reads_only(agent: AgentSpec) -> AgentSpec:
    if agent.generate.max_new_tokens == 0:
        return agent
    return agent.model_copy(update={"generate": GenerateSpec(max_new_tokens=0)})


def _identical(name: str, graph: Graph, fuser: str | None) -> Variant:
    """The output agent's sharers run its own model, through `fuser` or that model's fuser with itself."""
    from cachegraph.channels.fusers.fuser_folder import find_fuser

    spec = graph.with_channels("cache").spec
    output = spec.speaker(spec.output)
    entry = spec.models.get(output.model, output.model)
    if isinstance(entry, EndpointSpec):
        return Variant(name, name, why_not=f"agent {spec.output!r} is behind an endpoint")
    source = entry if isinstance(entry, str) else entry.source
    fuser = fuser or f"{source}--{source}"
    sharers = {
        edge.sender
        for edge in spec.edges
        if edge.receiver == spec.output
        and (sender := spec.speakers.get(edge.sender)) is not None
        and spec.models.get(sender.model, sender.model) != entry
    }
    if not sharers:
        return Variant(name, name, why_not="every agent before the output runs its model already")
    try:
        find_fuser(fuser, graph.folder)
    except FuserError:
        return Variant(name, name, why_not=f"there is no fuser {fuser!r} of the receiver's model with itself")
    moved = {sharer: spec.speaker(sharer).model_copy(update={"model": output.model}) for sharer in sharers}
    agents = {**spec.agents, **moved}
    edges = tuple(
        edge.model_copy(update={"fuser": fuser}) if edge.sender in sharers and edge.receiver == spec.output else edge
        for edge in spec.edges
    )
    return Variant(name, name, graph.with_spec(spec.model_copy(update={"agents": agents, "edges": edges})), owns=True)
