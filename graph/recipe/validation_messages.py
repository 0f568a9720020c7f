"""pydantic errors as recipe problems with positions.

Messages take the expected value from the recipe's JSON Schema, so that one sentence covers every kind of mistake.
This file adds no rules.
"""

import re
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from cachegraph.agents.kinds import KINDS, why_two_kinds
from cachegraph.channels.spec import CHANNELS
from cachegraph.common.did_you_mean import did_you_mean, near_names
from cachegraph.errors import Problem

from .json_schema import recipe_schema
from .yaml_positions import Document, Path, YamlNode

__all__ = ["ONE_KIND", "explain", "key_hint", "place_of", "value_message"]

MAX_PROBLEMS = 200
ONE_KIND = "keep one, or make two agents"
ENTRY = "NAME: {model: ..., prompt: ...}"
# What to write for a missing key of the recipe.
MISSING = {
    "version": "start with 'version: 1'",
    "name": "write 'name: ...'",
    "agents": f"write 'agents:', and below it each agent as '{ENTRY}'",
    "output": "write 'output: ...' with the name of an agent, whose reply is the run's",
}
# Types by union tag; pydantic puts the tags into error paths.
UNIONS: dict[Any, dict[Any, str | None]] = {
    "edges": {"text": "TextEdge", "cache": "CacheEdge", "both": "BothEdge", "auto": "AutoEdge"},
    "tools": {"command": "CommandTools", "url": "UrlTools"},
    "agents": {key: kind.__name__ for key, kind in KINDS.items()},
    "models": {"local": "ModelSpec", "endpoint": "EndpointSpec", "name": None},
}

EXPONENT = re.compile(r"([-+]?\d+)(?:\.(\d*))?[eE]([-+]?\d+)")
MEMORY = ("flag", "limits")  # likewise, for the two forms of an agent's memory


def explain(error: ValidationError, document: Document) -> list[Problem]:
    """Return one problem for each invalid value, in the order of the recipe's keys."""
    problems: dict[tuple[Path, bool], Problem] = {}
    details = error.errors(include_url=False, include_context=False, include_input=False)[: 2 * MAX_PROBLEMS]
    meant = _meant(details)
    for detail in details:
        path, at_key = _path(detail, document)
        if detail["type"] == "missing" and path in meant:
            continue
        problems.setdefault((path, at_key), _problem(detail, path, at_key, document))
    return list(dict.fromkeys(problems.values()))[:MAX_PROBLEMS]


def place_of(detail: ErrorDetails, above: Path) -> Path:
    """Return the path of an error in Python code, without the tags of unions and the options of a value's union."""
    loc = (*above, *detail["loc"])
    path = untagged(loc)
    while detail["type"] not in ("missing", "extra_forbidden") and len(path) > 2 and not _schema_at(path, loc):
        path = path[:-1]
    return path


def value_message(detail: ErrorDetails, above: Path) -> str:
    """Say what a value that Python code gives must be; `above` is the path of the part that was validated."""
    loc = (*above, *detail["loc"])
    path = place_of(detail, above)
    if detail["type"] == "union_tag_invalid" and path[:1] == ("edges",):
        channel = detail["input"].get("channel") if isinstance(detail["input"], dict) else None
        return f"'channel' must be {_either(list(map(repr, CHANNELS)))}, not {channel!r}"
    wanted = _schema_at(path, loc) if path else {}
    if not wanted or detail["type"] == "value_error" or path[-1:] == ("[key]",):
        message = detail["msg"].removeprefix("Value error, ")
        return message[:1].lower() + message[1:]
    given = repr(detail["input"])
    return f"it must be {_wanted(path, wanted)}, not {given if len(given) <= 60 else f'{given[:57]}...'}"


def key_hint(detail: ErrorDetails, above: Path) -> str:
    """Say what an unknown key in Python code was probably meant to be."""
    loc = (*above, *detail["loc"])
    path = untagged(loc)
    schema = _mapping_of(_schema_at(path[:-1], loc))
    return _elsewhere(str(path[-1]), path, schema.get("properties", {}))


