"""Read a recipe from YAML; report every problem with its line and column."""

import codecs
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cachegraph.channels.spec import EdgeSpec
from cachegraph.errors import Problem, RecipeError

from .check import check
from .includes import Chain, Load, check_nested, own_file
from .raw_spec import Finding, Permissions, RawSpec
from .spec import GraphSpec
from .swap_channels import with_inner_channels
from .to_yaml import dump_recipe
from .validation_messages import explain
from .yaml_positions import BREAK, Document, YamlNode, read_yaml

__all__ = [
    "answering",
    "check_included",
    "dump_recipe",
    "included",
    "included_by_name",
    "inner_edges",
    "load_recipe",
    "locate",
    "parse_alone",
    "parse_recipe",
    "read_spec",
    "read_text",
    "remembers",
]

MAX_BYTES = 64_000_000
MAX_PROBLEMS = 200
NOWHERE = Path(os.devnull)  # the folder of a recipe that names no files: nothing exists below it


def load_recipe(
    path: str | Path,
    *,
    allow_env: Collection[str] = (),
    allow_paths: bool = False,
    allow_code: bool = False,
    allow_local: bool = False,
    known_models: Collection[str] | None = None,
    chain: Chain = (),
) -> GraphSpec:
    """Read and check a recipe file. Raises RecipeError with all problems.

    `allow_env` lists the environment variables that its endpoints may name. `allow_paths` permits files outside its
    folder, `allow_code` functions and programs to run, `allow_local` endpoints in this machine's networks.
    `known_models` are the catalogue's names, if available.
    `chain` lists the recipes that include it.
    """
    path = Path(path)
    return parse_recipe(
        read_text(path),
        str(path),
        path.resolve().parent,
        allow_env=allow_env,
        allow_paths=allow_paths,
        allow_code=allow_code,
        allow_local=allow_local,
        known_models=known_models,
        chain=chain or (path.resolve(),),
    )


def parse_recipe(
    text: str,
    name: str = "<recipe>",
    folder: Path | None = None,
    *,
    allow_env: Collection[str] = (),
    allow_paths: bool = False,
    allow_code: bool = False,
    allow_local: bool = False,
    known_models: Collection[str] | None = None,
    chain: Chain = (),
) -> GraphSpec:
    """Check a recipe's text. Problems call it `name`; its relative paths start at `folder`."""
    permissions = Permissions(
        folder or Path(),
        frozenset(allow_env),
        allow_paths,
        None if known_models is None else frozenset(known_models),
        allow_code,
        allow_local,
    )
    return _parse(
        text, name, permissions, lambda spec: check_nested(spec, folder or Path(), chain, _loader(permissions))
    )


def parse_alone(
    text: str, permissions: Permissions, border: Callable[[GraphSpec], Iterable[Finding]], name: str = "<recipe>"
) -> GraphSpec:
    """Check a recipe's text without reading any file. `border` finds what its reader does not allow.

    Raises RecipeError with all problems.
    """
    return _parse(text, name, replace(permissions, folder=NOWHERE, allow_paths=True), border)


def _parse(
    text: str, name: str, permissions: Permissions, follow: Callable[[GraphSpec], Iterable[Finding | Problem]]
) -> GraphSpec:
    """Check a recipe's text; once nothing else is wrong, `follow` may find more."""
    document = read_yaml(text.removeprefix("\ufeff"), name)
    data = document.root.value
    if not isinstance(data, dict):
        is_empty = data is None and not document.root.raw  # or holds comments only
        message = "the file is empty" if is_empty else "a recipe is a mapping of keys to values"
        raise RecipeError([*document.problems, document.problem(message, (), "start with 'version: 1'")])
    if {"for", "fuser"} <= data.keys() and "agents" not in data:
        message = "this recipe declares a training, not a graph"
        raise RecipeError([document.problem(message, ("for",), "start it with: cachegraph train RECIPE", at_key=True)])
    problems = list(document.problems)
    spec: GraphSpec | None = None
    try:
        spec = GraphSpec.model_validate(data, strict=True)
    except ValidationError as error:
        problems += explain(error, document)
    problems += [_problem(finding, document) for finding in check(RawSpec.of(data), permissions)]
    if spec is not None and not problems:
        problems = [
            finding if isinstance(finding, Problem) else _problem(finding, document) for finding in follow(spec)
        ]
    if spec is None or problems:
        raise RecipeError(_ordered(problems, name))
    return spec


def check_included(spec: GraphSpec, permissions: Permissions, folder: Path) -> None:
    """Check the recipes that a graph built in Python includes. Raises RecipeError."""
    found = list(check_nested(spec, folder, (), _loader(permissions)))
    if found:
        raise RecipeError([x if isinstance(x, Problem) else Problem(x.message, hint=x.hint) for x in found])


def read_spec(path: Path) -> GraphSpec:
    """Load a recipe that was already checked together with the recipe that includes it."""
    return GraphSpec.model_validate(
        read_yaml(read_text(path).removeprefix("\ufeff"), str(path)).root.value, strict=True
    )


def included(spec: GraphSpec, folder: Path) -> Iterator[tuple[GraphSpec, Path]]:
    """Yield all directly and indirectly included recipes, with their channels applied, and their files."""
    for entry in spec.graphs.values():
        file = own_file(entry, folder)
        inner = with_inner_channels(read_spec(file), entry)
        yield inner, file
        yield from included(inner, file.parent)


def included_by_name(spec: GraphSpec, folder: Path) -> Iterator[tuple[str, GraphSpec]]:
    """Yield all included recipes by the full names of the agents that they stand for, such as `team/experts`."""
    for name, entry in spec.graphs.items():
        file = own_file(entry, folder)
        inner = with_inner_channels(read_spec(file), entry)
        yield name, inner
        for below, deeper in included_by_name(inner, file.parent):
            yield f"{name}/{below}", deeper


