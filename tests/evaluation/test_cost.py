"""The cost model: predictions by hand, shapes of recipes, constants that are kept, and the command that prints them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lean_fusers import lean
from tiny import config_of, save_model, save_tokenizer
from typer.testing import CliRunner, Result

from cachegraph import Graph
from cachegraph.channels.fusers.files.weights import save_fuser
from cachegraph.cli import app
from cachegraph.engine.model.load import load_model
from cachegraph.engine.spec import ModelSpec
from cachegraph.errors import InputError, RecipeError
from cachegraph.evaluation.cost import collect, measure
from cachegraph.evaluation.cost.break_even import LONGEST, SHORTEST, break_even, curve
from cachegraph.evaluation.cost.constants import Curve, EdgeConstants, Form, ModelConstants, Point
from cachegraph.evaluation.cost.constants_cache import KeptModel
from cachegraph.evaluation.cost.predict import CostSetting, Prediction, predict
from cachegraph.evaluation.cost.shape import Shape, ShapeEdge, TurnShape, recipe_shape

RECIPES = Path(__file__).parents[2] / "recipes"


def line(fixed: float, each: float) -> Curve:
    return Curve(points=(Point(1, fixed + each), Point(1000, fixed + 1000 * each)))


def model(name: str, prefill: float = 0.001, step: float = 0.02) -> ModelConstants:
    """No fixed cost, four characters a token, no chat template; a step of several rows costs as much as one."""
    return ModelConstants(
        name=name, dtype="bfloat16", device="cpu", prefill=line(0, prefill), step=line(step, 0),
        bytes_per_position=1000, characters_per_token=4, chat_tokens=0, system_tokens=0, measured="2026-11-30",
    )  # fmt: skip


def edge_constants(form: Form, move: float, sharer: float = 0.001, size: float = 1000) -> EdgeConstants:
    return EdgeConstants(
        form=form, sharer="a", receiver="b", move=line(0, move), sharer_prefill=line(0, sharer),
        bytes_per_position=size, measured="2026-11-30",
    )  # fmt: skip


def graph(form: Form, receivers: int = 1, note: int = 0, **edge: Any) -> Shape:
    """A reader of a document of 400 tokens, and receivers that ask in 10 tokens and reply in 5."""
    reads = 1.0 if form == "fuse" else 0.0
    names = [f"r{number}" for number in range(receivers)]
    turns = [TurnShape("s", "a", 0, 0, 1.0, note)] + [TurnShape(name, "b", 1, 40, reads, 5) for name in names]
    cached: dict[str, Any] = {
        "form": form,
        "carries": "prompt",
        "needs_text": False,
        "needs_cache": form != "fuse",
        **edge,
    }
    edges = tuple(ShapeEdge("s", name, **cached) for name in names)
    return Shape(tuple(turns), edges, frozenset(names), "document", 1600.0)


def setting(form: Form, move: float = 0.0001, **more: Any) -> CostSetting:
    models = {"a": model("a", 0.002), "b": model("b")}
    return CostSetting(models, {("a", "b", None): edge_constants(form, move, 0.002)}, **more)


def near(found: Prediction, **parts: float) -> bool:
    return all(getattr(found, name) == pytest.approx(value, rel=1e-3) for name, value in parts.items())


def test_a_curve_goes_through_its_points_and_on() -> None:
    curve_ = Curve(points=(Point(10, 1.0), Point(100, 2.0), Point(200, 4.0)))
    assert [curve_.at(size) for size in (0, 5, 10, 55, 100, 150, 200, 300)] == [0, 1, 1, 1.5, 2, 3, 4, 6]
    assert Curve(points=(Point(10, 1.0),)).at(500) == 1.0
    assert curve_.rate(200) == 50


def test_a_graft_reads_the_document_once_and_text_once_for_each_receiver() -> None:
    shape, own = graph("graft", 4), setting("graft", reuse=False)
    cache, text = predict(shape, own), predict(shape.over_text(), own)
    assert near(cache, prefill=400 * 0.002 + 4 * 10 * 0.001, move=4 * 400 * 0.0001, decode=5 * 0.02, prefilled=440)
    assert near(text, prefill=4 * 410 * 0.001, move=0, decode=5 * 0.02, prefilled=1640)  # the reader reads nothing
    assert cache.bytes == 4 * 400 * 1000
    assert text.bytes == 4 * 1600
    assert cache.seconds == pytest.approx(cache.prefill + cache.move + cache.decode)


def test_a_note_is_written_over_text_only() -> None:
    shape, own = graph("translate", note=48), setting("translate")
    cache, text = predict(shape, own), predict(shape.over_text(), own)
    assert near(cache, prefill=400 * 0.002 + 10 * 0.001, decode=5 * 0.02, generated=5)
    assert near(text, prefill=400 * 0.002 + (10 + 48) * 0.001, decode=(48 + 5) * 0.02, generated=53)
    assert near(predict(shape, replace(own, replies={"r0": 2})), decode=2 * 0.02)


def test_a_sharer_that_needs_few_layers_costs_as_much_less() -> None:
    own = setting("translate")
    half = CostSetting(own.models, {("a", "b", None): edge_constants("translate", 0.0001, 0.001)})
    assert near(predict(graph("translate"), half), prefill=400 * 0.001 + 10 * 0.001)


def test_a_fused_receiver_reads_all_itself_and_the_sharer_reads_it_too() -> None:
    found = predict(graph("fuse"), setting("fuse"))
    assert near(found, prefill=410 * 0.001 + 410 * 0.002, move=410 * 0.0001, prefilled=820)
    own_prompt = predict(graph("fuse", needs_cache=True), setting("fuse"))
    assert near(own_prompt, prefill=410 * 0.001 + 400 * 0.002)


def test_receivers_that_begin_alike_find_the_text_that_another_has_read() -> None:
    shape = graph("graft", 3).over_text()
    found = predict(shape, setting("graft"))
    assert near(found, prefilled=410 + 2 * (410 - 3 * 128))  # whole blocks
    apart = replace(shape, edges=tuple(replace(edge, opening=edge.receiver) for edge in shape.edges))
    assert near(predict(apart, setting("graft")), prefilled=3 * 410)


def test_a_bandwidth_makes_bytes_take_time() -> None:
    found = predict(graph("graft"), setting("graft", bandwidth=1e6))
    assert near(found, transfer=400 * 1000 / 1e6)


def test_an_edge_without_constants_is_named() -> None:
    own = setting("graft")
    found = predict(graph("graft"), CostSetting(own.models, {}))
    assert found.unknown == ["s → r0"]
    assert break_even(graph("graft"), graph("graft").edges[0], CostSetting(own.models, {}), 1, 1600) is None


@pytest.mark.parametrize(("receivers", "shortest"), [(1, None), (2, SHORTEST), (8, SHORTEST)])
def test_a_graft_pays_from_two_receivers_on(receivers: int, shortest: int | None) -> None:
    own = CostSetting({"a": model("a")}, {("a", "a", None): edge_constants("graft", 0.0001)}, reuse=False)
    shape = graph("graft")
    same = replace(shape, turns=tuple(replace(turn, model="a") for turn in shape.turns))
    found = break_even(same, same.edges[0], own, receivers, 1600)
    assert found is not None
    assert (found.shortest, found.longest) == (shortest, None if shortest is None else LONGEST)


def test_the_least_bandwidth_is_the_one_at_which_both_take_as_long() -> None:
    shape, own = graph("graft", 1, note=20), setting("graft")
    found = break_even(shape, shape.edges[0], own, 2, 1600)
    assert found is not None
    assert found.bandwidth is not None
    two = graph("graft", 2, note=20)
    slow = replace(own, bandwidth=found.bandwidth)
    assert predict(two, slow).seconds == pytest.approx(predict(two.over_text(), slow).seconds, rel=1e-6)
    assert found.cache < found.text
    lines = curve(shape, shape.edges[0], own, 2)
    assert lines is not None
    assert (lines.tokens[0], lines.tokens[-1], lines.receivers) == (SHORTEST, LONGEST, 2)


def test_a_translation_that_costs_more_than_a_note_pays_for_short_documents_only() -> None:
    shape = graph("translate", note=20)  # 20 steps of 0.02 s, and 20 tokens
    found = break_even(shape, shape.edges[0], setting("translate", move=0.001), 1, 1600)
    assert found is not None
    assert found.shortest == SHORTEST
    assert found.longest == pytest.approx(420, rel=0.2)


@pytest.mark.parametrize(
    ("recipe", "forms", "documents"),
    [
        ("document-relay", ["graft"] * 4 + [None] * 4, {"reader": 1.0}),
        ("story-relay", ["translate"], {"reader": 1.0}),
        ("word-duo", ["fuse"], {}),
    ],
)
def test_the_shape_of_a_recipe_is_known_without_models(
    recipe: str, forms: list[str | None], documents: dict[str, float]
) -> None:
    spec = Graph.from_yaml(RECIPES / f"{recipe}.yaml").spec
    shape = recipe_shape(spec, RECIPES)
    assert [edge.form for edge in shape.edges] == forms
    assert {turn.name: turn.documents for turn in shape.turns if turn.documents} == documents
    assert [turn.name for turn in shape.turns] == sorted(
        (t.name for t in shape.turns), key=lambda name: shape.turn(name).level
    )


def test_what_a_shape_takes_for_granted_is_said() -> None:
    spec = Graph(
        name="odd",
        models={"far": {"base_url": "http://localhost:1/v1", "model": "x"}, "m": "smollm2-135m-instruct"},
        inputs={"number": {}},
        agents={
            "asked": {"model": "far", "prompt": "{{ number }}"},
            "counts": {"model": "m", "prompt": "{% for n in range(number | int) %}{{ n }}{% endfor %} {{ asked }}"},
        },
        edges=[{"from": "asked", "to": "counts"}],
        output="counts",
    ).spec
    said = "\n".join(recipe_shape(spec, Path()).assumed)
    assert "input 'number' has no default: 40 characters" in said
    assert "agent 'asked' has no local model" in said


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, a fuser between them, and a recipe."""
    place = tmp_path_factory.mktemp("costs")
    for seed, kind in enumerate(("llama", "qwen2")):
        save_tokenizer(save_model(config_of(kind), place / kind, seed=seed))
    save_fuser(lean(load_model(place / "llama"), load_model(place / "qwen2")), place / "fuser")
    (place / "duo.yaml").write_text(
        "version: 1\nname: duo\nmodels: {small: ./llama, other: ./qwen2}\n"
        "inputs: {document: {default: Anna keeps bees on the roof of the library.}}\nagents:\n"
        '  expert: {model: other, prompt: "{{ document }}", generate: {max_new_tokens: 3, ignore_eos: true}}\n'
        '  answerer: {model: small, prompt: "{{ expert }} {{ document }}", generate: {max_new_tokens: 3}}\n'
        "edges: [{from: expert, to: answerer, channel: cache, fuser: ./fuser}]\noutput: answerer\n"
    )
    return place


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CACHEGRAPH_HOME", str(tmp_path))
    monkeypatch.setenv("CACHEGRAPH_KERNELS", "off")  # which would be compiled in this new home
    monkeypatch.setattr(measure, "LENGTHS", (16, 64))
    monkeypatch.setattr(measure, "POSITIONS", (16, 48))
    monkeypatch.setattr(measure, "REPEATS", 1)
    return tmp_path


