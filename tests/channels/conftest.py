"""Tokenizers of the two demo models, which share nothing but the texts they read."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest

GOLDEN = Path(__file__).parents[1] / "golden"


class DemoTokenizers(NamedTuple):
    """transformers tokenizers, both with a chat template."""

    smollm2: Any
    gemma3: Any


@pytest.fixture(scope="session")
def demo_tokenizers() -> DemoTokenizers:
    from transformers import AutoTokenizer

    from cachegraph.engine.models import ensure
    from cachegraph.engine.spec import ModelSpec

    smollm2 = AutoTokenizer.from_pretrained(ensure(ModelSpec(source="smollm2-135m-instruct")).folder)
    gemma3 = AutoTokenizer.from_pretrained(ensure(ModelSpec(source="gemma-3-270m")).folder)
    gemma3.chat_template = (GOLDEN / "gemma_chat_template.jinja").read_text(encoding="utf-8")
    return DemoTokenizers(smollm2, gemma3)
