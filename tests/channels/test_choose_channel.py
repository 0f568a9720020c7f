"""What an edge hands over is what the sender's turn produces, in whatever form; decided without torch."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cachegraph.channels.choose_channel import decide_edge, expected_route
from cachegraph.channels.fusers.files.card import Card, Evidence, Geometry, ModelEnd
from cachegraph.channels.peer import Peer
from cachegraph.channels.spec import AutoEdge, BothEdge, CacheEdge, TextEdge

KINDS: dict[str, Any] = {"text": TextEdge, "cache": CacheEdge, "both": BothEdge, "auto": AutoEdge}
GEOMETRY = Geometry(2, 1, 4)


def card(kind: str, **fields: Any) -> Card:
    layers = {"sharer_layers": (0, 1)} if kind == "graft" else {"layer_map": ((0, 0), (1, 1))}
    ends = {end: ModelEnd(name=name, geometry=GEOMETRY) for end, name in (("receiver", "small"), ("sharer", "large"))}
    return Card.model_validate({**ends, "kind": kind, "architecture": "x", **layers, **fields})


def evidence(task: str, low: float, high: float = 0.4, carries: str | None = None) -> Evidence:
    return Evidence.model_validate(
        {
            "task": task,
            "data": "dev",
            "metric": "accuracy",
            "examples": 300,
            "own": 0.5 + (low + high) / 2,
            "mismatched": 0.5,
            "low": low,
            "high": high,
            "carries": carries,
        }
    )


@pytest.fixture(autouse=True)
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CACHEGRAPH_HOME", str(tmp_path / "home"))
    return tmp_path


def save(folder: Path, name: str, made: Card) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "card.json").write_text(made.model_dump_json())


def writer(model: str = "large", *reads: str, **options: Any) -> Peer:
    return Peer("writer", model, reads=frozenset(reads or ("topic",)), **options)


def editor(model: str = "small", *reads: str, **options: Any) -> Peer:
    names = frozenset(reads or ("writer",))
    return Peer("editor", model, **{"reads": names, "holds": names, **options})


def edge(channel: str, **options: Any) -> Any:
    return KINDS[channel].model_validate({"from": "writer", "to": "editor", "channel": channel, **options})


@pytest.mark.parametrize("channel", ["cache", "both", "auto"])
def test_between_agents_of_one_model_the_reply_is_grafted(shelf: Path, channel: str) -> None:
    found = decide_edge(edge(channel), writer("small"), editor(), shelf)
    assert (found.form, found.carries, found.sender_must_write) == ("graft", "reply", True)


def test_an_agent_that_only_reads_hands_over_all_it_read_its_own_words_too(shelf: Path) -> None:
    found = decide_edge(edge("cache"), writer("small", reads_only=True), editor(), shelf)
    assert (found.form, found.carries) == ("graft", "all")
    alone = writer("small", "question", reads_only=True)
    both_read = editor("small", "writer", "question")
    assert decide_edge(edge("cache"), alone, both_read, shelf).form == "text"
    assert (
        decide_edge(edge("cache"), writer("small", "question", reads_only=True, own_words=True), both_read, shelf).form
        == "graft"
    )


def test_the_author_may_say_that_the_senders_reading_is_enough(shelf: Path) -> None:
    found = decide_edge(edge("cache", carries="prompt"), writer("small"), editor(), shelf)
    assert (found.carries, found.sender_must_write) == ("prompt", False)


def test_a_fuser_that_merely_fits_the_pair_is_never_picked(shelf: Path) -> None:
    save(shelf / "home" / "fusers", "small--large", card("fuse"))
    for channel in ("cache", "auto", "both"):
        found = decide_edge(edge(channel), writer(), editor(), shelf)
        assert found.form == "text"
        assert "the card of 'small--large' shows no communication" in (found.reason or "")


@pytest.mark.parametrize(("low", "form"), [(0.1, "graft"), (0.0, "text"), (-0.1, "text")])
def test_a_translator_is_picked_where_its_card_shows_communication(shelf: Path, low: float, form: str) -> None:
    save(shelf / "home" / "fusers", "stories", card("graft", evidence=(evidence("private", low),)))
    found = decide_edge(edge("auto"), writer(), editor(), shelf)
    assert (found.form, found.carries) == (form, "reply" if form == "graft" else None)
    if found.choice is not None:
        assert found.choice.name == "stories"
        assert "300 examples of dev" in found.choice.why


@pytest.mark.parametrize(("carried", "reads_only", "form"), [
    ("prompt", True, "graft"), ("prompt", False, "text"), ("reply", True, "text"), ("reply", False, "graft"),
])  # fmt: skip
def test_evidence_of_prompts_says_nothing_of_replies_nor_the_reverse(
    shelf: Path, carried: str, reads_only: bool, form: str
) -> None:
    save(shelf / "home" / "fusers", "stories", card("graft", evidence=(evidence("private", 0.1, carries=carried),)))
    for channel in ("auto", "cache"):
        assert decide_edge(edge(channel), writer(reads_only=reads_only), editor(), shelf).form == form


def test_evidence_on_shared_text_says_nothing_of_text_that_only_the_sender_has_read(shelf: Path) -> None:
    save(shelf / "home" / "fusers", "questions", card("fuse", evidence=(evidence("shared", 0.1),)))
    assert (
        decide_edge(edge("auto"), writer("large", "story"), editor("small", "writer", "question"), shelf).form == "text"
    )
    shared = editor("small", "writer", "question")
    found = decide_edge(edge("auto"), writer("large", "question"), shared, shelf)
    assert found.form == "fuse"
    assert not found.sender_must_write


def test_a_fuser_for_certain_prompts_is_used_where_it_is_named_and_nowhere_else(shelf: Path) -> None:
    made = card("fuse", scope="foreign words", evidence=(evidence("shared", 0.3),))
    save(shelf / "home" / "fusers", "words", made)
    ends = writer("large", "question"), editor("small", "writer", "question")
    for channel in ("auto", "cache"):
        found = decide_edge(edge(channel), *ends, shelf)
        assert found.form == "text"
        assert "'words' is for certain prompts only; name it on the edge" in (found.reason or "")
    assert decide_edge(edge("cache", carries="prompt", fuser="words"), *ends, shelf).form == "fuse"
    save(shelf / "home" / "fusers", "weaker", card("fuse", evidence=(evidence("shared", 0.1),)))
    found = decide_edge(edge("auto"), *ends, shelf)
    assert found.choice is not None
    assert found.choice.name == "weaker"


def test_a_translator_that_hands_over_the_reply_is_preferred_to_a_fuser_that_can_not(shelf: Path) -> None:
    save(shelf / "home" / "fusers", "questions", card("fuse", evidence=(evidence("shared", 0.3),)))
    save(shelf / "home" / "fusers", "stories", card("graft", evidence=(evidence("private", 0.1),)))
    found = decide_edge(edge("auto"), writer("large", "question"), editor("small", "writer", "question"), shelf)
    assert (found.form, found.choice.name if found.choice else "") == ("graft", "stories")
    enough = edge("cache", carries="prompt")
    assert decide_edge(enough, writer("large", "question"), editor("small", "writer", "question"), shelf).form == "fuse"


def test_the_strongest_evidence_wins(shelf: Path) -> None:
    for name, low in (("weak", 0.05), ("strong", 0.2), ("middling", 0.1)):
        save(shelf / "home" / "fusers", name, card("graft", evidence=(evidence("private", low),)))
    found = decide_edge(edge("cache"), writer(), editor(), shelf)
    assert found.choice is not None
    assert found.choice.name == "strong"


@pytest.mark.parametrize("channel", ["cache", "auto"])
def test_a_fuser_never_stands_in_for_a_reply_made_of_what_only_the_sender_read(shelf: Path, channel: str) -> None:
    """In a chain: the writer reads what the researcher wrote, and the editor does not."""
    save(shelf, "f", card("fuse"))
    ends = writer("large", "researcher", "topic"), editor("small", "writer", "topic")
    found = decide_edge(edge(channel, fuser="f"), *ends, shelf)
    assert found.form == "text"
    assert "'writer' reads 'researcher'" in (found.reason or "")
    assert "carries: prompt" in (found.reason or "")
    assert decide_edge(edge(channel, fuser="f", carries="prompt"), *ends, shelf).form == "fuse"
    both = decide_edge(edge("both", fuser="f"), *ends, shelf)
    assert both.form == "fuse"  # beside the words


def test_a_named_fuser_works_without_evidence_where_both_read_the_same(shelf: Path) -> None:
    save(shelf, "f", card("fuse"))
    found = decide_edge(
        edge("cache", fuser="f"), writer("large", "question"), editor("small", "writer", "question"), shelf
    )
    assert (found.form, found.choice.why if found.choice else "") == ("fuse", "the edge names it")


def test_the_recipes_fusers_serve_the_edges_that_name_none(shelf: Path) -> None:
    save(shelf, "other", card("graft", receiver=ModelEnd(name="third", geometry=GEOMETRY)))
    save(shelf, "t", card("graft"))
    save(shelf, "f", card("fuse"))
    defaults = ["other", "f", "t"]
    found = decide_edge(edge("cache"), writer(), editor(), shelf, defaults)
    assert (found.form, found.choice.name if found.choice else "") == ("graft", "t")
    assert found.choice is not None
    assert found.choice.why == "the recipe's `fusers` name it"
    shared = decide_edge(
        edge("cache", carries="prompt"), writer("large", "q"), editor("small", "writer", "q"), shelf, defaults
    )
    assert (shared.form, shared.choice.name if shared.choice else "") == ("fuse", "f")


@pytest.mark.parametrize("channel", ["cache", "auto", "both"])
def test_a_prompt_that_works_on_the_words_gets_words(shelf: Path, channel: str) -> None:
    receiver = editor("small", words_of={"writer": "the prompt of agent 'editor' works on the words of 'writer'"})
    found = decide_edge(edge(channel), writer("small"), receiver, shelf)
    assert (found.form, found.reason) == ("text", "the prompt of agent 'editor' works on the words of 'writer'")
    save(shelf, "f", card("fuse"))
    fused = decide_edge(edge(channel, fuser="f", carries="prompt"), writer("large", "q"), receiver, shelf)
    assert fused.form == ("fuse" if channel == "both" else "text")  # the words are there beside the corrections


def test_a_fuser_of_the_hub_that_is_not_here_is_not_fetched_to_tell_what_a_recipe_will_do(shelf: Path) -> None:
    found = expected_route(edge("cache", fuser="hub:a/b"), writer(), editor(), shelf)
    assert (found.used, found.fallback_reason) == ("text", "the fuser 'hub:a/b' is not on this disk yet")


def test_a_card_whose_interval_does_not_hold_its_difference_is_refused() -> None:
    fields = {"task": "shared", "data": "d", "metric": "m", "examples": 3, "own": 0.5, "mismatched": 0.4}
    with pytest.raises(ValueError, match=r"own minus mismatched is 0.1, outside of 0.2 to 0.3"):
        Evidence.model_validate({**fields, "low": 0.2, "high": 0.3})


def test_deciding_imports_no_torch() -> None:
    names = "sys, cachegraph.channels.choose_channel, cachegraph.graph.plan.recipe_warnings"
    code = f"import {names}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_text_that_the_receiver_may_hold_only_in_part_is_not_shared(shelf: Path) -> None:
    """`{{ question | truncate(10) }}` or `{% if brief %}{{ question }}{% endif %}` in the receiver's prompt."""
    save(shelf, "f", card("fuse"))
    in_part = editor("small", "writer", "question", holds=frozenset({"writer"}))
    found = decide_edge(edge("auto", fuser="f"), writer("large", "question"), in_part, shelf)
    assert (found.form, "'writer' reads 'question'" in (found.reason or "")) == ("text", True)
    assert decide_edge(edge("cache", carries="prompt"), writer("small", "question"), in_part, shelf).form == "graft"
