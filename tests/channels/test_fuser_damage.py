"""A damaged or hostile fuser folder, ours or a published one: a FuserError, never another library's error."""

import shutil
from pathlib import Path
from random import Random

import pytest
from damage import Tally, damage_file

from cachegraph.channels.fusers.files.card import Geometry, ModelEnd
from cachegraph.channels.fusers.files.load import load_fuser, load_ours, load_translator
from cachegraph.channels.fusers.files.verify import open_fuser
from cachegraph.channels.fusers.files.weights import save_fuser
from cachegraph.channels.fusers.inventory import describe
from cachegraph.channels.fusers.networks.create import new_fuser
from cachegraph.channels.fusers.networks.translator import new_translator
from cachegraph.errors import FuserError

CKPT = Path(__file__).parents[1] / "golden" / "ckpt"
RECEIVER, SHARER = Geometry(3, 2, 4), Geometry(2, 1, 6)


@pytest.fixture(params=["c2c", "lean", "translator", "published"])
def whole(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / "whole"
    match request.param:
        case "published":
            shutil.copytree(CKPT / "a", folder)
        case "translator":
            save_fuser(
                new_translator(
                    ModelEnd(name="r", geometry=RECEIVER), ModelEnd(name="s", geometry=SHARER), rank=4, hidden=4
                ),
                folder,
            )
        case "c2c":
            save_fuser(new_fuser("c2c", RECEIVER, SHARER, hidden_dim=8, intermediate_dim=12), folder)
        case "lean":
            save_fuser(new_fuser("lean", RECEIVER, SHARER, width=4), folder)
    return folder


def use(folder: Path) -> None:
    """All doors to a fuser's folder; the first error of them."""
    problems = []
    for work in (open_fuser, describe, load_fuser, load_ours, load_translator):
        try:
            work(folder)
        except FuserError as error:
            problems.append(error)
    if len(problems) > 1:  # one of the two kinds always refuses
        raise problems[0]


def test_whatever_is_damaged_is_told_in_our_words(whole: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    tally, seed = Tally(f"fuser folders ({request.node.callspec.id})", 1.0), 0
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    while tally.goes_on:
        seed += 1
        dice, target = Random(seed), tmp_path / str(seed)
        shutil.copytree(whole, target)
        damage_file(dice, target / dice.choice(files))
        tally.attempt(lambda: use(target))  # noqa: B023
        shutil.rmtree(target)
    tally.print()
    assert tally.refused
