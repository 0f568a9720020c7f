"""Checks between the parts of a recipe.

Works on a `RawSpec`, so that one pass reports every problem of a broken recipe.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import chain, islice
from typing import Any

from pydantic import ValidationError

from cachegraph.agents.endpoint_presets import preset_of
from cachegraph.agents.kinds import KINDS, kind_of
from cachegraph.agents.prompt.template import Template, TemplateProblem, compile_template
from cachegraph.channels.fusers.hub.hub_name import HUB_FORM, is_hub_fuser, parse_hub_fuser
from cachegraph.common.did_you_mean import near_or_known
from cachegraph.common.schemas import find_schema_flaw
from cachegraph.engine.sampling.json_schema import find_flaw
from cachegraph.engine.spec import GenerateSpec
from cachegraph.errors import Problem, RecipeError

from .check_code import check_code, check_tools
from .check_flow import check_flow, check_shape, item_of, structured
from .inputs import why_not
from .raw_spec import Finding, Permissions, RawSpec
from .safety import check_endpoints, check_paths, fuser_names, looks_like_path
from .spec import GraphSpec, InputSpec
from .yaml_positions import Path

__all__ = ["check", "check_spec"]

MAX_FINDINGS = 200

# Reserved words of templates.
RESERVED = {
    *("and", "or", "not", "in", "is", "if", "else", "elif", "for", "true", "false", "none", "True", "False", "None"),
    *("loop", "range", "self", "caller", "varargs", "kwargs"),
}


def check(draft: RawSpec, permissions: Permissions) -> list[Finding]:
    """Find all problems that types alone can't detect, up to a maximum number."""
    known = all(edge.sender in draft.agents and edge.receiver in draft.agents for edge in draft.edges)
    findings = chain(
        _names(draft),
        _inputs(draft),
        _models(draft, permissions),
        check_endpoints(draft, permissions),
        check_paths(draft, permissions),
        check_code(draft, permissions),
        check_tools(draft, permissions),
        _templates(draft),
        _schemas(draft),
        _fusers(draft),
        _edges(draft),
        _retries(draft),
        _ignored_settings(draft),
        _evaluated(draft),
        _memories(draft),
        check_shape(draft) if draft.whole and known else (),
        check_flow(draft) if known else (),
    )
    return list(islice(findings, MAX_FINDINGS))


def check_spec(spec: GraphSpec, permissions: Permissions | None = None) -> None:
    """Check a graph built in Python. Raises RecipeError with all problems, without lines."""
    draft = RawSpec.of(spec.model_dump(by_alias=True, exclude_defaults=True))
    findings = check(draft, permissions or Permissions(allow_paths=True, allow_code=True))
    if findings:
        raise RecipeError([Problem(finding.message, hint=finding.hint) for finding in findings])


def _names(draft: RawSpec) -> Iterator[Finding]:
    for name in draft.agents:
        if name in draft.inputs:
            message = f"{name!r} is both an agent and an input, and a template couldn't tell them apart"
            yield Finding(message, ("agents", name), "rename one", at_key=True)
    for section in ("agents", "inputs"):
        for name in draft.agents if section == "agents" else draft.inputs:
            if name in RESERVED:
                message = f"{section[:-1]} name {name!r} means something else in a template"
                yield Finding(message, (section, name), "choose another", at_key=True)
    for name, path in draft.outputs:
        if draft.agents and name not in draft.agents:
            yield Finding(f"output {name!r} is not an agent of this recipe", path, near_or_known(name, draft.agents))


def _inputs(draft: RawSpec) -> Iterator[Finding]:
    """Find unusable schemas, and defaults that don't match their declarations."""
    for name, entry in draft.inputs.items():
        if not isinstance(entry, dict):
            continue
        if isinstance(schema := entry.get("schema"), dict) and (flaw := find_schema_flaw(schema)) is not None:
            path = ("inputs", name, "schema", *flaw.path)
            yield Finding(f"the schema of input {name!r}: {flaw.message}", path, flaw.hint, at_key=flaw.at_key)
            continue
        if entry.get("default") is None:
            continue
        try:
            spec = InputSpec.model_validate(entry)
        except ValidationError:
            continue  # the types report it
        default = entry["default"]
        wrong = why_not(spec, default)
        if spec.kind == "string" and not isinstance(default, str):
            yield Finding(f"'default' must be text, got {default}", ("inputs", name, "default"), "write it in quotes")
        elif wrong is not None:
            yield Finding(f"the default of input {name!r} {wrong}", ("inputs", name, "default"))


