"""The shelf of installed fusers: what is on it, what is let onto it, and what leaves it."""

import json
import os
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cachegraph.channels.fusers.files.c2c_format import load_reference
from cachegraph.channels.fusers.files.card import Geometry, ModelEnd
from cachegraph.channels.fusers.files.load import load_fuser
from cachegraph.channels.fusers.files.verify import open_fuser
from cachegraph.channels.fusers.files.weights import CARD, WEIGHTS, read_card, save_fuser
from cachegraph.channels.fusers.fuser_folder import find_fuser, fuser_names
from cachegraph.channels.fusers.install import export_fuser, import_fusers
from cachegraph.channels.fusers.inventory import describe, inventory, locate, remove_fuser
from cachegraph.channels.fusers.networks.base import Fuser
from cachegraph.channels.fusers.networks.create import new_fuser
from cachegraph.channels.fusers.networks.translator import new_translator
from cachegraph.errors import FuserError

CKPT = Path(__file__).parents[1] / "golden" / "ckpt"
GEOMETRY = Geometry(2, 1, 4)


def small(seed: int = 0, architecture: str = "c2c", **card: Any) -> Fuser:
    sizes: dict[str, Any] = {"width": 4} if architecture == "lean" else {"hidden_dim": 8, "intermediate_dim": 8}
    return new_fuser(architecture, GEOMETRY, GEOMETRY, seed=seed, card=card, **sizes)


def same_weights(one: Fuser, other: Fuser) -> bool:
    return all(
        torch.equal(tensor, other.projectors[layer].state_dict()[name])
        for layer, _, projector in one
        for name, tensor in projector.state_dict().items()
    )


@pytest.fixture(autouse=True)
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The installed fusers' folder; nothing ships, unless a test says so."""
    monkeypatch.setenv("CACHEGRAPH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("cachegraph.channels.fusers.fuser_folder.files", lambda package: tmp_path / package)
    return tmp_path / "home" / "fusers"


@pytest.fixture
def shipped(tmp_path: Path, shelf: Path) -> Path:
    """A package that ships one fuser."""
    folder = tmp_path / "cachegraph" / "recipes" / "fusers" / "ours"
    save_fuser(small(), folder)
    return folder


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A fuser's folder as a stranger hands it over."""
    save_fuser(small(seed=7, licence="MIT", metrics={"accuracy": 0.5}), tmp_path / "given")
    return tmp_path / "given"


@pytest.fixture
def two_sharers(tmp_path: Path) -> Path:
    """A published folder whose two sharers have the weights of ckpt/a and, in another order, the same again."""
    folder = Path(shutil.copytree(CKPT / "a", tmp_path / "pair"))
    path = folder / "final" / "projector_config.json"
    config = json.loads(path.read_text())
    layers = config["0"]["1"]
    config["0"]["2"] = {layer: [[pair[0][0], 3 - pair[0][1]]] for layer, pair in layers.items()}
    path.write_text(json.dumps(config))
    return folder


class TestInventory:
    def test_an_empty_shelf_holds_nothing(self, shipped: Path) -> None:
        shutil.rmtree(shipped)
        assert inventory() == []

    def test_it_shows_installed_then_shipped_fusers_and_translators(self, shelf: Path, shipped: Path) -> None:
        end = ModelEnd(name="a model", geometry=GEOMETRY)
        save_fuser(new_translator(end, end, rank=3, hidden=2), shelf / "graft")
        save_fuser(small(architecture="lean", rope="unrotated"), shelf / "lean")
        graft, lean, ours = inventory()
        assert [(each.name, each.where) for each in (graft, lean, ours)] == [
            ("graft", "installed"),
            ("lean", "installed"),
            ("ours", "shipped"),
        ]
        assert graft.facts is not None
        assert lean.facts is not None
        assert (graft.facts.card.kind, graft.facts.gates_open, graft.facts.open_layers) == ("graft", None, None)
        assert (lean.facts.card.architecture, lean.facts.gates_open, lean.facts.open_layers) == ("lean", 1.0, (0, 1))
        assert lean.facts.parameters == sum(
            p.numel() for _, _, each in load_fuser(shelf / "lean") for p in each.parameters()
        )
        assert lean.bytes == sum((shelf / "lean" / name).stat().st_size for name in (CARD, WEIGHTS))

    def test_what_an_interrupted_save_left_is_no_fuser(self, shelf: Path) -> None:
        (shelf / ".half-x1").mkdir(parents=True)
        assert fuser_names() == []
        assert inventory() == []

    def test_a_damaged_fuser_is_listed_with_its_reason_beside_the_others(self, shelf: Path) -> None:
        for name in ("cardless", "good", "weightless"):
            save_fuser(small(), shelf / name)
        (shelf / "cardless" / CARD).unlink()
        (shelf / "weightless" / WEIGHTS).unlink()
        (shelf / "empty").mkdir()
        problems = {each.name: each.problem for each in inventory()}
        assert problems.pop("good") is None
        assert "lacks" in str(problems["cardless"])
        assert CARD in str(problems["cardless"])
        assert WEIGHTS in str(problems["weightless"])
        assert "holds no 'projector_config.json'" in str(problems["empty"])

    def test_a_layer_map_that_can_t_be_is_a_problem_not_a_crash(self, shelf: Path) -> None:
        save_fuser(small(), shelf / "f")
        card = json.loads((shelf / "f" / CARD).read_text())
        (shelf / "f" / CARD).write_text(json.dumps(card | {"layer_map": [[0, 0], [0, 1]]}))
        (item,) = inventory()
        assert "receiver layer 0" in str(item.problem)


class TestLocate:
    def test_a_path_above_this_folder_is_as_good_as_a_name(
        self, outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        assert locate("../given").resolve() == outside
        import_fusers(outside, "named")
        assert locate("named") == find_fuser("named", tmp_path)

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("hub:org/x", "'hub:org/x' is not on this disk; fetch it with: cachegraph fusers pull hub:org/x"),
            ("hub:org", "not a fuser of the hub; write hub:ORGANISATION/NAME"),
            ("nothing", "there is no fuser 'nothing'"),
        ],
    )
    def test_what_is_not_there_is_said_with_a_remedy(self, name: str, said: str) -> None:
        with pytest.raises(FuserError, match=said):
            locate(name)


