"""The `data` part of a training recipe: where the examples are, and what each column holds."""

from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from cachegraph.engine.spec import Strict

__all__ = ["DataSpec"]

Source = Annotated[str, Field(min_length=1)]


class DataSpec(Strict):
    """Examples of files (JSON Lines, JSON, CSV), relative to the recipe, or of the hub (`owner/name:config@split`).

    Columns are named as in a graph's `evaluate`, which is the default: inputs, `choices`, `answer`, `references` (the
    response, where there are no choices). A chat in column `messages` or `conversations` gives the columns `prompt`
    (what the last reply answers; several messages in a row are joined), `history` (what was said before), `system` and
    `response`.
    """

    source: Source | tuple[Source, ...]
    columns: Annotated[
        dict[str, Source], Field(description="Column by input or role (choices, labels, answer, references, id).")
    ] = {}  # noqa: RUF012
    limit: Annotated[PositiveInt | None, Field(description="Examples of each source, drawn with `seed`.")] = None
    dev: Annotated[
        Source | tuple[Source, ...] | float,
        Field(description="Dev examples: sources of their own, or the fraction of the texts that is held back."),
    ] = 0.05
    seed: Annotated[
        NonNegativeInt, Field(description="Seed of the draw and of the dev split; independent of the training's.")
    ] = 0
    skip_bad: Annotated[bool, Field(description="Skip examples that can't be used, and count them.")] = False

    @field_validator("source", "dev")
    @classmethod
    def _names_rows(cls, value: object) -> object:
        if value == ():
            raise ValueError("the list is empty; name a file or a data set")
        if isinstance(value, float) and not 0 < value < 1:
            raise ValueError(f"a fraction of the texts must be between 0 and 1, not {value}")
        return value

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,) if isinstance(self.source, str) else self.source

    @property
    def dev_sources(self) -> tuple[str, ...]:
        """The dev sources; empty if dev examples are held back from the others."""
        if isinstance(self.dev, float):
            return ()
        return (self.dev,) if isinstance(self.dev, str) else self.dev
