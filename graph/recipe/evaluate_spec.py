"""The `evaluate` section."""

from typing import Annotated

from pydantic import Field

from cachegraph.engine.spec import Strict

__all__ = ["EvaluateSpec"]

Column = Annotated[str, Field(min_length=1)]


class EvaluateSpec(Strict):
    """Columns by name; `a.b` is the field `b` of the value in column `a`. Unnamed columns keep their default names."""

    inputs: Annotated[
        dict[str, Column], Field(description="Column per input of the graph; by default the column of the same name.")
    ] = {}  # noqa: RUF012 (pydantic copies it)
    choices: Annotated[Column | None, Field(description="Column with the list of choices; usually 'choices'.")] = None
    labels: Annotated[
        Column | None, Field(description="Column with the labels by which `answer` names the choices, such as A, B, C.")
    ] = None
    answer: Annotated[
        Column | None,
        Field(description="Column with the right choice: its index from 0, its label or its text; usually 'answer'."),
    ] = None
    references: Annotated[
        Column | None,
        Field(description="Column with the right replies, a text or a list of texts; by default the right choice."),
    ] = None
    group: Annotated[
        Column | None,
        Field(
            description="Column whose equal values form one cluster in intervals, such as questions about one story."
        ),
    ] = None
    id: Annotated[Column | None, Field(description="Column with the name of an example in reports; usually 'id'.")] = (
        None
    )
