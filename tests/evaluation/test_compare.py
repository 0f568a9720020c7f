import json
import signal
from pathlib import Path
from typing import Any

import anyio
import pytest

from cachegraph import Comparison, Graph, acompare, compare
from cachegraph.agents.scripted import ScriptedAgent
from cachegraph.channels.fusers.files.card import Geometry, ModelEnd
from cachegraph.channels.fusers.files.weights import save_fuser
from cachegraph.channels.fusers.networks.prefix import new_prefix
from cachegraph.errors import InputError, ModelError
from cachegraph.evaluation.metrics import pick_metrics
from cachegraph.evaluation.records import ExampleRecord
from cachegraph.evaluation.run_variants import Progress
from cachegraph.evaluation.summary import Summary, summarise
from cachegraph.evaluation.variants import Variant, make_variants
from cachegraph.graph.data.examples import Example

from .conftest import STORY, Answerer, Reader, rows, story_graph

pytestmark = pytest.mark.usefixtures("caches_travel")
ALL = ("text", "cache", "alone", "mismatched", "zero", "ceiling", "floor")


def quality(found: Comparison) -> dict[str, float]:
    return {row.name: row.quality["accuracy"].value for row in found.rows if row.why_not is None}


def test_a_cache_that_is_read_beats_its_absence_and_every_control() -> None:
    found = compare(story_graph(), rows(), variants=ALL)
    assert quality(found) == {
        "text": 1.0, "cache": 1.0, "alone": 0.0, "mismatched": 0.0, "zero": 0.0, "ceiling": 1.0, "floor": 0.0,
    }  # fmt: skip
    plainly, used = found.verdicts
    assert plainly == "no difference shown between cache and text (+0.0 points, -8.8 to +8.8)"
    assert used.startswith("cache beats alone by 100.0 points (91.2 to 100.0), and cache beats mismatched by 100.0")
    assert used.endswith("what the cache carries is used")
    assert {row.name: row.same_as for row in found.rows if row.same_as} == {"ceiling": "text", "floor": "alone"}
    assert len(found.records) == 5 * 40  # nothing is played twice
    assert found.records_of("floor") == found.records_of("alone")


def test_floor_stands_for_alone_where_only_it_was_asked_for() -> None:
    found = compare(story_graph(), rows(), variants=["cache", "floor", "mismatched"])
    (said,) = found.verdicts
    assert said.startswith("cache beats floor by 100.0 points (91.2 to 100.0), and cache beats mismatched by 100.0")
    floor = found.row("floor")
    assert floor is not None
    assert floor.was_run  # its times are shown nowhere else
    assert len(found.records_of("floor")) == 40


def test_a_receiver_that_likes_any_cache_is_found_out() -> None:
    dazzled = Answerer("answerer", knows=lambda heard, story: heard.startswith("story"))
    found = compare(story_graph(dazzled), rows())
    assert "cache beats alone, but so does a mismatched cache: this is not communication" in found.verdicts[1]


def test_questions_about_one_story_are_drawn_together() -> None:
    lucky = Answerer("answerer", knows=lambda heard, story: bool(heard) and int(story.split()[1]) % 2 == 0)
    questions = [{**row, "question": f"{row['question']} {ask}"} for row in rows(12) for ask in range(4)]
    apart = compare(story_graph(lucky), questions, variants=["cache", "alone"])
    together = compare(story_graph(lucky), questions, variants=["cache", "alone"], columns={"group": "context"})
    one, other = (found.row("cache").quality["accuracy"] for found in (apart, together))  # type: ignore[union-attr]
    assert one.value == other.value == 0.5
    assert other.high - other.low > 1.5 * (one.high - one.low)
    assert [row.groups for row in together.rows] == [12, 12]
    assert apart.differences[0].test == "McNemar, exact"  # which takes every question for a witness of its own
    assert together.differences[0].test == "paired bootstrap"
    assert [each for each in together.warnings if "with 12 groups of examples intervals are rough" in each]


def test_nothing_is_shown_by_one_story() -> None:
    questions = [{**rows(1)[0], "question": f"q{ask}"} for ask in range(40)]
    found = compare(story_graph(), questions, variants=["cache", "alone"], columns={"group": "context"})
    assert found.differences[0].value == 1.0
    assert not found.differences[0].shown


