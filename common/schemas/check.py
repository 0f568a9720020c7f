"""Mismatches between a value and a JSON Schema. The registry is empty: checks fetch nothing and read no file."""

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from .budget import MAX_STEPS, TooMuchWork, check_budget
from .keywords import MATCHES, validator_class

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ["Mismatch", "TextReader", "draft_of", "find_mismatch", "new_validator"]

DEFAULT = "https://json-schema.org/draft/2020-12/schema"
TOO_MUCH = f"it takes more than {MAX_STEPS:,} steps to check; shorten it, or simplify the schema"


class Mismatch(NamedTuple):
    """A problem in a value, and its JSON path."""

    message: str
    place: str = "$"


class TextReader(Protocol):
    """Checks patterns and formats instead of this package, in linear time."""

    def fits_pattern(self, pattern: str, text: str) -> bool:
        """Whether the pattern matches anywhere in the text."""

    def fits_format(self, name: str, text: str) -> bool:
        """Whether the text has the format."""


class _Formats:
    """Format checker interface of jsonschema."""

    def __init__(self, reader: TextReader):
        self._reader = reader

    def check(self, instance: Any, name: str) -> None:
        from jsonschema.exceptions import FormatError

        if isinstance(instance, str) and not self._reader.fits_format(name, instance):
            raise FormatError(f"{instance[:200]!r} is not a {name!r}")


def find_mismatch(schema: Any, value: Any, *, reader: TextReader | None = None) -> Mismatch | None:
    """Find the most relevant mismatch between a JSON value and a schema; None if it conforms.

    `reader` checks patterns and `format`; without one, `format` is ignored. `find_schema_flaw` must have found nothing
    in the schema. Raises TooMuchWork if the check's group is over.
    """
    from jsonschema.exceptions import best_match

    matches = MATCHES.set(reader.fits_pattern if reader else None)
    try:
        with check_budget() as group:
            try:
                problem = best_match(_validator(json.dumps(schema), cast("Hashable", reader)).iter_errors(value))
            except TooMuchWork:
                if group is not None and group.is_over:
                    raise
                return Mismatch(TOO_MUCH)
    except TooMuchWork:
        raise
    except RecursionError:
        return Mismatch("it is nested too deeply for its schema to be checked; make it flatter")
    except Exception as error:  # the schema was never checked, so any library error concerns it
        return Mismatch(f"its schema can't be used: {' '.join(str(error).split())[:200]}")
    finally:
        MATCHES.reset(matches)
    return None if problem is None else Mismatch(problem.message, problem.json_path)


def new_validator(schema: Any, draft: Any, reader: TextReader | None = None) -> Any:
    """Create a validator of the draft with a work budget and no access to other schemas."""
    from referencing import Registry

    formats = None if reader is None else _Formats(reader)
    return validator_class(draft)(schema, registry=Registry(), format_checker=formats)


def draft_of(schema: Any) -> Any:
    """Return the draft that `$schema` names; 2020-12 by default, None if unknown."""
    named = schema.get("$schema", DEFAULT) if isinstance(schema, dict) else DEFAULT
    return _drafts().get(named.removesuffix("#")) if isinstance(named, str) else None


@lru_cache(maxsize=1)
def _drafts() -> dict[str, Any]:
    import jsonschema as js

    drafts: tuple[Any, ...] = (
        *(js.Draft4Validator, js.Draft6Validator, js.Draft7Validator),
        *(js.Draft201909Validator, js.Draft202012Validator),
    )
    return {str(draft.ID_OF(draft.META_SCHEMA)).removesuffix("#"): draft for draft in drafts}


@lru_cache(maxsize=64)
def _validator(schema: str, reader: Any) -> Any:
    read = json.loads(schema)
    return new_validator(read, draft_of(read) or _drafts()[DEFAULT], reader)
