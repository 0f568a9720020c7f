"""cachegraph models check: what was compared, and what follows from it."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import config_of, save_model
from transformers import models as hf
from typer.testing import CliRunner

from cachegraph.cli.models import app
from cachegraph.errors import ConfigError


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["check", *arguments], catch_exceptions=False)


def test_comparisons_and_the_verdict_are_shown(tmp_path: Path) -> None:
    folder = save_model(config_of("llama"), tmp_path)
    shown = run(str(folder), "--dtype", "float32").stdout
    assert "a prompt in two pieces, and two tokens behind it" in shown
    assert "keys moved to position 492" in shown
    assert shown.endswith("cache edges: yes\nmoving its keys: yes\nkernels: no, the model is small\n")


def test_the_verdict_as_json_names_the_reason(tmp_path: Path) -> None:
    config = hf.bloom.BloomConfig(vocab_size=300, hidden_size=32, n_layer=2, n_head=4)
    verdict = json.loads(run(str(save_model(config, tmp_path)), "--dtype", "float32", "--json").stdout)
    assert verdict["why_no_cache"] == "'bloom' models compute attention in a way of their own"
    assert (verdict["device"], verdict["dtype"]) == ("cpu", "float32")
    assert all(set(each) == {"what", "error", "limit"} for each in verdict["compared"])


def test_an_unknown_dtype_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dtype can't be 'float64'"):
        run(str(tmp_path), "--dtype", "float64")
