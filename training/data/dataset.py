"""Training examples as text: read, checked and mapped to a graph's inputs as in a comparison, plus a response."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from cachegraph.errors import InputError
from cachegraph.graph.data.dataset import RawExample, data_place, read_rows
from cachegraph.graph.data.examples import make_examples, merge_mapping
from cachegraph.graph.recipe.evaluate_spec import EvaluateSpec
from cachegraph.graph.recipe.spec import GraphSpec

from .data_spec import DataSpec

__all__ = ["TrainingExample", "read_examples", "split_dev"]

SHOWN = 5
CHATS = ("messages", "conversations")
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
L = TypeVar("L")


class TrainingExample(BaseModel):
    """One example. `place` names it in errors. Without choices it has the response alone."""

    model_config = ConfigDict(frozen=True)

    place: str
    inputs: dict[str, str]
    response: str
    choices: tuple[str, ...] = ()
    answer: int | None = None


def read_examples(
    sources: Sequence[str],
    spec: DataSpec,
    graph: GraphSpec,
    folder: Path,
    skipped: Callable[[str], object] | None = None,
) -> list[TrainingExample]:
    """All examples of these sources. Raises InputError, which names row and column of a wrong value, or ConfigError.

    With `skip_bad`, skips examples that can't be used, and calls `skipped` with the problem of each.
    """
    return [example for source in sources for example in _source(source, spec, graph, folder, skipped)]


def split_dev(rows: Sequence[L], groups: Sequence[Hashable], part: float, seed: int) -> tuple[list[L], list[L]]:
    """Split into (train, dev): about this fraction of the groups, drawn by `seed`, goes to dev. Groups stay whole.

    Each part gets two groups or more if there are four, so that every example has a mismatched partner. Raises
    InputError if one of the two would be empty.
    """
    names = list(dict.fromkeys(groups))
    if not 0 < part < 1 or len(names) < 2:
        raise InputError(f"a part of {part} of {len(names)} texts can't be held back; give dev rows of their own")
    Random(f"{seed} dev").shuffle(names)  # noqa: S311
    least = min(2, len(names) // 2)
    count = min(max(round(part * len(names)), least), len(names) - least)
    place = {name: i for i, name in enumerate(names[:count])}
    train = [row for row, group in zip(rows, groups, strict=True) if group not in place]
    held = sorted((place[group], i) for i, group in enumerate(groups) if group in place)
    return train, [rows[i] for _, i in held]


def _source(
    source: str, spec: DataSpec, graph: GraphSpec, folder: Path, skipped: Callable[[str], object] | None
) -> list[TrainingExample]:
    rows = read_rows(data_place(source, folder), split="train")
    if spec.limit is not None and spec.limit < len(rows):
        kept = sorted(Random(f"{spec.seed} {source}").sample(range(len(rows)), spec.limit))  # noqa: S311
        rows = [rows[i] for i in kept]
    mapping = merge_mapping(graph.evaluate, spec.columns, list(graph.inputs))
    examples, problems = [], []
    for row in rows:
        try:
            examples.append(_example(_without_chat(row), spec, graph, mapping))
        except InputError as error:
            problems.append(str(error))
    if problems and not (spec.skip_bad and examples):
        more = f"\n(and {len(problems) - SHOWN} more rows)" if len(problems) > SHOWN else ""
        raise InputError("\n".join(problems[:SHOWN]) + more)
    if skipped is not None:
        for problem in problems:
            skipped(problem)
    return examples


def _example(row: RawExample, spec: DataSpec, graph: GraphSpec, mapping: EvaluateSpec) -> TrainingExample:
    if "references" not in spec.columns and "response" in row.values:
        mapping = mapping.model_copy(update={"references": "response"})
    (found,) = make_examples([row], graph, mapping)
    if not found.references or not found.references[0].strip():
        raise InputError(f"{row.place}: there is no response; name its column as `references`, or give choices")
    return TrainingExample(
        place=row.place,
        inputs=found.inputs,
        response=found.references[0],
        choices=found.choices or (),
        answer=found.answer,
    )


def _without_chat(row: RawExample) -> RawExample:
    """A chat as columns. Its last reply is the response."""
    column = next((name for name in CHATS if name in row.values), None)
    if column is None:
        return row
    turns = row.values[column]
    if not isinstance(turns, list | tuple) or not all(isinstance(turn, Mapping) for turn in turns):
        raise InputError(f"{row.place}: column {column!r} must hold a list of messages")
    said = [_turn(turn, row.place, column) for turn in turns]
    last = max((i for i, (role, _) in enumerate(said) if role == "assistant"), default=0)
    first = last
    while first and said[first - 1][0] == "user":
        first -= 1
    if first == last:
        raise InputError(f"{row.place}: column {column!r} has no reply to a user's message")
    prompt = "\n\n".join(text for _, text in said[first:last])
    history = "\n\n".join(f"{role}: {text}" for role, text in said[:first] if role != "system")
    system = "\n\n".join(text for role, text in said[:last] if role == "system")
    chat = {"prompt": prompt, "history": history, "system": system, "response": said[last][1]}
    return RawExample(row.place, {**row.values, **chat})


def _turn(turn: Mapping[str, Any], place: str, column: str) -> tuple[str, str]:
    role, text = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if not isinstance(role, str) or role not in ROLES:
        known = ", ".join(map(repr, ROLES))
        raise InputError(f"{place}: column {column!r} has a message of role {role!r}; the roles are {known}")
    if not isinstance(text, str):
        raise InputError(
            f"{place}: column {column!r} has a message of role {role!r} that holds no text but {text!r:.60}"
        )
    return ROLES[role], text