def write_card(folder: Path, sha256: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "card.json").write_text(json.dumps({"sha256": sha256}))


def test_fusers_stand_side_by_side_each_held_to_its_own_control(tmp_path: Path) -> None:
    def graph() -> Graph:
        edges = [{**STORY["edges"][0], "fuser": "./first"}]
        return story_graph(edges=edges, folder=tmp_path)

    for name in ("first", "second"):
        write_card(tmp_path / name, name[0] * 64)
    names = ["alone", "cache", "mismatched", "cache@./second", "mismatched@./second", "zero:both@./second"]
    found = compare(graph(), rows(), variants=names)
    assert [row.name for row in found.rows] == names
    assert found.rows[3].description == "every edge hands over its KV cache; by the fuser ./second"
    assert found.rows[3].same_as is None
    assert len(found.records_of("cache@./second")) == 40
    assert found.difference("cache@./second", "mismatched@./second") is not None
    assert found.difference("cache@./second", "mismatched") is None
    used = [line for line in found.verdicts if line.endswith("what the cache carries is used")]
    assert [line.split()[0] for line in used] == ["cache", "cache@./second"]

    whole = compare(graph(), rows(), variants=[*names, "cache@mean", "mismatched@mean"])
    assert len(whole.records) == len(found.records)
    assert whole.rows[6].description == "every edge hands over its KV cache; the mean of cache, cache@./second"
    assert len(whole.records_of("cache@mean")) == 80
    assert any(line.startswith("cache@mean beats alone by 100.0 points") for line in whole.verdicts)
    assert [row.name for row in whole.rows if row.was_run] == names
    assert Comparison.from_json(whole.to_json()) == whole


FUSERS = ("cache", "cache@b")


def mean_of_two(right: dict[str, set[int]], why_not: str | None = None) -> Summary:
    """Of 40 questions those that each variant gets right."""
    examples = [Example(index=index, id=str(index), inputs={}, references=("yes",)) for index in range(40)]
    variants = [
        Variant("text", "text"),
        Variant("cache", "cache"),
        Variant("cache@b", "cache@b#1234", why_not=why_not),
        Variant("cache@mean", "cache@mean", mean_of=FUSERS),
    ]
    records = [
        ExampleRecord(
            variant=variant.records, seed=0, index=index, reply="yes" if index in right[variant.name] else "no"
        )
        for variant in variants[:3]
        for index in range(40)
    ]
    return summarise(variants, records, examples, pick_metrics(["exact_match"], examples[0]), 0)


def test_a_mean_over_fusers_is_taken_question_by_question() -> None:
    found = mean_of_two({"text": set(range(8)), "cache": set(range(24)), "cache@b": set(range(20, 40))})
    assert [row.quality["exact_match"].value for row in found.rows] == [0.2, 0.6, 0.5, 0.55]
    over = {each.variant: each for each in found.differences if each.baseline == "text"}
    assert over["cache@mean"].value == pytest.approx(0.35)
    assert over["cache@mean"].test == "paired bootstrap"
    assert over["cache"].test == "McNemar, exact"
    # Their mistakes lie apart, so the mean is surer than either.
    widths = {name: each.high - each.low for name, each in over.items()}
    assert widths["cache@mean"] < min(widths["cache"], widths["cache@b"])


def test_a_mean_of_which_a_part_could_not_run_is_none() -> None:
    found = mean_of_two({"text": set(), "cache": {1}, "cache@b": set()}, why_not="it is lost")
    assert found.rows[3].why_not == "it is a mean, and cache@b could not run"
    assert found.rows[1].quality["exact_match"].value == 1 / 40


def test_another_training_of_a_fuser_runs_again(tmp_path: Path) -> None:
    def played(sha256: str) -> int:
        write_card(tmp_path / "made", sha256)
        reader = Reader("reader")
        graph = story_graph(reader, folder=tmp_path, edges=[{**STORY["edges"][0], "fuser": "./other"}])
        compare(graph, rows(4), variants=["alone", "cache@./made"], out=tmp_path / "r.jsonl")
        return len(reader.turns)

    assert played("a" * 64) > 0
    assert played("a" * 64) == 0
    assert played("b" * 64) > 0