def _path(detail: ErrorDetails, document: Document) -> tuple[Path, bool]:
    """Return the path of an error, without pydantic's union tags, and whether its last key is wrong itself."""
    path: Path = detail["loc"]
    if path[-1:] == ("[key]",):
        return path[:-1], True
    path = untagged(path)
    if detail["type"] == "union_tag_invalid":
        return (*path, "channel"), False
    if detail["type"] in ("missing", "extra_forbidden"):
        return path, detail["type"] == "extra_forbidden"
    return path[: document.find(path)[1]], False


def untagged(path: Path) -> Path:
    """Return the path of a pydantic error without the tags of unions."""
    if len(path) > 2 and path[0] in UNIONS and path[2] in UNIONS[str(path[0])]:
        path = path[:2] + path[3:]
    if path[0:1] == ("edges",) and path[2:3] == ("fuser",) and path[3:4] in (("name",), ("pair",)):
        path = path[:3] + path[4:]
    return tuple(part for at, part in enumerate(path) if not (at and path[at - 1] == "memory" and part in MEMORY))


def _problem(detail: ErrorDetails, path: Path, at_key: bool, document: Document) -> Problem:
    schema = _mapping_of(_schema_at(path[:-1], detail["loc"])) if path else recipe_schema()
    if detail["type"] == "missing":
        hint = MISSING.get(str(path[-1]), "") if len(path) == 1 else ""
        if path[0] == "agents" and path[2:] == ("model",):
            hint = f"or one of {', '.join(repr(kind) for kind in KINDS if kind != 'model')}"
        return document.problem(f"{_owner(path[:-1])} needs the key {path[-1]!r}", path[:-1], hint)
    if detail["type"] == "extra_forbidden" and (clash := _two_kinds(path, document)) is not None:
        return clash
    if detail["type"] == "extra_forbidden":
        name, known = str(path[-1]), schema.get("properties", {})
        return document.problem(f"unknown key {name!r}", path, _elsewhere(name, path, known), at_key=True)
    if at_key:
        said = recipe_schema()["properties"][str(path[0])].get("propertyNames", {}).get("patternErrorMessage", "a name")
        return document.problem(
            f"{path[-1]!r} can't name one of the {path[0]!r}", path, f"it must be {said}", at_key=True
        )
    node, _ = document.find(path)
    wanted = _schema_at(path, detail["loc"])
    if detail["type"] == "value_error" and node.children:  # its keys are right, and don't fit each other
        return document.problem(f"{_named(path)}: {detail['msg'].removeprefix('Value error, ')}", path)
    hint = _example(path, node) or _hint(node, wanted, document)
    return document.problem(f"{_named(path)} must be {_wanted(path, wanted)}, got {_got(node)}", path, hint)


def _two_kinds(path: Path, document: Document) -> Problem | None:
    """The problem of an agent with keys of several kinds, if this unknown key is one of theirs."""
    keys = list(document.find(path[:2])[0].keys) if path[0] == "agents" and len(path) == 3 else []
    why = why_two_kinds(str(path[1]), keys) if keys else None
    if why is None or not any(path[2] in _keys_of(kind) for kind in KINDS if kind in keys):
        return None
    second = [key for key in keys if key in KINDS][1]
    return document.problem(why, (*path[:2], second), ONE_KIND, at_key=True)


def _keys_of(kind: str) -> dict[str, Any]:
    """The keys of an agent of this kind, with their schemas."""
    keys: dict[str, Any] = recipe_schema()["$defs"][KINDS[kind].__name__]["properties"]
    return keys


def _named(path: Path) -> str:
    match path:
        case ():
            return "a recipe"
        case ("edges", int()):
            return _owner(path)
        case (*_, above, int() as index):
            return f"item {index + 1} of {above!r}"
    return repr(path[-1])


