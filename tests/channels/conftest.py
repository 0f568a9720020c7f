"""Tokenizers of the two demo models, which share nothing but the texts they read."""

from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

import pytest

GOLDEN = Path(__file__).parents[1] / "golden"


class DemoTokenizers(NamedTuple):
    """transformers tokenizers, both with a chat template."""

    smollm2: Any
    gemma3: Any


@pytest.fixture(scope="session")
def demo_tokenizers(demo_engines: dict[str, Any]) -> DemoTokenizers:
    smollm2, gemma3 = (
        copy(demo_engines[name].model.tokenizer.raw) for name in ("smollm2-135m-instruct", "gemma-3-270m")
    )
    gemma3.chat_template = (GOLDEN / "gemma_chat_template.jinja").read_text(encoding="utf-8")
    return DemoTokenizers(smollm2, gemma3)
