"""Whole numbers in a request: JSON Schema takes 1.0 for one, and so do some clients."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

__all__ = ["Positive", "Whole"]


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
Positive = Annotated[int, Field(ge=1), BeforeValidator(_whole)]