def _example(path: Path, node: YamlNode) -> str:
    """Show how a section's entry is written, for forms that other tools have."""
    match path:
        case ("edges",) if isinstance(node.children, dict):
            return "write each edge as '- {from: NAME, to: NAME}'"
        case ("edges", int()):
            return "write '{from: NAME, to: NAME}'"
        case ("inputs",) if isinstance(node.children, list):
            return "write '{NAME: {}}', with a key for each input"
        case ("inputs", _) if not isinstance(node.children, dict):
            return "write '{default: ...}', or '{}' for an input without a default"
        case ("agents",) if not node.children or isinstance(node.children, list):
            return f"write each agent under its name, as '{ENTRY}'"
        case ("agents", str() as name) if not isinstance(node.children, dict):
            return f"write {ENTRY.replace('NAME', name)!r}"
        case ("agents", _, "model") if isinstance(node.children, dict):
            return "write the mapping under 'models', with a name, and that name here"
    return ""


def _got(node: YamlNode) -> str:
    if node.children is not None:
        what = "a mapping" if isinstance(node.children, dict) else "a list"
        return what if node.children else f"{what} without anything in it"
    if node.value is None:
        return "nothing"
    text = repr(node.value) if isinstance(node.value, str) and not _exponent(node) else str(node.raw)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _exponent(node: YamlNode) -> str:
    """Rewrite a number that YAML 1.1 parses as text: with a point, and a sign before the exponent."""
    found = EXPONENT.fullmatch(node.raw or "") if not node.style and isinstance(node.value, str) else None
    if found is None:
        return ""
    integer, part, exponent = found.groups()
    return f"{integer}.{part or 0}e{exponent if exponent[0] in '+-' else f'+{exponent}'}"


def _hint(node: YamlNode, wanted: dict[str, Any], document: Document) -> str:
    if document.text.startswith("{{", node.start):
        return "put a value that starts with '{{' in quotes"
    variants = [wanted, *wanted.get("anyOf", [])]
    free = any(variant.get("type") == "string" and not variant.keys() & {"const", "enum"} for variant in variants)
    if isinstance(node.value, bool | int | float) and free:
        return f"write '{node.raw}' in quotes"
    if not isinstance(node.value, str):
        return ""
    if any(variant.get("type") in ("integer", "number") for variant in variants) and node.style in ("'", '"'):
        return "write it without quotes"
    if any(variant.get("type") in ("integer", "number") for variant in variants) and (number := _exponent(node)):
        return f"YAML 1.1 takes {node.raw} for text; write {number}"
    if "{{" not in node.value and [variant.get("type") for variant in variants] == ["array"]:
        return "put it in square brackets"
    options = [option for variant in variants for option in variant.get("enum", [variant.get("const")])]
    return did_you_mean(node.value, [str(option) for option in options if option])


def _meant(details: list[ErrorDetails]) -> set[Path]:
    """Find missing keys that an unknown sibling key probably misspells, to report them only once."""
    missing: dict[Path, list[str]] = {}
    for detail in details:
        if detail["type"] == "missing":
            missing.setdefault(detail["loc"][:-1], []).append(str(detail["loc"][-1]))
    found: set[Path] = set()
    for detail in details:
        if detail["type"] == "extra_forbidden" and (keys := missing.get(detail["loc"][:-1])):
            above: Path = detail["loc"][:-1]
            if len(above) > 2 and above[0] in UNIONS:
                above = above[:2]
            found |= {(*above, key) for key in near_names(str(detail["loc"][-1]), keys)}
    return found


def _owner(path: Path) -> str:
    match path:
        case (section, str() as name):
            return f"{str(section)[:-1]} {name!r}"
        case ("edges", int() as index):
            return f"edge {index + 1}"
        case (*_, name):
            return repr(name)
    return "the recipe"