def test_every_mismatched_example_names_its_partner() -> None:
    found = compare(story_graph(), rows(), variants=["mismatched"])
    partners = [record.partner for record in found.records]
    assert sorted(each for each in partners if each is not None) == list(range(40))
    assert all(record.partner != record.index for record in found.records)


def test_replies_scores_edges_and_costs_are_kept_by_example() -> None:
    found = compare(story_graph(), rows(3), variants=["cache"])
    first = found.records[0]
    assert (first.reply, [score.logprob for score in first.scores]) == ("right", [-5.0, -1.0])
    assert first.edge("reader", "answerer") is not None
    assert first.seconds > 0
    assert first.memory.rss > 1e6
    (row,) = found.rows
    assert row.cache_share == 1.0
    assert row.agents["answerer"].generated == 1
    assert row.seconds is not None


def test_the_same_call_gives_the_same_numbers_and_another_seed_other_partners() -> None:
    def numbers(seed: int) -> Any:
        found = compare(story_graph(), rows(), limit=25, seed=seed)
        return [row.quality for row in found.rows], found.differences, [each.partner for each in found.records]

    assert numbers(3) == numbers(3)
    assert numbers(3)[2] != numbers(4)[2]


def test_a_comparison_survives_being_written_and_read(tmp_path: Path) -> None:
    found = compare(story_graph(), rows(3), variants=["text", "cache", "zero", "sharer"])
    found.save(tmp_path / "c.json")
    assert Comparison.load(tmp_path / "c.json") == found
    assert "examples" not in found.summary()
    with pytest.raises(InputError, match=r"not a comparison .*schema_version"):
        Comparison.from_json(found.to_json().replace('"schema_version":1', '"schema_version":9', 1))
    with pytest.raises(InputError, match="there is no comparison at"):
        Comparison.load(tmp_path / "none.json")


class Stop(Exception):
    pass


def stop_after(count: int) -> Any:
    def progress(made: Progress) -> None:
        if made.made == count:
            raise Stop

    return progress


