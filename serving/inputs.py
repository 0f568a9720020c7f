"""Map a conversation to a recipe's inputs."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cachegraph.graph.recipe.spec import InputSpec

from .errors import ApiError

__all__ = ["ChatTurn", "Given", "by_request", "choose_inputs"]

CONVERSATION = "messages"  # an input of this name and type list receives the whole conversation


class ChatTurn(NamedTuple):
    """One message of a conversation, as text."""

    role: str
    content: str


class Given(NamedTuple):
    """A run's inputs, and warnings of parts of the request that no agent receives."""

    inputs: dict[str, Any]
    warnings: list[str]


def choose_inputs(
    declared: Mapping[str, InputSpec], turns: Sequence[ChatTurn], given: Mapping[str, Any], most: int
) -> Given:
    """Combine the inputs given by name with the last user message as the recipe's default input.

    The default input is the only required input that is not given, or else the first text input that is not given.
    Raises ApiError if several required ones are missing, or if all texts together exceed `most` characters.
    """
    _check_length([*(turn.content for turn in turns), given], most)
    if not turns:
        return Given(dict(given), [])
    inputs, warnings = dict(given), list[str]()
    conversation = declared.get(CONVERSATION)
    if conversation is not None and conversation.kind == "list" and CONVERSATION not in inputs:
        inputs[CONVERSATION] = [turn._asdict() for turn in turns]
    takes_all = CONVERSATION in inputs and CONVERSATION not in given
    last = max((number for number, turn in enumerate(turns) if turn.role == "user"), default=None)
    name = _default(declared, inputs)
    if last is None:
        if name is not None and declared[name].is_required:
            words = f"there is no user message, and the input {name!r} is missing; add one, or {by_request([name])}"
            raise ApiError(400, words, "invalid_input")
    elif name is not None:
        inputs[name] = turns[last].content
    elif not takes_all and turns[last].content:
        warnings.append("the last user message reaches nobody: `inputs` gives every input of the recipe")
    others = len(turns) - (last is not None)
    if others and not takes_all:
        warnings.append(
            f"{others} other {'messages reach' if others > 1 else 'message reaches'} nobody: the recipe takes the last "
            f"user message; declare an input {CONVERSATION!r} of type 'list' for the whole conversation"
        )
    return Given(inputs, warnings)


def by_request(names: Sequence[str]) -> str:
    """The remedy for inputs that a request lacks."""
    shown = ", ".join(f"{json.dumps(name)}: ..." for name in names)
    return f'give {"it" if len(names) == 1 else "them"} by name, as {{"inputs": {{{shown}}}}}'


def _default(declared: Mapping[str, InputSpec], given: Mapping[str, Any]) -> str | None:
    missing = [name for name, spec in declared.items() if name not in given and spec.is_required]
    if len(missing) > 1:
        names = ", ".join(map(repr, missing))
        words = f"the recipe needs the inputs {names}; {by_request(missing)}"
        raise ApiError(400, words, "missing_inputs", "inputs")
    if missing:
        return missing[0]
    return next((name for name, spec in declared.items() if name not in given and spec.kind == "string"), None)


def _check_length(value: Any, most: int) -> None:
    total, todo = 0, [value]
    while todo:
        item = todo.pop()
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, dict | list):
            todo += [*item, *item.values()] if isinstance(item, dict) else item
    if total > most:
        words = f"messages and inputs have {total} characters, and this server takes at most {most}; shorten them"
        raise ApiError(400, words, "prompt_too_long")