def _models(draft: RawSpec, permissions: Permissions) -> Iterator[Finding]:
    for agent, body in draft.agents.items():
        if isinstance(model := body.get("model"), str) and model not in draft.models:
            yield from _model_name(model, ("agents", agent, "model"), draft, permissions)
    for key, entry in draft.models.items():
        source = entry.get("source") if isinstance(entry, dict) else entry
        path = ("models", key, "source") if isinstance(entry, dict) else ("models", key)
        if isinstance(entry, dict) and "device_map" in entry and entry.get("device", "auto") != "auto":
            message = f"the model {key!r} has a 'device' and a 'device_map'"
            yield Finding(message, ("models", key, "device"), "keep the one that says where it runs")
        if isinstance(source, str):
            yield from _model_name(source, path, RawSpec({}, {}, {}, [], [], True), permissions)


def _model_name(model: str, path: tuple[str, ...], draft: RawSpec, permissions: Permissions) -> Iterator[Finding]:
    if not model or looks_like_path(model) or "/" in model:
        return
    catalogue = permissions.known_models
    candidates = [*draft.models, *sorted(catalogue or ())]
    hint = near_or_known(model, candidates)
    if catalogue is not None:
        wrong = model not in catalogue
    else:
        # Without the catalogue, treat a plain word close to a key of `models` as a typo.
        wrong = not model.isprintable() or " " in model or (model.isidentifier() and hint.startswith("did you"))
    if wrong and not (permissions.folder / model).exists():
        where = "neither a key of 'models' nor in the catalogue" if path[0] == "agents" else "not in the catalogue"
        yield Finding(f"model {model!r} is {where}", path, hint or "name a hub id, a folder or a .gguf file")


def _templates(draft: RawSpec) -> Iterator[Finding]:
    senders: dict[str, set[str]] = {}
    for edge in draft.edges:
        senders.setdefault(edge.receiver, set()).add(edge.sender)
    compiled = lru_cache(maxsize=None)(_compile)  # per check: compiles aliased prompts once
    names = {**dict.fromkeys(draft.inputs), **dict.fromkeys(draft.agents)}
    structured_inputs = structured(draft)
    for agent, body in draft.agents.items():
        item = {item_of(body)} if "for_each" in body else set()
        objects = structured_inputs | item
        given = senders.get(agent, set()) | item
        for path, source in _sources(agent, body):
            key = str(path[-1])
            result = compiled(source, objects)
            if isinstance(result, TemplateProblem):
                message = f"{key} of agent {agent!r}: {result.message}"
                yield Finding(message, path, result.hint, spot=(result.line, result.column))
                continue
            for name in sorted(result.names - draft.inputs.keys() - given):
                if name in draft.agents and not draft.whole:
                    continue  # its edge may be malformed
                message, hint = _stray(name, agent, key, names, draft)
                yield Finding(message, path, hint, spot=result.place(name))


def _schemas(draft: RawSpec) -> Iterator[Finding]:
    for agent, body in draft.agents.items():
        generate = body.get("generate")
        if not isinstance(generate, dict) or not isinstance(schema := generate.get("json_schema"), dict):
            continue
        path = ("agents", agent, "generate")
        for key, wrong in (("ignore_eos", True), ("max_new_tokens", 0)):
            if generate.get(key) == wrong:
                message = f"agent {agent!r} has a json_schema, which its {key!r} leaves no way to fulfil"
                yield Finding(message, (*path, key), f"leave out {key!r}, or the schema")
        if generate.get("min_new_tokens"):
            message = f"agent {agent!r} has a json_schema, and that alone says how short a reply may be"
            yield Finding(
                message, (*path, "min_new_tokens"), "leave it out; the schema may have minLength and minItems"
            )
        if body.get("tools") and str(body.get("model")) not in _endpoints(draft):
            message = f"agent {agent!r} has a json_schema, which would keep its local model from calling its tools"
            yield Finding(
                message, (*path, "json_schema"), "let one agent call tools and the next put it into the schema"
            )
        if (flaw := find_flaw(schema)) is not None:
            message = f"json_schema of agent {agent!r}: {flaw.message}"
            yield Finding(message, (*path, "json_schema", *flaw.path), flaw.hint, at_key=flaw.at_key)


def _endpoints(draft: RawSpec) -> set[str]:
    """Names of the models that have an endpoint."""
    return {name for name, entry in draft.models.items() if isinstance(entry, dict) and "base_url" in entry}


def _sources(agent: str, body: dict[str, Any]) -> Iterator[tuple[Path, str]]:
    """Yield the templates of an agent with their paths."""
    for kind in KINDS.values():
        for path, source in kind.templates_in(body):
            yield ("agents", agent, *path), source