def plan(*arguments: object) -> Result:
    result = CliRunner().invoke(app, ["plan", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_constants_are_measured_once_and_kept(folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = plan(folder / "duo.yaml", "--check")
    assert "expert → answerer: cache, fuses, by ./fuser" in first.stdout
    assert "measuring the fuse of expert → answerer" in first.stderr
    assert "where a cache is faster than text" in first.stdout
    assert "assumed: edges stay in this process's memory" in first.stdout
    assert "checked: 3 runs each" in first.stdout
    assert len(list((home / "costs").iterdir())) == 3
    monkeypatch.setattr(collect, "measure_missing", lambda *_, **__: pytest.fail("measured again"))
    found = json.loads(plan(folder / "duo.yaml", "--json", "--tokens", "100", "--bandwidth", "1Gbit/s").stdout)
    assert found["assumed"]["bandwidth"] == 125e6
    assert [each["receivers"] for each in found["break_even"]] == [1, 2, 4, 8]
    assert found["predictions"]["text"]["generated"] == 6
    assert found["predictions"]["as the recipe is"]["bytes"] > found["predictions"]["text"]["bytes"]
    assert found["checked"] == []
    (curves,) = collect.kept_curves(Graph.from_yaml(folder / "duo.yaml"))
    assert (curves.form, curves.receivers) == ("fuse", 1)


def test_constants_hold_for_the_machine_and_its_settings(
    folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    KeptModel(ModelSpec(source="./llama"), folder).write(model("llama"))
    assert KeptModel(ModelSpec(source="./llama"), folder).read() == model("llama")
    assert KeptModel(ModelSpec(source="./llama", dtype="float32"), folder).read() is None
    assert KeptModel(ModelSpec(source="./qwen2"), folder).read() is None
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert KeptModel(ModelSpec(source="./llama"), folder).read() is None


def test_without_models_the_plan_says_what_is_known(folder: Path, home: Path, tmp_path: Path) -> None:
    (tmp_path / "lost.yaml").write_text((folder / "duo.yaml").read_text().replace("./", "./none/"))
    result = plan(tmp_path / "lost.yaml")
    assert result.exit_code == 0
    assert "duo: 2 agents, 1 edge" in result.stdout
    assert "longest input: document, 43 characters" in result.stdout
    assert "note: costs are not known: there is no model folder" in result.stdout


def test_a_recipe_of_text_edges_is_planned_with_caches(home: Path, folder: Path) -> None:
    (folder / "text.yaml").write_text(
        (folder / "duo.yaml").read_text().replace(", channel: cache, fuser: ./fuser", "").replace("./qwen2", "./llama")
    )
    said = plan(folder / "text.yaml").stdout
    assert "all its edges are text edges; this is the plan with cache on every edge" in said
    assert "cache, grafts the sender's reply" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bandwidth", "fast"], "--bandwidth 'fast' is not a size per second; write it as 10GB/s"),
        (["--bandwidth", "10"], "--bandwidth '10' is not a size per second; write it as 10GB/s"),
        (["--bandwidth", "0GB/s"], "--bandwidth must be more than 0"),
        (["--tokens", "0"], "--tokens must be 1 or more, not 0"),
    ],
)
def test_a_wrong_option_is_named(folder: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan(folder / "duo.yaml", *arguments)


def test_a_wrong_recipe_is_an_error_as_everywhere(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there is no such file"):
        plan(tmp_path / "none.yaml")
