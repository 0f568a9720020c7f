"""Pushing a fuser, against a hub of a few lines on this machine that takes uploads; and the model card it gets."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_hub import hub_environment, serve_hub
from huggingface_hub import ModelCard
from push_hub import COMMIT, PushHub, serve_push_hub
from warm import run_warm

from cachegraph.channels.fusers.files.card import Card, Geometry
from cachegraph.channels.fusers.files.weights import WEIGHTS, save_fuser
from cachegraph.channels.fusers.hub.readme import model_card
from cachegraph.channels.fusers.networks.create import new_fuser

PUSH = """
import sys
from pathlib import Path
from cachegraph.channels.fusers.hub.push import push_fuser
from cachegraph.errors import CachegraphError
try:
    print(push_fuser(Path(sys.argv[1]), sys.argv[2], private="private" in sys.argv[3:], quiet=True))
except CachegraphError as error:
    print(type(error).__name__, error)
"""
PULL = """
import sys
from cachegraph.channels.fusers.install import pull_fuser
from cachegraph.channels.fusers.inventory import describe
print(describe(pull_fuser(sys.argv[1], lambda *step: None)).card.sha256)
"""


@pytest.fixture
def hub() -> Iterator[PushHub]:
    with serve_push_hub() as hub:
        yield hub


@pytest.fixture
def card(tmp_path: Path) -> Card:
    """Of the fuser in tmp_path/f."""
    fuser = new_fuser(
        "c2c",
        Geometry(2, 1, 4),
        Geometry(2, 1, 4),
        names=("org/receiver", "sharer-of-ours"),
        card={"licence": "Apache-2.0", "metrics": {"accuracy": 0.625}},
        hidden_dim=8,
        intermediate_dim=8,
    )
    return save_fuser(fuser, tmp_path / "f")


def run(code: str, tmp_path: Path, *arguments: str, **environment: str) -> str:
    """In a process of its own: the hub's client reads its settings when it is imported."""
    variables = {"HF_TOKEN": "hf_secret"} | environment
    ended = run_warm(code, *arguments, env=hub_environment(tmp_path, **variables))
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    return ended.stdout.strip()


def push(tmp_path: Path, hub: PushHub, target: str = "hub:org/fusers/a", *more: str, **environment: str) -> str:
    return run(PUSH, tmp_path, str(tmp_path / "f"), target, *more, **{"HF_ENDPOINT": hub.address} | environment)


@pytest.mark.parametrize(("large", "without_xet"), [((), "0"), ((".safetensors",), "1")])
def test_a_pushed_fuser_is_one_commit_and_comes_back_by_its_name(
    hub: PushHub, card: Card, tmp_path: Path, large: tuple[str, ...], without_xet: str
) -> None:
    hub.large = large
    (tmp_path / "f" / "notes.txt").write_text("mine alone")
    assert push(tmp_path, hub, HF_HUB_DISABLE_XET=without_xet) == f"hub:org/fusers@{COMMIT}/a"
    assert sorted(hub.files) == ["a/README.md", "a/card.json", "a/fuser.safetensors"]
    assert bool(hub.stored) == bool(large)
    assert hub.commits == 1
    assert "Bearer hf_secret" in hub.tokens
    assert [(each["organization"], each["name"]) for each in hub.created] == [("org", "fusers")]
    with serve_hub({"org/fusers": hub.files}) as (address, _):
        assert run(PULL, tmp_path, "hub:org/fusers/a", HF_ENDPOINT=address) == card.sha256


def test_without_a_folder_the_repository_is_the_fuser_and_the_hub_judges_its_model_card(
    hub: PushHub, card: Card, tmp_path: Path
) -> None:
    hub.exists = hub.private = True
    assert push(tmp_path, hub, "hub:org/fusers", "private") == f"hub:org/fusers@{COMMIT}"
    assert sorted(hub.files) == ["README.md", "card.json", "fuser.safetensors"]
    assert hub.created[0]["visibility"] == "private"
    assert hub.checked == [hub.files["README.md"].decode()]


