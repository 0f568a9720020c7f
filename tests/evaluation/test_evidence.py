"""From a comparison to evidence on a fuser's card: what counts, what is refused, and what the command says."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from cachegraph.channels.fusers.files.card import CARD, Card, Geometry, ModelEnd, read_card
from cachegraph.cli import main
from cachegraph.errors import FuserError, InputError
from cachegraph.evaluation.comparison import Comparison
from cachegraph.evaluation.environment import ModelFacts
from cachegraph.evaluation.evidence import evidence_of, record_evidence

from .test_report import RECIPE
from .test_report import comparison as of_the_report

FACTS = [ModelFacts(agent="reader", name="large", identity="l1"), ModelFacts(agent="answerer", name="small")]


def compared(fuser: str | None = None, **changes: Any) -> Comparison:
    """Cache right on 3 of 8 examples, the mismatched control on every third, of models named small and large."""
    found = of_the_report(count=48).model_copy(update={"recipe": RECIPE, **changes})
    found.environment.models = FACTS
    found.environment.data = "dev/stories.jsonl"
    for record in found.records:
        for edge in record.edges:
            edge.report.fuser = fuser
    return found


def card(kind: str = "graft", **changes: Any) -> Card:
    ends = {
        end: ModelEnd(name=name, geometry=Geometry(2, 1, 4))
        for end, name in (("receiver", "small"), ("sharer", "large"))
    }
    layers = {"sharer_layers": (0, 1)} if kind == "graft" else {"layer_map": ((0, 0), (1, 1))}
    return Card.model_validate({"kind": kind, **layers, **ends, **changes})


@pytest.fixture
def fuser(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / CARD).write_text(card().model_dump_json())
    return folder


@pytest.mark.parametrize(("kind", "task", "carries"), [("graft", "private", "reply"), ("fuse", "shared", None)])
def test_a_comparison_says_how_much_better_a_caches_own_example_is(kind: str, task: str, carries: str | None) -> None:
    comparison = compared()
    found = evidence_of(comparison, card(kind))
    difference = comparison.difference("cache", "mismatched")
    assert difference is not None
    assert (found.task, found.carries, found.data, found.examples) == (task, carries, "stories.jsonl", 48)
    assert (found.own, found.mismatched) == (0.5, round(16 / 48, 4))
    assert (found.low, found.high) == (round(difference.low, 4), round(difference.high, 4))


def test_a_card_that_knows_no_weights_is_of_the_models_by_name() -> None:
    assert evidence_of(compared(), card())
    known = card(sharer=ModelEnd(name="large", identity="l1", geometry=Geometry(2, 1, 4)))
    assert evidence_of(compared(), known)
    other = card(sharer=ModelEnd(name="large", identity="l2", geometry=Geometry(2, 1, 4)))
    with pytest.raises(InputError, match="other models than the fuser's: 'large' was not among them"):
        evidence_of(compared(), other)


def test_what_shows_nothing_is_refused() -> None:
    comparison = compared()
    rows = [row for row in comparison.rows if row.name != "mismatched"]
    with pytest.raises(InputError, match="lacks the variant 'cache' or 'mismatched'; run it with both"):
        evidence_of(comparison.model_copy(update={"rows": rows}), card())
    cache = comparison.row("cache")
    assert cache is not None
    rows = [row.model_copy(update={"cache_share": 0.5}) if row is cache else row for row in comparison.rows]
    with pytest.raises(InputError, match="not every edge that was asked for a cache had one"):
        evidence_of(comparison.model_copy(update={"rows": rows}), card())
    text = RECIPE.replace("channel: cache", "channel: text")
    with pytest.raises(InputError, match="has 0 cache edges"):
        evidence_of(comparison.model_copy(update={"recipe": text}), card())


def test_new_evidence_takes_the_place_of_older_evidence_on_the_same_data(fuser: Path) -> None:
    first = record_evidence(fuser, compared())
    again = record_evidence(fuser, compared())
    assert read_card(fuser).evidence == (again,) == (first,)
    elsewhere = compared()
    elsewhere.environment.data = "test/stories.csv"
    record_evidence(fuser, elsewhere)
    assert [each.data for each in read_card(fuser).evidence] == ["stories.jsonl", "stories.csv"]


@pytest.mark.parametrize(("used", "taken"), [("mine", True), ("fusers/mine", True), (None, True), ("theirs", False)])
def test_evidence_goes_on_the_card_of_the_fuser_that_was_at_work(fuser: Path, used: str | None, taken: bool) -> None:
    if taken:
        record_evidence(fuser, compared(used))
        return
    with pytest.raises(InputError, match="ran the fuser 'theirs', so it shows nothing of 'mine'"):
        record_evidence(fuser, compared(used))
    assert read_card(fuser).evidence == ()


def test_a_damaged_card_is_left_alone(fuser: Path) -> None:
    (fuser / CARD).write_text("{")
    with pytest.raises(FuserError):
        record_evidence(fuser, compared())
    assert (fuser / CARD).read_text() == "{"


def ended(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["cachegraph", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0), *capsys.readouterr()


def test_the_command_says_what_it_put_there(
    fuser: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CACHEGRAPH_HOME", str(tmp_path / "home"))
    file = tmp_path / "comparison.json"
    file.write_text(compared().to_json())
    code, out, err = ended(capsys, monkeypatch, "fusers", "evidence", fuser, file)
    (found,) = read_card(fuser).evidence
    assert (code, err) == (0, "")
    assert out.startswith(f"{fuser}: own minus mismatched +0.167 ({found.low:.3g} to {found.high:.3g}) accuracy, 48 ")
    assert ("no edge picks the fuser by this" in out) == (not found.shows_communication)
    file.write_text(json.dumps({"not": "a comparison"}))
    code, out, err = ended(capsys, monkeypatch, "fusers", "evidence", fuser, file)
    assert (code, out) == (2, "")
    assert str(file) in err
