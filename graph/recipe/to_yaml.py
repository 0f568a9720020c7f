"""Write a recipe as YAML."""

import re
from itertools import pairwise
from typing import Any

import yaml

from .spec import GraphSpec

__all__ = ["dump_recipe"]

# Leading keys of each section, in the order in which people write them; others follow as declared.
AGENT = ("model", "graph", "for_each", "as", "system", "prompt")
EDGE = ("from", "to", "channel")
# A block scalar can't hold these characters; text that has one is escaped in double quotes.
STRANGE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\xa0\u2028\u2029\ufeff\ud800-\udfff]|\A[ \n]|[ ]$|\n\n\Z", re.MULTILINE)

Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def dump_recipe(spec: GraphSpec) -> str:
    """Write YAML that loads back to an equal spec; omits defaults."""
    data = spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    data["agents"] = {name: _sorted(agent, AGENT) for name, agent in data["agents"].items()}
    edges = [f"  - {_yaml(_Inline(_sorted(edge, EDGE)))}" for edge in data.pop("edges", [])]
    sections = {key: _yaml({key: value}) for key, value in data.items()}
    if edges:
        # libyaml can't indent lists as people do.
        sections["edges"] = "".join(["edges:\n", *edges])
    order = [declared.alias or name for name, declared in type(spec).model_fields.items()]
    return "".join(_spaced([sections[key] for key in order if key in sections]))


def _yaml(value: Any) -> str:
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**9))


def _spaced(sections: list[str]) -> list[str]:
    """Put a blank line around each multi-line section."""
    spaced = sections[:1]
    for before, section in pairwise(sections):
        spaced += ["\n", section] if before.count("\n") > 1 or section.count("\n") > 1 else [section]
    return spaced


def _sorted(part: dict[str, Any], first: tuple[str, ...]) -> dict[str, Any]:
    if "generate" in part:
        part = {**part, "generate": _Inline(part["generate"])}
    return {key: part[key] for key in (*first, *part) if key in part}


class _Inline(dict[str, Any]):
    """A mapping on one line."""


class _Dumper(Dumper):  # type: ignore[misc]
    def ignore_aliases(self, _data: Any) -> bool:
        return True


def _text(dumper: Any, text: str) -> Any:
    style = None
    if "\n" in text:
        style = '"' if STRANGE.search(text) else "|"
    elif not text.isprintable():
        style = '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
_Dumper.add_representer(
    _Inline, lambda dumper, data: dumper.represent_mapping("tag:yaml.org,2002:map", data.items(), flow_style=True)
)