class TestImport:
    def test_our_folder_keeps_its_weights_and_its_card(self, outside: Path, shelf: Path) -> None:
        assert import_fusers(outside) == [shelf / "given"]
        assert read_card(shelf / "given") == read_card(outside)
        assert same_weights(load_fuser(outside), load_fuser(shelf / "given"))

    @pytest.mark.parametrize("inside", ["", "final"])
    def test_a_published_folder_becomes_ours_under_its_own_name(self, shelf: Path, inside: str) -> None:
        assert import_fusers(CKPT / "a" / inside) == [shelf / "a"]
        assert sorted(path.name for path in (shelf / "a").iterdir()) == [CARD, WEIGHTS]
        assert same_weights(load_fuser(CKPT / "a"), load_fuser(shelf / "a"))

    def test_several_sharers_become_a_fuser_each(self, two_sharers: Path, shelf: Path) -> None:
        assert [path.name for path in import_fusers(two_sharers)] == ["pair--sharer-1", "pair--sharer-2"]
        for name, fuser in zip(("pair--sharer-1", "pair--sharer-2"), load_reference(two_sharers), strict=True):
            assert same_weights(fuser, load_fuser(shelf / name))
        assert not same_weights(load_fuser(shelf / "pair--sharer-1"), load_fuser(shelf / "pair--sharer-2"))
        with pytest.raises(FuserError, match="joins 2 sharers to one receiver; make a fuser of each with"):
            open_fuser(two_sharers)

    def test_one_taken_name_of_several_leaves_the_shelf_as_it_was(self, two_sharers: Path, shelf: Path) -> None:
        save_fuser(small(), shelf / "x--sharer-2")
        with pytest.raises(FuserError, match="'x--sharer-2' is installed already; replace it with --force"):
            import_fusers(two_sharers, "x")
        assert fuser_names() == ["x--sharer-2"]

    def test_a_taken_name_is_replaced_only_by_force(self, outside: Path, shelf: Path) -> None:
        save_fuser(small(seed=1), shelf / "given")
        with pytest.raises(FuserError, match="installed already"):
            import_fusers(outside)
        assert same_weights(load_fuser(shelf / "given"), small(seed=1))
        import_fusers(outside, force=True)
        assert same_weights(load_fuser(shelf / "given"), load_fuser(outside))

    def test_a_shipped_name_is_not_taken_over_silently(self, outside: Path, shelf: Path, shipped: Path) -> None:
        with pytest.raises(FuserError, match="'ours' is a fuser that ships"):
            import_fusers(outside, "ours")
        import_fusers(outside, "ours", force=True)
        assert find_fuser("ours", outside) == shelf / "ours"

    @pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "hub:x", "a b", "-x", "x\n", "é", "x" * 300])
    def test_a_name_that_would_not_be_found_again_is_refused(self, outside: Path, shelf: Path, name: str) -> None:
        with pytest.raises(FuserError, match="can't be a fuser's name"):
            import_fusers(outside, name)
        assert not shelf.exists()

    def test_a_missing_folder_is_said(self, tmp_path: Path) -> None:
        with pytest.raises(FuserError, match="there is no folder"):
            import_fusers(tmp_path / "none")


