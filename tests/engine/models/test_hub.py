"""Hub models, against a hub of a few lines on this machine: what is fetched, what is refused, what works offline."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import COMMIT, hub_environment, serve_hub
from warm import run_warm

PULL = """
import json, sys
from cachegraph.engine.catalogue import ensure
from cachegraph.engine.spec import ModelSpec
from cachegraph.errors import CachegraphError
seen = []
try:
    model = ensure(ModelSpec(source=sys.argv[1]), progress=lambda *step: seen.append(step))
    print(json.dumps([model.identity, str(model.folder), model.licence, seen[-1:]]))
except CachegraphError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def hub(tiny_folder: Path) -> Iterator[str]:
    model = {path.name: path.read_bytes() for path in tiny_folder.iterdir()}
    repos = {
        "org/tiny": model | {"pytorch_model.bin": b"pickle", "README.md": b"#"},
        "org/pickled": {"config.json": b"{}", "pytorch_model.bin": b"pickle"},
        "org/ggufs": {"x.gguf": b"GGUF"},
    }
    with serve_hub(repos) as (address, _):
        yield address


def ask(name: str, tmp_path: Path, **environment: str) -> str:
    variables = hub_environment(tmp_path, **environment)
    run = run_warm(PULL, name, env=variables)
    assert "Traceback" not in run.stderr
    return run.stdout.strip()


def test_a_hub_model_is_fetched_once_with_its_commit_and_is_then_found_offline(
    hub: str, tmp_path: Path, tiny_folder: Path
) -> None:
    identity, folder, licence, last = json.loads(ask("org/tiny", tmp_path, HF_ENDPOINT=hub))
    assert identity == f"org/tiny@{COMMIT}"
    assert licence == "mit"
    assert {path.name for path in Path(folder).iterdir()} == {path.name for path in tiny_folder.iterdir()}
    assert last[0][0] == "fetch"
    assert last[0][1] == sum(path.stat().st_size for path in tiny_folder.iterdir())

    again = json.loads(ask("org/tiny", tmp_path, HF_HUB_OFFLINE="1"))
    assert again == [identity, folder, licence, []]


def test_what_the_hub_s_own_cache_holds_is_used_when_the_hub_is_out_of_reach(hub: str, tmp_path: Path) -> None:
    first = json.loads(ask("org/tiny", tmp_path, HF_ENDPOINT=hub))
    other = {"CACHEGRAPH_HOME": str(tmp_path / "other")}
    assert json.loads(ask("org/tiny", tmp_path, HF_HUB_OFFLINE="1", **other))[:2] == first[:2]


def test_what_can_not_be_loaded_safely_is_refused_before_it_is_fetched(hub: str, tmp_path: Path) -> None:
    assert "has only pickled weights, which can run code" in ask("org/pickled", tmp_path, HF_ENDPOINT=hub)
    assert "has only GGUF files; download the one you want" in ask("org/ggufs", tmp_path, HF_ENDPOINT=hub)
    assert not list((tmp_path / "hf").rglob("*.bin"))


def test_an_unknown_repository_is_a_model_error_and_no_network_a_config_error(hub: str, tmp_path: Path) -> None:
    assert ask("org/none", tmp_path, HF_ENDPOINT=hub).startswith("ModelError the hub shows you no model 'org/none'")
    unreachable = ask("org/tiny", tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert unreachable.startswith("ConfigError the hub model 'org/tiny' can't be fetched")
    offline = ask("org/tiny", tmp_path, HF_HUB_OFFLINE="1")
    assert offline.startswith("ConfigError the hub model 'org/tiny' is not on this disk, and HF_HUB_OFFLINE forbids")
