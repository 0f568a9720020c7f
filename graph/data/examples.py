"""Map a data set's columns to inputs and answers; every example is checked before the first run."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from pydantic import BaseModel, ConfigDict

from cachegraph.common.did_you_mean import suggest
from cachegraph.errors import InputError

from ..recipe.evaluate_spec import EvaluateSpec
from ..recipe.inputs import check_inputs
from ..recipe.spec import GraphSpec
from .dataset import RawExample

__all__ = ["SHOWN", "Example", "column_value", "data_hash", "is_blank", "make_examples", "merge_mapping"]

SHOWN = 5  # problems in one error
ROLES = ("choices", "labels", "answer", "references", "group", "id")


class Example(BaseModel):
    """One example. `index` is its 0-based row in the data; `references` are correct replies; examples of one `group`
    are statistically dependent."""

    model_config = ConfigDict(frozen=True)

    index: int
    id: str
    inputs: dict[str, Any]
    choices: tuple[str, ...] | None = None
    answer: int | None = None
    references: tuple[str, ...] = ()
    group: str | None = None


def merge_mapping(spec: EvaluateSpec | None, given: Mapping[str, str], inputs: Sequence[str]) -> EvaluateSpec:
    """Merge the caller's mapping over the recipe's: `input: column`, or one of the roles.

    Raises InputError for an unknown name, or one without a column.
    """
    spec = spec or EvaluateSpec()
    roles: dict[str, str] = {}
    columns = dict(spec.inputs)
    for name, column in given.items():
        if not column:
            raise InputError(f"the mapping of {name!r} names no column; write {name}=COLUMN")
        if name in inputs:
            columns[name] = column
        elif name in ROLES:
            roles[name] = column
        else:
            raise InputError(f"{name!r} is neither an input of the graph nor a role{suggest(name, [*inputs, *ROLES])}")
    return spec.model_copy(update={"inputs": columns, **roles})


def make_examples(rows: Sequence[RawExample], graph: GraphSpec, mapping: EvaluateSpec) -> list[Example]:
    """Make one example per row. Raises one InputError with the rows and columns of the first few problems."""
    examples, problems = [], []
    for index, row in enumerate(rows):
        try:
            examples.append(_example(index, row, graph, mapping))
        except InputError as error:
            problems.append(f"{row.place}: {error}")
    if problems:
        more = f"\n(and {len(problems) - SHOWN} more rows)" if len(problems) > SHOWN else ""
        raise InputError("\n".join(problems[:SHOWN]) + more)
    kinds = {(example.choices is None, not example.references) for example in examples}
    if len(kinds) > 1:
        odd = next(
            row
            for row, example in zip(rows, examples, strict=True)
            if example.choices is None or not example.references
        )
        raise InputError(f"{odd.place}: this row lacks choices or references that other rows have")
    return examples


def data_hash(examples: Sequence[Example]) -> str:
    """Hash all inputs and references, independent of their file."""
    text = json.dumps([example.model_dump() for example in examples], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _example(index: int, row: RawExample, graph: GraphSpec, mapping: EvaluateSpec) -> Example:
    values: dict[str, Any] = {}
    for name, declared in graph.inputs.items():
        column = mapping.inputs.get(name, name)
        if name in mapping.inputs or declared.default is None or column in row.values:
            values[name] = column_value(row, column, f"input {name!r}", name)
    choices = _choices(row, mapping)
    answer = _answer(row, mapping, choices) if choices is not None else None
    references = _references(row, mapping)
    if not references and choices is not None and answer is not None:
        references = (choices[answer],)
    name = _optional(row, mapping.id, "id")
    inputs = check_inputs(graph.inputs, values)
    return Example(
        index=index,
        id=str(name) if name is not None else str(index),
        inputs=inputs,
        choices=choices,
        answer=answer,
        references=references,
        group=_group(row, mapping.group),
    )


def column_value(row: RawExample, column: str, role: str, key: str = "") -> Any:
    """The value of a column; `a.b` is field b of column a. Raises InputError if the row has no such column.

    `key` is the name in `evaluate` that leads to another column.
    """
    if column in row.values:
        return row.values[column]
    value: Any = row.values
    for part in column.split("."):
        if not isinstance(value, Mapping) or part not in value:
            remedy = f"; name its column with --map {key}=COLUMN, or under 'evaluate' in the recipe" if key else ""
            raise InputError(f"there is no column {column!r} for {role}{suggest(column, map(str, row.values))}{remedy}")
        value = value[part]
    return value


def is_blank(value: Any) -> bool:
    """Whether a cell holds nothing to see: no value, not a number, or text without a visible character."""
    if isinstance(value, str):
        return not any(character.isprintable() and not character.isspace() for character in value)
    return value is None or value != value  # NaN, as tables write a missing cell


def _group(row: RawExample, column: str | None) -> str | None:
    if column is None:
        return None
    value = column_value(row, column, "the role 'group'", "group")
    if is_blank(value):
        raise InputError(f"column {column!r}, the role 'group', is empty; name a group in every row")
    return str(value)


def _optional(row: RawExample, column: str | None, usual: str) -> Any:
    if column is not None:
        return column_value(row, column, f"the role {usual!r}", usual)
    return row.values.get(usual)


def _list(value: Any, column: str) -> list[Any]:
    """Return a list; a CSV cell holds it as JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            value = None
    if not isinstance(value, list | tuple):
        raise InputError(f'column {column!r} must hold a list (in CSV: a JSON list, ["a", "b"])')
    return list(value)