def test_what_was_interrupted_goes_on_where_it_was(tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    whole = compare(story_graph(), rows())
    with pytest.raises(Stop):
        compare(story_graph(), rows(), out=out, on_progress=stop_after(57), concurrency=1)
    out.write_bytes(out.read_bytes()[:-9])  # as if the power had failed in the last line
    seen: list[Progress] = []
    reader = Reader("reader")
    found = compare(story_graph(reader), rows(), out=out, on_progress=seen.append, concurrency=1)
    assert (seen[0].done, seen[-1].done, seen[-1].made) == (56, 160, 104)
    assert len(reader.turns) == 1 + 24 + 2 * 40  # a waking run; the rest of cache; both runs of mismatched
    assert [row.quality for row in found.rows] == [row.quality for row in whole.rows]
    assert (found.differences, found.verdicts) == (whole.differences, whole.verdicts)


def test_ctrl_c_frees_everything_and_loses_nothing(tmp_path: Path) -> None:
    def interrupt(made: Progress) -> None:
        if made.made == 30:
            signal.raise_signal(signal.SIGINT)

    answerer = Answerer("answerer")
    with pytest.raises(KeyboardInterrupt):
        compare(story_graph(answerer), rows(), out=tmp_path / "r.jsonl", on_progress=interrupt)
    assert answerer.closed == 1  # the one of `alone`
    seen: list[Progress] = []
    found = compare(story_graph(), rows(), out=tmp_path / "r.jsonl", on_progress=seen.append)
    assert 30 <= seen[0].done < 160
    assert found.verdicts == compare(story_graph(), rows()).verdicts


def test_a_finished_comparison_runs_nothing_again_and_takes_more_variants(tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    compare(story_graph(), rows(), out=out, variants=["text"])
    reader = Reader("reader")
    compare(story_graph(reader), rows(), out=out, variants=["text"])
    assert not reader.turns
    found = compare(story_graph(reader), rows(), out=out, variants=["text", "alone"])
    assert not reader.turns
    assert quality(found) == {"text": 1.0, "alone": 0.0}
    assert len(list(tmp_path.iterdir())) == 1


def test_other_data_or_another_recipe_begins_a_file_of_its_own(tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    compare(story_graph(), rows(4), out=out, variants=["text"])
    other = compare(story_graph(), rows(5), out=out, variants=["text"])
    compare(story_graph(description="another"), rows(4), out=out, variants=["text"])
    assert len(list(tmp_path.iterdir())) == 3
    assert other.results_file != "r.jsonl"


def test_an_example_that_fails_is_left_out_everywhere() -> None:
    class Fragile(Reader):
        async def turn(self, turn: Any) -> Any:
            if turn.inputs["context"] == "story 7" and turn.needs_cache:
                raise ModelError("too long")
            return await super().turn(turn)

    found = compare(story_graph(Fragile("reader")), rows(), variants=["text", "cache"])
    text, cache = found.rows
    assert (text.examples, cache.examples, text.failed, cache.failed) == (39, 39, 0, 1)
    assert "1 examples failed in cache and are left out everywhere (agent 'reader' failed: too long)" in found.verdicts


def test_a_variant_in_which_all_fails_is_not_available_and_the_rest_stands() -> None:
    class Broken(Reader):
        async def turn(self, turn: Any) -> Any:
            if turn.needs_cache:
                raise ModelError("no room")
            return await super().turn(turn)

    found = compare(story_graph(Broken("reader")), rows())
    assert quality(found) == {"text": 1.0, "alone": 0.0}
    assert "cache could not run: every example failed: agent 'reader' failed: no room" in found.verdicts


def sampling(**generate: Any) -> dict[str, Any]:
    return {
        "reader": {"model": "small", "prompt": "{{ context }}", "generate": {"max_new_tokens": 0}},
        "answerer": {"model": "small", "prompt": "{{ reader }}", "generate": {"temperature": 1.0, **generate}},
    }


@pytest.mark.parametrize(
    ("parts", "runs"),
    [({}, {"text": 1, "mismatched": 3}), ({"agents": sampling()}, {"text": 3, "mismatched": 3})],
)
def test_only_what_is_random_is_repeated(parts: dict[str, Any], runs: dict[str, int]) -> None:
    found = compare(story_graph(**parts), rows(4), variants=list(runs), seeds=3, seed=5)
    for name, count in runs.items():
        assert {record.seed for record in found.records_of(name)} == set(range(5, 5 + count))
    assert {difference.test for difference in found.differences} == {"paired bootstrap"}


def test_the_sharer_alone_answers_the_receivers_prompt_with_its_own_model() -> None:
    agents = {
        "reader": {"model": "big", "prompt": "{{ context }}"},
        "answerer": {"model": "small", "prompt": "{{ reader }} {{ question }}"},
    }
    found = compare(story_graph(agents=agents), rows(4), variants=["sharer", "identical"])
    sharer, identical = found.rows
    assert sharer.quality["accuracy"].value == 0.0
    assert identical.why_not == "there is no fuser 'm--m' of the receiver's model with itself"
    same = compare(story_graph(), rows(4), variants=["sharer", "alone"])
    assert same.rows[0].why_not is not None


def test_identical_takes_any_translator_of_the_receivers_model_with_itself(tmp_path: Path) -> None:
    (tmp_path / "itself").mkdir()
    agents = {
        "reader": {"model": "big", "prompt": "{{ context }}"},
        "answerer": {"model": "small", "prompt": "{{ reader }} {{ question }}"},
    }
    graph = story_graph(agents=agents, folder=tmp_path)
    (variant,) = make_variants(["identical@./itself"], graph, 4)
    assert variant.graph is not None
    assert variant.graph.spec.speaker("reader").model == "small"
    assert [getattr(edge, "fuser", None) for edge in variant.graph.spec.edges] == ["./itself"]
    with pytest.raises(InputError, match="identical@./nothing' can't run: there is no fuser"):
        make_variants(["identical@./nothing"], graph, 4)


def test_a_trained_prefix_needs_the_output_agents_model_in_this_process(tmp_path: Path) -> None:
    save_fuser(new_prefix(ModelEnd(name="m", geometry=Geometry(2, 1, 4)), 3), tmp_path / "prefix")
    found = compare(story_graph(folder=tmp_path), rows(4), variants=["text", "tuned@./prefix"])
    assert found.rows[1].why_not == "a trained prefix needs the model of agent 'answerer' in this process"


def test_the_ceiling_hands_over_all_that_a_writer_read() -> None:
    agents = {
        "reader": {"model": "small", "prompt": "{{ context }}"},
        "answerer": {"model": "small", "prompt": "{{ reader }} {{ question }}"},
    }
    found = compare(story_graph(agents=agents), rows(4), variants=["text", "ceiling"])
    assert [row.same_as for row in found.rows] == [None, None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variants": ["cahce"]}, "no variant 'cahce'; did you mean 'cache'"),
        ({"variants": ["text:both"]}, "no variant 'text:both'"),
        ({"variants": ["text", "text"]}, "named twice"),
        ({"variants": ["text@./made"]}, "only a variant with caches can"),
        ({"variants": ["cache@"]}, "only a variant with caches can"),
        ({"variants": ["cache@nobody"]}, "'cache@nobody' can't run: there is no fuser 'nobody'"),
        ({"variants": ["text", "cache", "cache@mean"]}, "name two or more, as in cache@seed-1,cache@seed-2,cache@mean"),
        ({"limit": 0}, "limit must be 1 or more"),
        ({"seeds": 0}, "seeds must be 1 or more"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"concurrency": 0}, "concurrency must be 1 or more"),
        ({"limit": 1}, "there is only one; give more examples"),
        ({"metrics": ["bleu"]}, "no metric 'bleu'"),
        ({"columns": {"qestion": "q"}}, "did you mean 'question'"),
    ],
)
def test_what_is_asked_wrongly_is_said_before_anything_loads(options: dict[str, Any], message: str) -> None:
    reader = Reader("reader")
    with pytest.raises(InputError, match=message):
        compare(story_graph(reader), rows(), **options)
    assert not reader.opened


def test_choices_need_an_output_agent_that_writes_and_is_here() -> None:
    silent = {**sampling(), "answerer": {"model": "small", "prompt": "{{ reader }}", "generate": {"max_new_tokens": 0}}}
    with pytest.raises(InputError, match="'answerer' writes none"):
        compare(story_graph(agents=silent), rows())
    models = {"small": {"base_url": "http://localhost:1/v1", "model": "x"}}
    with pytest.raises(InputError, match="'answerer' is behind an endpoint; use a metric of replies"):
        compare(story_graph(models=models), rows())


def test_an_agent_that_can_not_score_fails_its_examples_with_a_remedy() -> None:
    found = compare(story_graph(ScriptedAgent("answerer")), rows(3), variants=["text"])
    assert "can't score choices; use a metric of replies" in str(found.rows[0].why_not)
    replies = compare(story_graph(ScriptedAgent("answerer", "right")), rows(3), variants=["text"], metrics=["contains"])
    assert replies.rows[0].quality["contains"].value == 1.0


def test_examples_that_are_alike_have_no_mismatched_cache() -> None:
    found = compare(story_graph(), rows(1) * 5)
    assert "mismatched could not run: all examples have the same inputs" in found.verdicts[-1]


def test_edges_without_a_cache_leave_the_controls_without_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    found = compare(story_graph(), rows(4), variants=["text", "cache", "mismatched"])
    assert (
        "cache: the cache was never used; the edges fell back to text: agent 'reader' follows a script"
        in found.verdicts[0]
    )
    assert "no cache arrived that the control could replace" in str(found.rows[2].why_not)


def test_the_users_own_agents_stay_open_and_those_of_variants_are_closed() -> None:
    reader, answerer = Reader("reader"), Answerer("answerer")
    graph = story_graph(reader, answerer)
    compare(graph, rows(3))
    assert (reader.opened, reader.closed) == (1, 0)
    assert (answerer.opened, answerer.closed) == (2, 1)  # once as the graph's, once alone
    graph.close()
    assert (reader.closed, answerer.closed) == (1, 2)


@pytest.mark.anyio
async def test_it_runs_under_both_event_loops_and_can_be_cancelled(tmp_path: Path) -> None:
    found = await acompare(story_graph(), rows(5), out=tmp_path / "a.jsonl")
    assert quality(found)["cache"] == 1.0
    stuck = Answerer("answerer")
    stuck.gate, stuck.entered = anyio.Event(), anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(acompare, story_graph(stuck), rows(5))
        await stuck.entered.wait()
        group.cancel_scope.cancel()
