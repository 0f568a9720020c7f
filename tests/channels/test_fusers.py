"""Fusers in and out of folders, and what is refused on the way."""

import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cachegraph.channels.fusers.files.c2c_format import export_reference, load_reference
from cachegraph.channels.fusers.files.card import Card, Geometry
from cachegraph.channels.fusers.files.load import load_fuser
from cachegraph.channels.fusers.files.weights import read_card, save_fuser
from cachegraph.channels.fusers.fuser_folder import check_pair, find_fuser
from cachegraph.channels.fusers.networks.base import Fuser
from cachegraph.channels.fusers.networks.create import new_fuser
from cachegraph.errors import FuserError

CKPT = Path(__file__).parents[1] / "golden" / "ckpt"
RECEIVER, SHARER = Geometry(3, 2, 4), Geometry(2, 1, 6)


def small(**options: Any) -> Fuser:
    return new_fuser("c2c", RECEIVER, SHARER, hidden_dim=8, intermediate_dim=12, **options)


def states(fuser: Fuser) -> dict[tuple[int, str], torch.Tensor]:
    return {(layer, name): t for layer, _, p in fuser for name, t in p.state_dict().items()}


def assert_same(one: Fuser, other: Fuser) -> None:
    a, b = states(one), states(other)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    return Path(shutil.copytree(CKPT / "a", tmp_path / "a"))