def test_private_never_ends_in_a_public_repository(hub: PushHub, card: Card, tmp_path: Path) -> None:
    hub.exists = True
    said = push(tmp_path, hub, "hub:org/fusers", "private")
    assert said.startswith("FuserError the hub repository 'org/fusers' is there already and public")
    assert hub.files == {}


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "ConfigError the hub doesn't know your token; log in again with: hf auth login"),
        (403, "ConfigError your token may not write to the hub repository 'org/fusers'"),
        (400, "ConfigError the hub refuses the push to the hub repository 'org/fusers' (no: the reason)"),
    ],
)
def test_a_no_of_the_hub_is_one_sentence_without_the_token(
    hub: PushHub, card: Card, tmp_path: Path, status: int, said: str
) -> None:
    hub.refuse = status
    answer = push(tmp_path, hub)
    assert answer.startswith(said)
    assert "\n" not in answer
    assert "hf_secret" not in answer
    assert hub.files == {}


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"HF_TOKEN": ""}, "needs a token that may write; log in with: hf auth login, or set HF_TOKEN"),
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE forbids it; unset it to push"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "check the network and the proxy, then try again"),
    ],
)
def test_without_token_or_network_it_is_a_matter_of_this_machine(
    hub: PushHub, card: Card, tmp_path: Path, environment: dict[str, str], said: str
) -> None:
    answer = push(tmp_path, hub, **environment)
    assert answer.startswith("ConfigError ")
    assert answer.endswith(said)
    assert hub.files == {}


def test_a_damaged_fuser_or_a_wrong_place_is_refused_before_the_hub_is_asked(
    hub: PushHub, card: Card, tmp_path: Path
) -> None:
    for target in ("hub:org", "org/fusers", "hub:org/fusers@main/a"):
        assert push(tmp_path, hub, target).startswith(f"FuserError {target!r} does not name a fuser's place on the hub")
    (tmp_path / "f" / WEIGHTS).write_bytes(b"x")
    assert "sha256 differs" in push(tmp_path, hub)
    assert hub.asked == []


def test_a_model_card_states_licence_base_models_and_metrics(card: Card) -> None:
    text = model_card(card, "hub:org/fusers/a", 1234)
    data: Any = ModelCard(text).data
    assert (data.license, data.base_model, data.library_name) == ("apache-2.0", ["org/receiver"], "cachegraph")
    assert "| `accuracy` | 0.625 |" in text
    assert "| sharer | `sharer-of-ours` |" in text
    assert "| parameters | `1,234` |" in text
    assert "fuser: hub:org/fusers/a\n" in text


def test_a_licence_unknown_to_the_hub_is_named_as_another_and_none_is_not_invented(card: Card) -> None:
    other: Any = ModelCard(model_card(card.model_copy(update={"licence": "Ours 1.0"}), "hub:a/b", 1)).data
    assert (other.license, other.license_name) == ("other", "Ours 1.0")
    none = model_card(card.model_copy(update={"licence": None, "metrics": {}}), "hub:a/b", 1)
    assert getattr(ModelCard(none).data, "license", None) is None
    assert none.count("None stated.") == 2


def test_a_card_s_words_stay_in_their_place_on_the_page(card: Card) -> None:
    hostile = "x`\n---\nlicense: mit\n| <script> | # y\x1b"
    changes = {"trained_on": hostile, "licence": hostile, "metrics": {hostile: 1.0}}
    text = model_card(card.model_copy(update=changes), "hub:a/b", 1)
    data: Any = ModelCard(text).data
    assert (data.license, data.license_name) == ("other", hostile)
    body = text.split("\n---\n", 1)[1]
    assert "\x1b" not in body
    assert "\nlicense" not in body
    assert "| trained on | `x' --- license: mit / <script> / # y\ufffd` |" in body
