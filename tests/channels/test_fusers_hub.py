"""Fusers of the hub, against a hub of a few lines on this machine: what is fetched, found again, and refused."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_hub import COMMIT, hub_environment, serve_hub

from cachegraph.channels.fusers.files.c2c_format import export_reference
from cachegraph.channels.fusers.files.card import Geometry
from cachegraph.channels.fusers.files.load import load_fuser
from cachegraph.channels.fusers.files.weights import save_fuser
from cachegraph.channels.fusers.hub.hub_name import HubFuser, parse_hub_fuser
from cachegraph.channels.fusers.layer_map import last_aligned
from cachegraph.channels.fusers.networks.create import new_fuser

FIND = """
import json, sys
from pathlib import Path
from cachegraph.channels.fusers.fuser_folder import find_fuser
from cachegraph.errors import CachegraphError
seen = []
try:
    folder = find_fuser(sys.argv[1], Path(), lambda *step: seen.append(step))
    print(json.dumps([str(folder), seen[-1:]]))
except CachegraphError as error:
    print(type(error).__name__, error)
assert "torch" not in sys.modules
"""
SMALL: dict[str, Any] = {"hidden_dim": 8, "intermediate_dim": 8}
QWEN3, QWEN25 = Geometry(28, 8, 128), Geometry(24, 2, 64)  # Qwen3-0.6B and Qwen2.5-0.5B
PAIR = "qwen3_0.6b+qwen2.5_0.5b_Fuser"


def contents(folder: Path, under: str) -> dict[str, bytes]:
    return {f"{under}{each.relative_to(folder)}": each.read_bytes() for each in folder.rglob("*") if each.is_file()}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "c2c"
    export_reference(new_fuser("c2c", QWEN3, QWEN25, names=("Qwen3", "Qwen2.5"), **SMALL), folder)
    return folder


@pytest.fixture
def hub(published: Path, tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    ours = tmp_path / "ours"
    save_fuser(new_fuser("c2c", Geometry(2, 1, 8), Geometry(2, 1, 8), **SMALL), ours)
    extra = {f"{PAIR}/final/optimizer.pt": b"state", f"{PAIR}/final/aggregator_0.pt": b"x", "README.md": b"#"}
    repos = {
        "org/fusers": contents(published, f"{PAIR}/") | contents(published, "other_Fuser/") | extra,
        "org/ours": contents(ours, ""),
        "org/model": {"config.json": b"{}", "model.safetensors": b"x"},
    }
    with serve_hub(repos) as found:
        yield found


def find(name: str, tmp_path: Path, **environment: str) -> str:
    variables = hub_environment(tmp_path, **environment)
    run = subprocess.run([sys.executable, "-c", FIND, name], env=variables, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_a_fuser_s_own_files_are_fetched_once_and_then_found_without_the_hub(
    hub: tuple[str, list[str]], tmp_path: Path, published: Path
) -> None:
    address, asked = hub
    folder, steps = json.loads(find(f"hub:org/fusers/{PAIR}", tmp_path, HF_ENDPOINT=address))
    assert contents(Path(folder), "") == contents(published, "")
    whole = sum(map(len, set(contents(published, "").values())))  # equal files are fetched once
    assert steps == [["fetch", whole, whole]]
    assert not list((tmp_path / "hf").rglob("other_Fuser"))
    assert load_fuser(folder).card == load_fuser(published).card
    asked.clear()
    assert json.loads(find(f"hub:org/fusers/{PAIR}", tmp_path, HF_ENDPOINT=address)) == [folder, []]
    assert json.loads(find(f"hub:org/fusers/{PAIR}", tmp_path, HF_HUB_OFFLINE="1")) == [folder, []]
    assert asked == []


def test_the_folder_with_the_weights_may_be_named_itself_and_brings_its_training_s_settings(
    hub: tuple[str, list[str]], tmp_path: Path, published: Path
) -> None:
    folder, _ = json.loads(find(f"hub:org/fusers@{COMMIT}/{PAIR}/final", tmp_path, HF_ENDPOINT=hub[0]))
    assert Path(folder).name == "final"
    assert load_fuser(folder).card.receiver.name == load_fuser(published).card.receiver.name == "Qwen3"


def test_a_repository_may_be_a_fuser_of_our_format(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    folder, _ = json.loads(find("hub:org/ours", tmp_path, HF_ENDPOINT=hub[0]))
    assert load_fuser(folder).card.architecture == "c2c"


def test_an_interrupted_fetch_is_completed_with_the_hub_and_refused_without_it(
    hub: tuple[str, list[str]], tmp_path: Path
) -> None:
    folder, _ = json.loads(find(f"hub:org/fusers/{PAIR}", tmp_path, HF_ENDPOINT=hub[0]))
    lost = Path(folder) / "final" / "projector_27.pt"
    lost.resolve().unlink()
    lost.unlink()
    assert find(f"hub:org/fusers/{PAIR}", tmp_path, HF_HUB_OFFLINE="1").startswith("ConfigError the hub fuser")
    assert json.loads(find(f"hub:org/fusers/{PAIR}", tmp_path, HF_ENDPOINT=hub[0]))[0] == folder
    assert lost.is_file()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hub:org/fusers/qwen3_0.6b+qwen2.5_0.5b", f"it has 'hub:org/fusers/{PAIR}'"),
        ("hub:org/fusers", f"holds no fuser in '/'; it has 'hub:org/fusers/other_Fuser', 'hub:org/fusers/{PAIR}'"),
        ("hub:org/model", "holds no fuser: neither a card.json nor a projector_config.json"),
        ("hub:org/none/x", "the hub shows you no fuser repository 'org/none'; check the name"),
        ("hub:org/fusers@v9/x", "the hub fuser repository 'org/fusers' has no revision 'v9'"),
        ("hub:org/../x", "'hub:org/../x' is not a fuser of the hub; write hub:ORGANISATION/NAME"),
    ],
)
def test_what_the_hub_does_not_have_is_said_in_one_sentence(
    hub: tuple[str, list[str]], tmp_path: Path, name: str, said: str
) -> None:
    answer = find(name, tmp_path, HF_ENDPOINT=hub[0])
    assert answer.startswith("FuserError ")
    assert said in answer
    assert "\n" not in answer


@pytest.mark.parametrize("environment", [{"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}])
def test_no_network_is_a_matter_of_this_machine(tmp_path: Path, environment: dict[str, str]) -> None:
    answer = find(f"hub:org/fusers/{PAIR}", tmp_path, **environment)
    assert answer.startswith("ConfigError the hub fuser repository 'org/fusers'")
    assert "\n" not in answer


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("hub:a/b", HubFuser("a/b", None, "")),
        ("hub:a/b/c+d/final", HubFuser("a/b", None, "c+d/final")),
        ("hub:a/b@main/c", HubFuser("a/b", "main", "c")),
        ("hub:a/b@v1", HubFuser("a/b", "v1", "")),
        *[
            (name, None)
            for name in ("hub:", "hub:a", "hub:a/b/", "hub:/a/b", "hub:a/b/../c", "hub:a/b/.", "hub:a/b@/c")
        ],
        *[(name, None) for name in ("hub:a/b/c*", "hub:a/b/[c]", "hub:a/b\n", "a/b", "hub:a/b/c\\d", "hub:a/b/~/x")],
    ],
)
def test_a_name_of_the_hub_has_one_form(name: str, parsed: HubFuser | None) -> None:
    assert parse_hub_fuser(name) == parsed


def test_the_depth_of_qwen3_and_qwen2_5_is_read_off_the_published_layer_map(published: Path) -> None:
    config = json.loads((published / "final" / "projector_config.json").read_text())
    assert len(config["0"]["1"]) == 28
    card = load_fuser(published).card
    assert card.layer_map == last_aligned(28, 24)
    assert card.layer_map[-1] == (27, 23)
    assert (card.receiver.geometry, card.sharer.geometry) == (QWEN3, QWEN25)