def _choices(row: RawExample, mapping: EvaluateSpec) -> tuple[str, ...] | None:
    value = _optional(row, mapping.choices, "choices")
    if value is None and mapping.choices is None:
        return None
    column = mapping.choices or "choices"
    choices = _list(value, column)
    if len(choices) < 2:
        raise InputError(f"column {column!r} has {len(choices)} choices; a question needs two or more")
    for number, choice in enumerate(choices):
        if isinstance(choice, bool) or not isinstance(choice, str | int | float):
            raise InputError(f"column {column!r}: choice {number} is not text but {type(choice).__name__}")
        if not str(choice).strip():
            raise InputError(f"column {column!r}: choice {number} is empty")
    return tuple(map(str, choices))


def _answer(row: RawExample, mapping: EvaluateSpec, choices: Sequence[str]) -> int:
    column = mapping.answer or "answer"
    value = column_value(row, column, "the role 'answer'", "answer")
    if mapping.labels is not None:
        cell = column_value(row, mapping.labels, "the role 'labels'", "labels")
        labels = [str(label) for label in _list(cell, mapping.labels)]
        if len(labels) != len(choices) or labels.count(str(value)) != 1:
            raise InputError(f"column {column!r}: {value!r} is not one of the labels {labels!r} of the choices")
        return labels.index(str(value))
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InputError(f"column {column!r} must hold the right choice's index or text, not {value!r}")
    index = int(value) if isinstance(value, int) or value.strip().isdecimal() else None
    if isinstance(value, str) and choices.count(value) == 1:
        if index is not None and 0 <= index < len(choices) and choices[index] != value:
            raise InputError(f"column {column!r}: {value!r} may be an index or a choice; name a column of labels")
        return choices.index(value)
    if isinstance(value, str) and value in tuple(ascii_uppercase[: len(choices)]):
        return ascii_uppercase.index(value)
    if index is None:
        raise InputError(f"column {column!r}: {value!r} is neither an index nor one of the choices")
    if not 0 <= index < len(choices):
        raise InputError(
            f"column {column!r}: the answer {index} is out of range; the {len(choices)} choices count from 0"
        )
    return index


def _references(row: RawExample, mapping: EvaluateSpec) -> tuple[str, ...]:
    value = _optional(row, mapping.references, "references")
    column = mapping.references or "references"
    if value is None and mapping.references is None and "choices" not in row.values and mapping.choices is None:
        column = mapping.answer or "answer"
        value = _optional(row, mapping.answer, "answer")
    if value is None:
        if mapping.references is not None:
            raise InputError(f"column {column!r} holds no reference")
        return ()
    items = list(value) if isinstance(value, list | tuple) else [value]
    if not items or any(isinstance(item, bool) or not isinstance(item, str | int | float) for item in items):
        raise InputError(f"column {column!r} must hold a text or a list of texts")
    return tuple(map(str, items))