def inner_edges(spec: GraphSpec, folder: Path) -> Iterator[EdgeSpec]:
    """Yield the edges of all included recipes by full names, such as `team/reader` to `team/writer`."""
    for name, inner in included_by_name(spec, folder):
        for edge in inner.edges:
            ends = {"sender": f"{name}/{edge.sender}", "receiver": f"{name}/{edge.receiver}"}
            yield edge.model_copy(update=ends)


def answering(spec: GraphSpec, folder: Path) -> GraphSpec:
    """Find the recipe, this one or an included one, whose own agent writes the output of a checked recipe."""
    if spec.output not in spec.graphs:
        return spec
    file = own_file(spec.graphs[spec.output], folder)
    return answering(read_spec(file), file.parent)


def remembers(spec: GraphSpec, folder: Path) -> bool:
    """Whether any agent of a checked recipe, or of the recipes it includes, has a memory."""
    recipes = (spec, *(inner for inner, _ in included(spec, folder)))
    return any(agent.memory for recipe in recipes for agent in recipe.speakers.values())


def locate(path: Path, findings: Iterable[Finding]) -> list[Problem]:
    """Convert the findings in this recipe file to problems with line and column."""
    document = read_yaml(read_text(path).removeprefix("\ufeff"), str(path))
    return [_problem(finding, document) for finding in findings]


def _loader(permissions: Permissions) -> Load:
    """Return a loader that gives included recipes the outer recipe's permissions."""
    return lambda path, chain: load_recipe(
        path,
        allow_env=permissions.allow_env,
        allow_paths=permissions.allow_paths,
        allow_code=permissions.allow_code,
        allow_local=permissions.allow_local,
        known_models=permissions.known_models,
        chain=chain,
    )


def read_text(path: Path) -> str:
    """Read a recipe file. Raises RecipeError if it is unreadable or not UTF-8."""
    try:
        if not path.is_file():
            kind = "it is not a regular file" if path.exists() else "there is no such file"
            raise RecipeError(f"can't read the recipe {str(path)!r}: {kind}; check the path")
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "the path can't be used"
        raise RecipeError(f"can't read the recipe {str(path)!r}: {reason}") from error
    if len(raw) > MAX_BYTES:
        raise RecipeError(f"the recipe {str(path)!r} is larger than {MAX_BYTES // 1_000_000} MB; make it smaller")
    if other := _kind_of_file(raw):
        raise RecipeError([Problem(f"the file is {other[0]}", str(path), 1, 1, hint=other[1])])
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = BREAK.split(raw[: error.start].decode("utf-8", "replace"))
        message = f"the file is not UTF-8: byte 0x{raw[error.start]:02x} can't be read"
        problem = Problem(message, str(path), len(before), len(before[-1]) + 1, hint="save it as UTF-8")
        raise RecipeError([problem]) from error


def _kind_of_file(raw: bytes) -> tuple[str, str] | None:
    """What a file is that can't be a recipe, and what to do; None for text in UTF-8 or one of its relatives."""
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)) or _alternates(raw[:64]):
        return "UTF-16 or UTF-32, and a recipe is UTF-8", "save it as UTF-8"
    if b"\0" in raw:
        return "not text", "name a recipe, a YAML file"
    return None


def _alternates(start: bytes) -> bool:
    """Whether every second byte is zero, as in ASCII text of two bytes a character."""
    return len(start) > 3 and any(any(start[half::2]) and not any(start[1 - half :: 2]) for half in (0, 1))


def _problem(finding: Finding, document: Document) -> Problem:
    if finding.spot is None:
        return document.problem(finding.message, finding.path, finding.hint, finding.at_key)
    node, _ = document.find(finding.path)
    line, column = _inside(node, document, *finding.spot)
    return document.at(finding.message, line, column, finding.hint)


def _inside(node: YamlNode, document: Document, line: int, column: int) -> tuple[int, int]:
    """Map a 1-based line and column inside a text value to a 0-based line and column of the file."""
    if node.style == "|":
        written = document.lines[node.line + line] if node.line + line < len(document.lines) else ""
        said = str(node.value).split("\n")[line - 1 : line]
        indent = len(written) - len(said[0]) if said and written.endswith(said[0]) else 0
        return node.line + line, indent + column - 1
    # Quotes, escapes and folding shift characters: search for the word itself.
    lines = str(node.value).split("\n")
    rest = lines[line - 1][column - 1 :] if line <= len(lines) else ""
    before = "\n".join([*lines[: line - 1], lines[line - 1][: column - 1] if line <= len(lines) else ""])
    source = document.text[node.start : node.end]
    words = (rest[:24], rest[:24].split(" ")[0])
    at = next((_find(source, word, before.count(word)) for word in words if word and word in source), -1)
    if at < 0:
        return node.line, node.column
    above: list[Any] = BREAK.split(source[:at])
    return node.line + len(above) - 1, len(above[-1]) + (node.column if len(above) == 1 else 0)


def _find(source: str, word: str, earlier: int) -> int:
    """Where `word` stands in `source` after `earlier` others of it, else after as many as there are."""
    at = source.find(word)
    for _ in range(earlier):
        if (further := source.find(word, at + len(word))) < 0:
            break
        at = further
    return at


def _ordered(problems: list[Problem], name: str) -> list[Problem]:
    problems.sort(key=lambda problem: (problem.line, problem.column))
    if len(problems) > MAX_PROBLEMS:
        return [*problems[:MAX_PROBLEMS], Problem("more problems follow; mend these first", name)]
    return problems