def _compile(source: str, objects: frozenset[str]) -> Template | TemplateProblem:
    try:
        return compile_template(source, objects)
    except TemplateProblem as problem:
        return problem


def _stray(name: str, agent: str, key: str, names: dict[str, None], draft: RawSpec) -> tuple[str, str]:
    if name == agent:
        return f"the {key} of agent {agent!r} names the agent itself", "an agent can't read its own reply"
    if name in draft.agents:
        message = f"the {key} of agent {agent!r} has a slot for agent {name!r}, but no edge leads from there"
        return message, f"add '- {{from: {name}, to: {agent}}}' to 'edges'"
    hint = near_or_known(name, names) or f"add {name!r} to 'inputs'"
    return f"the {key} of agent {agent!r} names {name!r}, which is neither an input nor an agent", hint


def _fusers(draft: RawSpec) -> Iterator[Finding]:
    for place, fuser in fuser_names(draft):
        if is_hub_fuser(fuser) and parse_hub_fuser(fuser) is None:
            yield Finding(f"{fuser!r} is not a fuser of the hub", place, f"write {HUB_FORM}")


def _edges(draft: RawSpec) -> Iterator[Finding]:
    seen: dict[tuple[str, str], int] = {}
    endpoints = _endpoints(draft)
    remote = {name for name, body in draft.agents.items() if str(body.get("model")) in endpoints}
    no_cache = {name: KINDS[kind_of(body)].no_cache for name, body in draft.agents.items()}
    no_cache |= dict.fromkeys(remote, "sits behind an endpoint, which has no KV cache")
    for edge in draft.edges:
        for key, name in (("from", edge.sender), ("to", edge.receiver)):
            if draft.agents and name not in draft.agents:
                message = f"edge {edge.sender!r} -> {edge.receiver!r} names {name!r}, which is not an agent"
                yield Finding(message, ("edges", edge.index, key), near_or_known(name, draft.agents))
        if edge.sender == edge.receiver and edge.sender in draft.agents and not edge.leads_back:
            message = f"edge {edge.sender!r} -> {edge.receiver!r} leads back to where it starts"
            yield Finding(message, ("edges", edge.index), "remove it, or give it 'max_rounds'")
        first = seen.setdefault((edge.sender, edge.receiver), edge.index)
        if first != edge.index:
            message = f"there is already an edge {edge.sender!r} -> {edge.receiver!r}: number {first + 1}"
            yield Finding(message, ("edges", edge.index), "remove one; 'channel: both' hands over text and cache")
        far = [name for name in (edge.sender, edge.receiver) if no_cache.get(name) is not None]
        if far and edge.channel in ("cache", "both") and edge.fallback == "error":
            message = f"agent {far[0]!r} {no_cache[far[0]]} for a {edge.channel} edge"
            yield Finding(message, ("edges", edge.index, "fallback"), "write 'fallback: text' or 'channel: text'")


def _retries(draft: RawSpec) -> Iterator[Finding]:
    for name, body in draft.agents.items():
        model = draft.models.get(str(body.get("model")))
        if body.get("retry") is not None and not (isinstance(model, dict) and "base_url" in model):
            message = f"agent {name!r} runs on this machine, where nothing is tried again"
            yield Finding(message, ("agents", name, "retry"), "remove it; 'retry' is for models behind an endpoint")


def _ignored_settings(draft: RawSpec) -> Iterator[Finding]:
    """Find settings that an agent's server would drop without an error."""
    for name, body in draft.agents.items():
        model, generate = draft.models.get(str(body.get("model"))), body.get("generate")
        if not (isinstance(model, dict) and "base_url" in model and isinstance(generate, dict)):
            continue
        preset = preset_of(model.get("source"))
        if preset is None:
            continue
        for setting in preset[0].ignored:
            if setting in generate and generate[setting] != GenerateSpec.model_fields[setting].default:
                message = f"{model['source'].partition('/')[0]} ignores {setting!r}, which agent {name!r} sets"
                yield Finding(message, ("agents", name, "generate", setting), preset[0].ignored_hint, at_key=True)


def _evaluated(draft: RawSpec) -> Iterator[Finding]:
    for name in draft.evaluated:
        if name not in draft.inputs:
            hint = near_or_known(name, draft.inputs)
            yield Finding(f"{name!r} is not an input of this recipe", ("evaluate", "inputs", name), hint, at_key=True)


def _memories(draft: RawSpec) -> Iterator[Finding]:
    for name, body in draft.agents.items():
        if body.get("memory") and "for_each" in body:
            message = f"agent {name!r} takes many turns at once, so there is no order in which it could remember them"
            yield Finding(message, ("agents", name, "memory"), "drop 'memory' or 'for_each'", at_key=True)
