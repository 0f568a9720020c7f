"""The `evaluate` section."""

from typing import Annotated

from pydantic import Field

from cachegraph.engine.spec import Strict

__all__ = ["EvaluateSpec"]

Column = Annotated[str, Field(min_length=1)]


class EvaluateSpec(Strict):
    """Columns by name; `a.b` is the field `b` of the value in column `a`. Unnamed columns keep their default names."""

    inputs: Annotated[
        dict[str, Column], Field(description="By input of the graph; without an entry, the column of the same name.")
    ] = {}  # noqa: RUF012 (pydantic copies it)
    choices: Annotated[Column | None, Field(description="The texts to choose from; usually 'choices'.")] = None
    labels: Annotated[Column | None, Field(description="What `answer` calls the choices, such as A, B, C.")] = None
    answer: Annotated[
        Column | None, Field(description="The right choice: its index from 0, its label or its text; usually 'answer'.")
    ] = None
    references: Annotated[
        Column | None, Field(description="Right replies, a text or a list of texts; without it, the right choice.")
    ] = None
    group: Annotated[
        Column | None,
        Field(description="Rows that are alike in it stand together in intervals: questions about one story."),
    ] = None
    id: Annotated[Column | None, Field(description="What the report calls a row; usually 'id'.")] = None
