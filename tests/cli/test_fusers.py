"""cachegraph fusers: what each command prints where, and the exit code it ends with."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cachegraph.channels.fusers.files.card import Geometry
from cachegraph.channels.fusers.files.weights import CARD, save_fuser
from cachegraph.channels.fusers.networks.create import new_fuser

from .conftest import Call, Ended, Spawn

CKPT = Path(__file__).parents[1] / "golden" / "ckpt"


@pytest.fixture
def lean(tmp_path: Path) -> Path:
    fuser = new_fuser(
        "lean",
        Geometry(2, 1, 4),
        Geometry(2, 1, 4),
        names=("org/receiver", "[bold]sharer\x1b[2J"),
        card={
            "receiver": {"name": "org/receiver", "identity": "abc123", "geometry": Geometry(2, 1, 4), "vocab": 50},
            "trained_on": "ten rows",
            "licence": "MIT",
            "metrics": {"accuracy": 0.75},
            "rope": "unrotated",
        },
        width=4,
    )
    save_fuser(fuser, tmp_path / "lean")
    return tmp_path / "lean"


def shipped(call: Call) -> list[dict[str, Any]]:
    """What the package brings, so that these tests do not depend on it."""
    return [each for each in json.loads(call("fusers", "list", "--json").out) if each["where"] == "shipped"]


def test_import_list_and_remove_tell_one_story(call: Call, lean: Path, tmp_path: Path) -> None:
    before = shipped(call)
    assert call("fusers", "import", lean) == (0, f"lean: {tmp_path / 'home' / 'fusers' / 'lean'}\n", "")
    first, *rest = json.loads(call("fusers", "list", "--json").out)
    assert rest == before
    size = sum(path.stat().st_size for path in lean.iterdir())
    assert first == {
        "name": "lean",
        "where": "installed",
        "folder": str(tmp_path / "home" / "fusers" / "lean"),
        "bytes": size,
        "receiver": "org/receiver",
        "sharer": "[bold]sharer\x1b[2J",
        "kind": "fuse",
        "architecture": "lean",
        "parameters": first["parameters"],
        "gates_open": 1.0,
        "problem": None,
    }
    assert json.loads(call("fusers", "remove", "lean", "--json").out) == {"name": "lean", "freed_bytes": size}
    assert shipped(call) == json.loads(call("fusers", "list", "--json").out) == before
    assert call("fusers", "remove", "lean").code == 1


def test_a_table_shows_a_stranger_s_words_as_they_are_but_for_commands_to_the_terminal(
    call: Call, lean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachegraph.channels.fusers.fuser_folder.files", lambda package: tmp_path)  # nothing ships
    call("fusers", "import", lean)
    for shown in (call("fusers", "list").out, call("fusers", "info", "lean").out):
        assert "[bold]sharer\ufffd[2J" in "".join(shown.split())
        assert "\x1b" not in shown


def test_a_damaged_fuser_is_listed_as_such_and_spoils_nothing(call: Call, lean: Path, tmp_path: Path) -> None:
    call("fusers", "import", lean)
    broken = Path(shutil.copytree(lean, tmp_path / "home" / "fusers" / "broken"))
    (broken / CARD).write_text("{")
    ended = call("fusers", "list")
    assert (ended.code, ended.err) == (0, "")
    assert "broken is damaged: " in ended.out
    assert "is not JSON" in ended.out
    assert "lean" in ended.out
    by_name = {each["name"]: each for each in json.loads(call("fusers", "list", "--json").out)}
    assert "is not JSON" in by_name["broken"]["problem"]
    assert by_name["broken"]["parameters"] is None
    info = call("fusers", "info", "broken")
    assert (info.code, info.out) == (1, "")
    assert info.err.startswith("cachegraph: ")
    assert info.err.count("\n") == 1


def test_info_shows_the_whole_card_by_name_or_path(call: Call, lean: Path) -> None:
    facts = json.loads(call("fusers", "info", lean, "--json").out)
    assert facts["card"] == json.loads((lean / CARD).read_text())
    assert (facts["gates_open"], facts["open_layers"]) == (1.0, [0, 1])
    assert facts["bytes"] == sum(path.stat().st_size for path in lean.iterdir())
    call("fusers", "import", lean)
    out = " ".join(call("fusers", "info", "lean").out.split())
    for shown in (
        "receiver weights abc123",
        "sharer weights unknown",
        "receiver cache 2 layers of 1 KV heads of 4",
        "receiver vocabulary 50",
        "architecture lean",
        "layers 0 ← 0, 1 ← 1",
        "keys unrotated",
        "trained on ten rows",
        "metrics accuracy 0.75",
        "licence MIT",
        "gates open 100.0%",
        f"parameters {facts['parameters']:,}",
    ):
        assert shown in out


def test_info_tells_which_layers_are_open(call: Call) -> None:
    assert "gates open 62.5%, in layers 0, 1, 3" in " ".join(call("fusers", "info", CKPT / "a").out.split())


def test_info_tells_how_far_a_fuser_reads_its_sharer_where_that_is_not_all(call: Call, lean: Path) -> None:
    assert "sharer depth" not in call("fusers", "info", lean).out
    card = json.loads((lean / CARD).read_text())
    depth = card["sharer"]["geometry"]["layers"]
    card["sharer"]["geometry"]["layers"] += 3
    (lean / CARD).write_text(json.dumps(card))
    shown = " ".join(call("fusers", "info", lean).out.split())
    assert f"sharer depth the first {depth} of {depth + 3} layers" in shown


def test_a_taken_name_is_code_1_and_goes_by_force_or_another_name(call: Call, lean: Path, tmp_path: Path) -> None:
    call("fusers", "import", lean)
    taken = call("fusers", "import", lean)
    assert (taken.code, taken.out) == (1, "")
    assert taken.err == "cachegraph: the fuser 'lean' is installed already; replace it with --force, or give --name\n"
    assert call("fusers", "import", lean, "--force").code == 0
    other = json.loads(call("fusers", "import", lean, "--name", "other", "--json").out)
    assert other == [{"name": "other", "folder": str(tmp_path / "home" / "fusers" / "other")}]


def test_export_writes_both_formats_and_says_what_has_none(call: Call, lean: Path, tmp_path: Path) -> None:
    for format in ("ours", "reference"):
        ended = call("fusers", "export", CKPT / "a", tmp_path / format, "--format", format)
        assert ended == (0, f"{CKPT / 'a'}: {tmp_path / format}\n", "")
        assert json.loads(call("fusers", "info", tmp_path / format, "--json").out)["parameters"] == 249112
    refused = call("fusers", "export", lean, tmp_path / "no", "--format", "reference")
    assert refused.code == 1
    assert refused.err.startswith("cachegraph: a 'lean' fuser has no published format")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["pull", "org/x"], 1, "'org/x' is not a fuser of the hub; write hub:ORGANISATION/NAME"),
        (["push", "LEAN", "org/x"], 1, "'org/x' does not name a fuser's place on the hub; write hub:ORGANISATION/NAME"),
        (["info", "none"], 1, "there is no fuser 'none'"),
        (["export", "none", "out"], 1, "there is no fuser 'none'"),
        (["import", "none"], 1, "there is no folder 'none'"),
    ],
)
def test_what_can_t_be_done_is_one_sentence(call: Call, lean: Path, arguments: list[str], code: int, said: str) -> None:
    assert_one_sentence(call("fusers", *(str(lean) if word == "LEAN" else word for word in arguments)), code, said)


def test_what_the_hub_does_not_give_is_one_sentence(spawn: Spawn, lean: Path) -> None:
    """In processes of their own: the hub's client reads its environment when it is imported."""
    pulled = spawn("fusers", "pull", "hub:org/x", HF_HUB_OFFLINE="1", HF_TOKEN="")
    assert_one_sentence(pulled, 3, "'org/x' is not on this disk, and HF_HUB_OFFLINE forbids to fetch it")
    pushed = spawn("fusers", "push", lean, "hub:org/x", HF_HUB_OFFLINE="1", HF_TOKEN="")
    assert_one_sentence(pushed, 3, "needs a token that may write; log in with: hf auth login")


def assert_one_sentence(ended: Ended, code: int, said: str) -> None:
    assert (ended.code, ended.out) == (code, "")
    assert ended.err.startswith("cachegraph: ")
    assert said in ended.err
    assert ended.err.count("\n") == 1
