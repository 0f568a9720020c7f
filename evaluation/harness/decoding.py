"""Convert a request's generation arguments, which are those of transformers, to a `GenerateSpec`."""

from collections.abc import Mapping
from typing import Any

from lm_eval.models.utils import normalize_gen_kwargs
from pydantic import ValidationError

from cachegraph.common.did_you_mean import suggest
from cachegraph.engine.spec import GenerateSpec
from cachegraph.errors import InputError

__all__ = ["MAX_GEN_TOKS", "generate_spec"]

MAX_GEN_TOKS = 256  # default of the harness's own models
SAME = ("top_p", "top_k", "min_p", "repetition_penalty", "min_new_tokens", "seed")


def generate_spec(recipe: GenerateSpec, arguments: Mapping[str, Any], seed: int) -> GenerateSpec:
    """Return the request's settings: length, stop strings and temperature from the task, the rest from the recipe.

    `seed` applies to a sampled reply if neither recipe nor task sets one. Raises InputError for unknown arguments.
    """
    asked: dict[str, Any] = dict(normalize_gen_kwargs(dict(arguments), MAX_GEN_TOKS))
    update = {
        "max_new_tokens": asked.pop("max_gen_toks"),
        "stop": tuple(dict.fromkeys(stop for stop in [*asked.pop("until"), *recipe.stop] if stop)),
        "temperature": asked.pop("temperature", 0.0),
    }
    if not asked.pop("do_sample"):
        update["temperature"] = 0.0
    for name in asked:
        if name not in SAME:
            raise InputError(f"the task asks for generation argument {name!r}{suggest(name, SAME)}; leave it out")
    if update["temperature"] and recipe.seed is None:
        update["seed"] = seed
    try:
        return GenerateSpec.model_validate({**recipe.model_dump(), **update, **asked})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise InputError(f"the task's generation argument {name!r} is wrong: {first['msg']}") from error