def not_a_number(folder: Path) -> None:
    """With a card that vouches for it."""
    tensors = load_file(folder / WEIGHTS)
    tensors["layers.0.key_in.weight"][0, 0] = float("nan")
    save_file(tensors, folder / WEIGHTS)
    card = json.loads((folder / CARD).read_text())
    card["sha256"] = sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    (folder / CARD).write_text(json.dumps(card))


def huge_shapes(folder: Path) -> None:
    card = json.loads((folder / CARD).read_text())
    card["receiver"]["geometry"] = card["sharer"]["geometry"] = {"layers": 4096, "kv_heads": 4096, "head_dim": 65536}
    card["params"] = {"hidden_dim": 1 << 20, "intermediate_dim": 1 << 20}
    (folder / CARD).write_text(json.dumps(card))


def link_out(folder: Path) -> None:
    secret = folder.parent / "secret.safetensors"
    shutil.move(folder / WEIGHTS, secret)
    (folder / WEIGHTS).symlink_to(secret)


def pipe(folder: Path) -> None:
    (folder / CARD).unlink()
    os.mkfifo(folder / CARD)


def loop(folder: Path) -> None:
    (folder / CARD).unlink()
    (folder / CARD).symlink_to(CARD)


def nan_metric(folder: Path) -> None:
    card = json.loads((folder / CARD).read_text()) | {"metrics": {"accuracy": float("nan")}}
    (folder / CARD).write_text(json.dumps(card))


class TestHostileFolders:
    @pytest.mark.parametrize(
        ("harm", "said"),
        [
            (not_a_number, "holds NaN or infinity"),
            (huge_shapes, "damaged or of another architecture|but its description says"),
            (link_out, r"leads out of its folder, to '.*secret.safetensors'; put the file itself there"),
            (pipe, "is not a regular file"),
            (loop, "is a link that leads nowhere|can't be read"),
            (nan_metric, "wrong at 'metrics.accuracy'"),
            (lambda folder: (folder / CARD).write_text("{broken"), "is not JSON"),
            (lambda folder: (folder / WEIGHTS).write_bytes(b"\x80\x04."), "sha256 differs"),
        ],
    )
    def test_nothing_is_installed_and_the_reason_is_said(
        self, outside: Path, shelf: Path, harm: Callable[[Path], object], said: str
    ) -> None:
        harm(outside)
        with pytest.raises(FuserError, match=said):
            import_fusers(outside)
        assert not shelf.exists()

    def test_a_published_pickle_that_runs_code_is_not_run(self, tmp_path: Path, shelf: Path) -> None:
        class Evil:
            def __reduce__(self) -> tuple[Any, ...]:
                return os.mkdir, (str(tmp_path / "ran"),)

        folder = Path(shutil.copytree(CKPT / "a", tmp_path / "evil"))
        torch.save({"x": Evil()}, folder / "final" / "projector_0.pt")
        with pytest.raises(FuserError, match="a pickle that may run code is never loaded"):
            import_fusers(folder)
        assert not (tmp_path / "ran").exists()
        assert not shelf.exists()

    def test_a_published_folder_whose_weights_are_linked_from_elsewhere_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "evil").mkdir()
        (tmp_path / "evil" / "final").symlink_to(CKPT / "a" / "final")
        with pytest.raises(FuserError, match="leads out of its folder"):
            import_fusers(tmp_path / "evil")

    def test_the_links_of_the_hub_s_cache_and_a_linked_folder_are_fine(self, outside: Path, tmp_path: Path) -> None:
        repo = tmp_path / "models--org--x"
        (repo / "snapshots" / "abc").mkdir(parents=True)
        shutil.move(outside, repo / "blobs")
        for name in (CARD, WEIGHTS):
            (repo / "snapshots" / "abc" / name).symlink_to(Path("..", "..", "blobs", name))
        assert describe(repo / "snapshots" / "abc").card.licence == "MIT"
        (tmp_path / "link").symlink_to(repo / "blobs")
        assert describe(tmp_path / "link").card.licence == "MIT"