def _elsewhere(name: str, path: Path, known: dict[str, Any]) -> str:
    """Suggest the intended key: a similar one, or this one at another path."""
    definitions = recipe_schema()["$defs"]
    if path[0] == "edges" and name in definitions["CacheEdge"]["properties"]:
        return "only edges with 'channel: cache', 'both' or 'auto' have it"
    owners = [f"{kind!r}" for kind in KINDS if path[0] == "agents" and len(path) == 3 and name in _keys_of(kind)]
    if owners and name not in known:
        return f"only agents with {' or '.join(owners)} have it"
    settings = definitions["GenerateSpec"]["properties"] if path[0] == "agents" and "generate" in known else {}
    near = near_names(name, {**known, **settings})
    if near and near[0] not in known:
        meant = "write it" if near == [name] else f"did you mean {near[0]!r}? Write it"
        return f"{meant} under 'generate': 'generate: {{{near[0]}: ...}}'"
    return did_you_mean(name, known, f"known are {', '.join(map(repr, known))}" if known else "")


def _schema_at(path: Path, loc: Path) -> dict[str, Any]:
    """Look up the schema of the value at a path. `loc` holds the union types that pydantic chose."""
    schema: dict[str, Any] = recipe_schema()
    definitions = schema["$defs"]
    for depth, part in enumerate(path):
        schema = _mapping_of(schema)
        if "properties" in schema and part in schema["properties"]:
            schema = schema["properties"][part]
        elif isinstance(schema.get("additionalProperties"), dict):
            schema = schema["additionalProperties"]
        else:
            schema = schema.get("items", {})
        if depth == 1 and path[0] in UNIONS and len(loc) > 2:
            chosen = UNIONS[str(path[0])].get(str(loc[2]))
            schema = definitions[chosen] if chosen else schema
        if part == "fuser" and depth + 1 < len(path):
            schema = definitions["FuserPair"]
        if "$ref" in schema:
            schema = definitions[schema["$ref"].rsplit("/", 1)[1]]
    return schema


def _mapping_of(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the mapping schema among the alternatives of a value."""
    mappings = [option["$ref"] for key in ("oneOf", "anyOf") for option in schema.get(key, ()) if "$ref" in option]
    if len(mappings) != 1:
        return schema
    definition: dict[str, Any] = recipe_schema()["$defs"][mappings[0].rsplit("/", 1)[1]]
    return definition


def _wanted(path: Path, schema: dict[str, Any]) -> str:
    if len(path) == 3 and path[0] == "edges" and path[2] == "channel":
        return _either(list(map(repr, CHANNELS)))
    if len(path) == 2 and path[0] == "models":
        return "text that names a model, or a mapping with 'source' or 'base_url'"
    return _words(schema)


def _words(schema: dict[str, Any]) -> str:
    """Describe the values that a schema accepts."""
    if "patternErrorMessage" in schema:
        return f"{schema['patternErrorMessage']}{_at_most(schema)}"
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return _either([_words(option) for option in options if option.get("type") != "null"])
    if "enum" in schema or "const" in schema:
        return _either([repr(option) for option in schema.get("enum", [schema.get("const")])])
    match schema.get("type"):
        case "integer" | "number" as kind:
            return ("a whole number" if kind == "integer" else "a number") + _bounds(schema)
        case "boolean":
            return "true or false"
        case "string":
            return f"{'text, not empty' if schema.get('minLength') else 'text'}{_at_most(schema)}"
        case "array":
            return "a list"
        case "object" if schema.get("minProperties"):
            return "a mapping that is not empty"
    return "a mapping"


def _at_most(schema: dict[str, Any]) -> str:
    return f" (at most {schema['maxLength']})" if "maxLength" in schema else ""


def _bounds(schema: dict[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    above = schema.get("exclusiveMinimum")
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}"
    if above is not None:
        return f" above {above:g}" + (f" and up to {high:g}" if high is not None else "")
    return f" of {low:g} or more" if low is not None else ""


def _either(options: list[str]) -> str:
    return options[0] if len(options) == 1 else f"{', '.join(options[:-1])} or {options[-1]}"