class TestOurFolder:
    def test_a_saved_fuser_comes_back_bit_for_bit(self, tmp_path: Path) -> None:
        fuser = small(gate_logit=0.5, num_layers=4, layer_map="k_nearest")
        card = save_fuser(fuser, tmp_path / "f")
        back = load_fuser(tmp_path / "f")
        assert_same(fuser, back)
        assert back.card == card == read_card(tmp_path / "f")
        assert back.open_layers == (0, 1, 2)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["f"]

    def test_saving_again_replaces_the_folder(self, tmp_path: Path) -> None:
        save_fuser(small(seed=1), tmp_path / "f")
        save_fuser(small(seed=2), tmp_path / "f")
        assert_same(small(seed=2), load_fuser(tmp_path / "f"))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["f"]

    def test_a_folder_of_other_things_is_not_overwritten(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("dear")
        with pytest.raises(FuserError, match="holds other things than a fuser"):
            save_fuser(small(), tmp_path)
        assert (tmp_path / "thesis.tex").read_text() == "dear"

    def test_a_failed_save_leaves_the_old_fuser_and_no_rubbish(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save_fuser(small(seed=1), tmp_path / "f")

        def full_disk(*args: Any, **kwargs: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("cachegraph.channels.fusers.files.weights.save_file", full_disk)
        with pytest.raises(FuserError, match="No space left on device"):
            save_fuser(small(seed=2), tmp_path / "f")
        assert_same(small(seed=1), load_fuser(tmp_path / "f"))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["f"]

    def test_a_dtype_can_be_asked_for(self, tmp_path: Path) -> None:
        save_fuser(small(), tmp_path / "f")
        loaded = load_fuser(tmp_path / "f", dtype=torch.bfloat16)
        assert {t.dtype for t in states(loaded).values()} == {torch.bfloat16}

    @pytest.mark.parametrize(
        ("edit", "message"),
        [
            (lambda card: card.pop("receiver"), "wrong at 'receiver'"),
            (lambda card: card.update(version=2), "wrong at 'version'"),
            (lambda card: card.update(surprise=1), "wrong at 'surprise'"),
            (lambda card: card.update(architecture="magic"), "no fuser architecture 'magic'"),
            (lambda card: card["params"].update(num_layers=10**6), "wrong parameter 'num_layers'"),
            (lambda card: card["params"].update(hidden_dim=9), "has shape"),
            (lambda card: card["receiver"]["geometry"].update(layers=10**12), "wrong at 'receiver.geometry.layers'"),
            (lambda card: card["layer_map"].append([2, 0]), "corrected by the sharer layers"),
            (lambda card: card["layer_map"].pop(), "has an unknown tensor 'layers.2"),
            (lambda card: card.update(sha256="0" * 64), "sha256 differs"),
            (lambda card: card.update(sha256=None), "sha256 differs"),
        ],
    )
    def test_a_wrong_card_is_refused(self, tmp_path: Path, edit: Callable[[Any], Any], message: str) -> None:
        save_fuser(small(), tmp_path / "f")
        path = tmp_path / "f" / "card.json"
        card = json.loads(path.read_text())
        edit(card)
        path.write_text(json.dumps(card))
        with pytest.raises(FuserError, match=message):
            load_fuser(tmp_path / "f")

    @pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\ud800".encode("utf-8", "surrogatepass")])
    def test_a_card_that_is_no_json_is_refused(self, tmp_path: Path, text: str | bytes) -> None:
        save_fuser(small(), tmp_path / "f")
        (tmp_path / "f" / "card.json").write_bytes(text.encode() if isinstance(text, str) else text)
        with pytest.raises(FuserError, match="JSON"):
            load_fuser(tmp_path / "f")

    @pytest.mark.parametrize(
        ("edit", "message"),
        [
            (lambda t: t.update({"layers.0.key_in.bias": torch.full((8,), float("nan"))}), "holds NaN"),
            (lambda t: t.update({"layers.0.key_in.bias": torch.zeros(8, dtype=torch.int64)}), "floating point"),
            (lambda t: t.update({"layers.0.key_in.bias": torch.zeros(8).half()}), "mixes number types"),
            (lambda t: t.update({"layers.0.key_in.bias": torch.zeros(9)}), "has shape"),
            (lambda t: t.update({"extra": torch.zeros(1)}), "unknown tensor 'extra'"),
            (lambda t: t.pop("layers.1.key_in.bias"), "lacks tensor 'layers.1.key_in.bias'"),
        ],
    )
    def test_wrong_weights_are_refused(self, tmp_path: Path, edit: Callable[[Any], Any], message: str) -> None:
        save_fuser(small(), tmp_path / "f")
        path = tmp_path / "f" / "fuser.safetensors"
        tensors = load_file(path)
        edit(tensors)
        save_file(tensors, path)
        rehash(tmp_path / "f")
        with pytest.raises(FuserError, match=message):
            load_fuser(tmp_path / "f")

    def test_weights_that_are_cut_off_are_refused(self, tmp_path: Path) -> None:
        save_fuser(small(), tmp_path / "f")
        path = tmp_path / "f" / "fuser.safetensors"
        path.write_bytes(path.read_bytes()[:-10])
        with pytest.raises(FuserError, match="sha256 differs"):
            load_fuser(tmp_path / "f")
        rehash(tmp_path / "f")
        with pytest.raises(FuserError, match="not a safetensors file"):
            load_fuser(tmp_path / "f")
        path.unlink()
        with pytest.raises(FuserError, match="lacks"):
            load_fuser(tmp_path / "f")


def rehash(folder: Path) -> None:
    import hashlib

    card = json.loads((folder / "card.json").read_text())
    card["sha256"] = hashlib.sha256((folder / "fuser.safetensors").read_bytes()).hexdigest()
    (folder / "card.json").write_text(json.dumps(card))


class TestPublishedFolder:
    def test_the_card_says_what_the_folder_says(self) -> None:
        (fuser,) = load_reference(CKPT / "b")
        assert fuser.card.receiver.geometry == Geometry(4, 2, 16)
        assert fuser.card.sharer.geometry == Geometry(6, 2, 12)
        assert fuser.card.layer_map == ((0, 2), (1, 3), (2, 4), (3, 5))
        assert fuser.card.params["hidden_dim"] == 64
        assert (fuser.card.alignment, fuser.card.reads, fuser.card.rope) == ("ids", "receiver-prompt", "rotated")
        assert fuser.parameter_count == sum(p.numel() for _, _, m in fuser for p in m.parameters())

    def test_the_folder_of_the_weights_alone_will_do(self) -> None:
        assert_same(load_fuser(CKPT / "a" / "final"), load_fuser(CKPT / "a"))

    def test_alignment_is_taken_from_the_training_configuration(self, published: Path) -> None:
        config = json.loads((published / "config.json").read_text())
        config["model"] |= {"is_do_alignment": True, "alignment_strategy": "longest"}
        (published / "config.json").write_text(json.dumps(config))
        assert load_fuser(published).card.alignment == "longest"

    def test_without_a_training_configuration_ids_align(self, published: Path) -> None:
        (published / "config.json").unlink()
        card = load_fuser(published).card
        assert (card.alignment, card.receiver.name, card.sharer.name) == ("ids", "receiver", "sharer")

    @pytest.mark.parametrize("name", ["a", "b", "gemma3"])
    def test_a_fuser_goes_to_our_format_and_back_unchanged(self, tmp_path: Path, name: str) -> None:
        fuser = load_fuser(CKPT / name)
        save_fuser(fuser, tmp_path / "ours")
        export_reference(load_fuser(tmp_path / "ours"), tmp_path / "theirs")
        back = load_fuser(tmp_path / "theirs")
        assert_same(fuser, back)
        assert back.card == fuser.card
        original = json.loads((CKPT / name / "final" / "projector_0.json").read_text())
        assert json.loads((tmp_path / "theirs/final/projector_0.json").read_text()) == original
        state = torch.load(CKPT / name / "final/projector_1.pt", weights_only=True)
        written = torch.load(tmp_path / "theirs/final/projector_1.pt", weights_only=True)
        assert state.keys() == written.keys()

    def test_several_sharers_give_several_fusers(self, published: Path) -> None:
        config = {"0": {"2": {"3": [[1, 1]]}, "1": {"0": [[0, 0]], "3": [[2, 3]]}}}
        (published / "final/projector_config.json").write_text(json.dumps(config))
        first, second = load_reference(published)
        assert (first.card.layer_map, second.card.layer_map) == (((0, 0), (3, 2)), ((3, 1),))
        with pytest.raises(FuserError, match="joins 2 sharers"):
            load_fuser(published)

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({}, "names 0 receivers"),
            ({"0": {}, "1": {}}, "names 2 receivers"),
            ({"0": {}}, "names no sharer"),
            ({"0": {"1": {}}}, "is not of the form"),
            ({"0": {"1": {"0": []}}}, "is not of the form"),
            ({"0": {"1": {"0": [[0, 0, 0]]}}}, "is not of the form"),
            ({"0": {"1": {"x": [[0, 0]]}}}, "is not of the form"),
            ({"0": {"1": [1]}}, "is not of the form"),
            ({"0": {"1": {"0": [[0, -1]]}}}, "negative"),
            ({"0": {"1": {"0": [[0, 0], [1, 1]]}}}, "gives receiver layer 0 2 projectors"),
            ({"0": {"1": {"0": [[0, 77]]}}}, "lacks .*projector_77.json"),
            ({"0": {"1": {"99999": [[0, 0]]}}}, "layers"),
        ],
    )
    def test_a_wrong_configuration_is_refused(self, published: Path, config: Any, message: str) -> None:
        (published / "final/projector_config.json").write_text(json.dumps(config))
        with pytest.raises(FuserError, match=message):
            load_fuser(published)

    @pytest.mark.parametrize(
        ("edit", "message"),
        [
            (lambda d: d.update({"class": "AllInOneProjector"}), "describes a 'AllInOneProjector'"),
            (lambda d: d.pop("class"), "describes a None"),
            (lambda d: d.pop("init_args"), "is wrong at"),
            (lambda d: d["init_args"].update(hidden_dim=10**9), "is wrong at 'hidden_dim'"),
            (lambda d: d["init_args"].update(hidden_dim=128), "differ in size"),
            (lambda d: d["init_args"].update(tricks=1), "is wrong at 'tricks'"),
            (lambda d: d["init_args"].update(source_dim="many"), "is wrong at 'source_dim'"),
        ],
    )
    def test_a_wrong_projector_is_refused(self, published: Path, edit: Callable[[Any], Any], message: str) -> None:
        path = published / "final/projector_1.json"
        described = json.loads(path.read_text())
        edit(described)
        path.write_text(json.dumps(described))
        with pytest.raises(FuserError, match=message):
            load_fuser(published)


class Bomb:
    def __reduce__(self) -> Any:
        return (print, ("code ran",))


class TestHostileWeights:
    """A .pt file is a pickle in a zip archive."""

    def refused(self, published: Path, message: str) -> None:
        with pytest.raises(FuserError, match=message):
            load_fuser(published)

    def test_code_in_a_pickle_never_runs(self, published: Path, capsys: pytest.CaptureFixture[str]) -> None:
        torch.save({"key_in.weight": Bomb()}, published / "final/projector_0.pt")
        self.refused(published, "a pickle that may run code is never loaded")
        (published / "final/projector_0.pt").write_bytes(pickle.dumps(Bomb()))
        self.refused(published, "no torch file")
        assert "code ran" not in capsys.readouterr().out

    def test_a_file_that_is_cut_off_is_refused(self, published: Path) -> None:
        path = published / "final/projector_2.pt"
        path.write_bytes(path.read_bytes()[:5000])
        self.refused(published, "cut off")
        path.write_bytes(b"")
        self.refused(published, "cut off")
        path.unlink()
        self.refused(published, "missing")

    def test_compressed_archives_are_refused_before_they_unfold(self, published: Path) -> None:
        path = published / "final/projector_0.pt"
        with zipfile.ZipFile(path) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in entries.items():
                archive.writestr(name, data)
        self.refused(published, "compressed data")

    def test_a_tensor_that_claims_to_be_huge_takes_no_memory(self, published: Path) -> None:
        state = torch.load(published / "final/projector_0.pt", weights_only=True)
        state["key_in.weight"] = torch.zeros(1).expand(1 << 40, 64)
        torch.save(state, published / "final/projector_0.pt")
        self.refused(published, "has shape")

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("key_in.bias", torch.full((64,), float("inf")), "NaN or infinity"),
            ("key_gate_logit", torch.tensor(float("nan")), "NaN or infinity"),
            ("key_in.bias", torch.zeros(64, dtype=torch.int32), "floating point"),
            ("key_in.bias", torch.zeros(64).to_sparse(), "floating point"),
            ("key_in.bias", torch.zeros(64, device="meta"), "floating point"),
            ("key_in.bias", [0.0] * 64, "not a plain dictionary of tensors"),
            ("extra", torch.zeros(1), "unknown tensor 'extra'"),
        ],
    )
    def test_a_wrong_tensor_is_refused(self, published: Path, name: str, value: Any, message: str) -> None:
        path = published / "final/projector_0.pt"
        torch.save(torch.load(path, weights_only=True) | {name: value}, path)
        self.refused(published, message)

    def test_a_list_of_tensors_is_refused(self, published: Path) -> None:
        torch.save([torch.zeros(1)], published / "final/projector_0.pt")
        self.refused(published, "not a plain dictionary of tensors")