class TestExport:
    def test_each_format_comes_back_as_the_same_fuser(self, tmp_path: Path) -> None:
        for form in ("ours", "reference"):
            export_fuser(CKPT / "a", tmp_path / form, form)
            assert same_weights(load_fuser(CKPT / "a"), load_fuser(tmp_path / form))
        assert (tmp_path / "ours" / CARD).is_file()
        assert (tmp_path / "reference" / "final" / "projector_config.json").is_file()

    @pytest.mark.parametrize(
        ("fuser", "said"),
        [
            (small(architecture="lean", rope="unrotated"), "only 'c2c' can be exported"),
            (small(rope="unrotated"), "can't state rope 'unrotated'"),
            (small(reads="own-prompt"), "can't state reads 'own-prompt'"),
            (small(alignment="offsets"), "can't state alignment 'offsets'"),
            (
                new_translator(*[ModelEnd(name="m", geometry=GEOMETRY)] * 2, rank=2, hidden=2),
                "a translator, which has no published format",
            ),
        ],
    )
    def test_what_the_published_format_can_t_state_is_not_written_in_it(
        self, tmp_path: Path, fuser: Fuser, said: str
    ) -> None:
        save_fuser(fuser, tmp_path / "f")
        with pytest.raises(FuserError, match=said):
            export_fuser(tmp_path / "f", tmp_path / "out", "reference")
        assert not (tmp_path / "out").exists()
        export_fuser(tmp_path / "f", tmp_path / "out")
        assert read_card(tmp_path / "out") == read_card(tmp_path / "f")

    def test_what_is_there_is_not_overwritten(self, tmp_path: Path, outside: Path) -> None:
        before = (outside / CARD).read_text()
        with pytest.raises(FuserError, match="is there already and not empty"):
            export_fuser(CKPT / "a", outside)
        assert (outside / CARD).read_text() == before


class TestRemove:
    def test_only_the_named_fuser_goes(self, outside: Path, shelf: Path) -> None:
        import_fusers(outside, "one")
        import_fusers(outside, "two")
        size = sum(path.stat().st_size for path in (shelf / "one").iterdir())
        assert remove_fuser("one") == size
        assert fuser_names() == ["two"]

    def test_a_damaged_fuser_can_be_removed(self, shelf: Path) -> None:
        (shelf / "broken").mkdir(parents=True)
        (shelf / "broken" / CARD).write_text("{")
        remove_fuser("broken")
        assert fuser_names() == []

    def test_of_a_linked_fuser_only_the_link_goes(self, outside: Path, shelf: Path) -> None:
        shelf.mkdir(parents=True)
        (shelf / "linked").symlink_to(outside)
        assert remove_fuser("linked") == 0
        assert fuser_names() == []
        assert (outside / WEIGHTS).is_file()

    def test_what_is_not_on_the_shelf_stays(self, outside: Path, shelf: Path, shipped: Path) -> None:
        import_fusers(outside, "mine")
        for name in ("mien", "../fusers/mine", str(outside), "..", ""):
            with pytest.raises(FuserError, match="nothing to remove"):
                remove_fuser(name)
        with pytest.raises(FuserError, match="'ours' ships with cachegraph and stays"):
            remove_fuser("ours")
        assert fuser_names() == ["mine", "ours"]
        assert outside.is_dir()


def save_pair(folder: Path) -> Path:
    end = ModelEnd(name="m", geometry=GEOMETRY)
    save_fuser(small(), folder / "fuse")
    save_fuser(new_translator(end, end, rank=3, hidden=0), folder / "graft")
    return folder


def test_a_pair_is_called_by_one_name_and_each_network_by_its_own(shelf: Path, tmp_path: Path) -> None:
    save_pair(shelf / "story")
    assert find_fuser("story", tmp_path) == shelf / "story"
    assert find_fuser("story/graft", tmp_path) == shelf / "story" / "graft"
    assert [(item.name, item.problem) for item in inventory()] == [("story/fuse", None), ("story/graft", None)]
    assert describe(locate("story/graft")).card.kind == "graft"
    with pytest.raises(FuserError, match="there is no fuser 'story/other'"):
        find_fuser("story/other", tmp_path)
    remove_fuser("story")
    assert not (shelf / "story").exists()


def test_where_one_network_is_wanted_a_pair_is_refused(tmp_path: Path) -> None:
    pair = save_pair(tmp_path / "story")
    for opens in (open_fuser, load_fuser):
        with pytest.raises(FuserError, match="name one of them: 'story/fuse' or 'story/graft'"):
            opens(pair)
    shutil.rmtree(pair / "fuse")
    with pytest.raises(FuserError, match="holds 'graft' and lacks 'fuse' beside it; get the pair again"):
        load_fuser(pair)