class TestFinding:
    @pytest.fixture(autouse=True)
    def home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("CACHEGRAPH_HOME", str(tmp_path / "home"))
        save_fuser(small(), tmp_path / "home/fusers/small--large")
        return tmp_path / "home"

    def test_a_folder_beside_the_recipe_comes_first(self, tmp_path: Path, home: Path) -> None:
        save_fuser(small(), tmp_path / "recipes/small--large")
        assert find_fuser("small--large", tmp_path / "recipes") == tmp_path / "recipes/small--large"
        assert find_fuser("small--large", tmp_path) == home / "fusers/small--large"
        assert find_fuser(str(CKPT / "a"), tmp_path) == CKPT / "a"

    def test_an_unknown_name_is_answered_with_near_ones(self, tmp_path: Path) -> None:
        with pytest.raises(FuserError, match="did you mean 'small--large'"):
            find_fuser("smal--large", tmp_path)

    @pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b", "~nobody/x", "x" * 5000])
    def test_odd_names_are_answered_in_our_words(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(FuserError):
            find_fuser(name, tmp_path / "recipes")

    def test_a_relative_path_may_not_leave_the_recipes_folder(self, tmp_path: Path) -> None:
        (tmp_path / "recipes").mkdir()
        with pytest.raises(FuserError, match="leaves the recipe's folder"):
            find_fuser("../home/fusers/small--large", tmp_path / "recipes")

    def test_a_folder_without_a_fuser_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(FuserError, match="holds no 'projector_config.json'"):
            load_fuser(tmp_path / "empty")
        with pytest.raises(FuserError, match="there is no fuser folder"):
            load_fuser(tmp_path / "nowhere")
        shutil.copytree(CKPT / "a", tmp_path / "empty" / "a_Fuser")
        with pytest.raises(FuserError, match="name one of its folders: 'a_Fuser'"):
            load_fuser(tmp_path / "empty")


class TestPairs:
    def test_a_fuser_fits_the_models_it_was_made_for(self) -> None:
        assert check_pair(small().card, RECEIVER, SHARER, "any", "any") is None

    def test_another_geometry_is_a_mismatch(self) -> None:
        reason = check_pair(small().card, RECEIVER, RECEIVER)
        assert reason is not None
        assert "2 layers of 1 KV heads of 6" in reason
        assert "3 layers of 2 KV heads of 4" in reason

    def test_other_weights_are_a_mismatch_where_both_are_known(self) -> None:
        card = small().card
        card = card.model_copy(update={"sharer": card.sharer.model_copy(update={"identity": "abc"})})
        assert "other weights of the sharer" in str(check_pair(card, RECEIVER, SHARER, None, "def"))
        assert check_pair(card, RECEIVER, SHARER, None, None) is None
        assert check_pair(card, RECEIVER, SHARER, None, "abc") is None


class TestNew:
    def test_an_untrained_fuser_is_closed(self) -> None:
        assert small().open_layers == ()
        assert small().openness == 0.0

    def test_random_weights_follow_the_seed_and_leave_torchs_own_alone(self) -> None:
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        one = small(seed=3)
        assert torch.equal(torch.rand(3), expected)
        assert_same(one, small(seed=3))

    def test_unknown_architectures_and_parameters_are_named(self) -> None:
        with pytest.raises(FuserError, match="no fuser architecture 'c3c'; this version knows 'c2c'"):
            new_fuser("c3c", RECEIVER, SHARER)
        with pytest.raises(FuserError, match="wrong parameter 'depth'"):
            small(depth=3)
        with pytest.raises(FuserError, match="no layer map 'first'"):
            small(layer_map="first")

    def test_to_is_the_fuser_itself_or_a_copy(self) -> None:
        fuser = small()
        assert fuser.to("cpu") is fuser
        half = fuser.to("cpu", torch.float16)
        assert half.projectors[0].dtype == torch.float16
        assert fuser.projectors[0].dtype == torch.float32


def test_a_card_needs_no_torch() -> None:
    import subprocess
    import sys

    names = "sys, cachegraph.channels.fusers.files.card, cachegraph.channels.fusers.fuser_folder"
    code = f"import {names}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_card_survives_json() -> None:
    card = small().card
    assert Card.model_validate_json(card.model_dump_json()) == card
