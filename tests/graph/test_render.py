import itertools
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cachegraph.cli.recipes import register
from cachegraph.errors import ConfigError, InputError, RecipeError
from cachegraph.graph.draw.layout import Size, arrange
from cachegraph.graph.draw.render import to_mermaid, to_svg, to_text
from cachegraph.graph.plan.plan import plan
from cachegraph.graph.plan.recipe_warnings import expected_warnings
from cachegraph.graph.recipe.load import parse_recipe
from cachegraph.graph.recipe.spec import GraphSpec

SVG = "{http://www.w3.org/2000/svg}"
RECIPE = """\
version: 1
name: duo
description: Two of them.
models:
  small: {source: smollm2}
  far: {base_url: https://example.com/v1, model: big}
inputs:
  question: {description: What to ask.}
  tone: {default: kind}
agents:
  expert: {model: small, prompt: "{{ question }}"}
  critic: {model: far, prompt: "{{ question }}", system: "{{ tone }}"}
  answerer: {model: small, prompt: "{{ expert }} {{ critic }}"}
edges:
  - {from: expert, to: answerer, channel: cache, fuser: pair}
  - {from: critic, to: answerer}
output: answerer
"""


def spec(text: str = RECIPE) -> GraphSpec:
    return parse_recipe(text)


def test_the_outline_says_who_reads_what() -> None:
    assert to_text(spec()) == (
        "duo: Two of them.\n"
        "  input question (required): What to ask.\n"
        "  input tone (default 'kind')\n"
        "  1. expert    smollm2  reads question\n"
        "  1. critic    big at example.com  reads question, tone\n"
        "  2. answerer  smollm2  reads expert (cache · pair), critic (text)  <- output\n"
    )


def test_mermaid_styles_edges_by_channel() -> None:
    assert to_mermaid(spec()) == (
        "flowchart LR\n"
        '    a0["<b>expert</b><br/>smollm2"]\n'
        '    a1["<b>critic</b><br/>big at example.com"]\n'
        '    a2(["<b>answerer</b><br/>smollm2"])\n'
        '    a0 ==>|"cache · pair"| a2\n'
        "    a1 --> a2\n"
    )


def test_the_picture_holds_every_agent_and_edge() -> None:
    root = ET.fromstring(to_svg(spec()))
    words = {text.text for text in root.iter(f"{SVG}text")}
    assert {
        "duo",
        "Two of them.",
        "expert",
        "critic",
        "answerer",
        "cache · pair",
        "output",
        "reads question, tone",
    } <= words
    lines = [path.get("class") for path in root.iter(f"{SVG}path")]
    assert lines.count("line cache") == 2  # the edge and the legend
    assert len(list(root.iter(f"{SVG}polygon"))) == 2


NASTY = "<script>alert(1)</script>\"'&]]>--\x1b[2J\u202e"


def test_a_stranger_s_words_stay_words() -> None:
    text = RECIPE.replace("Two of them.", json.dumps(NASTY)).replace("smollm2", json.dumps(f"a/{NASTY}"))
    text = text.replace("fuser: pair", f"fuser: {json.dumps(NASTY)}")
    graph = parse_recipe(text)
    root = ET.fromstring(to_svg(graph))
    tags = {element.tag.removeprefix(SVG) for element in root.iter()}
    assert tags <= {"svg", "title", "style", "rect", "text", "g", "path", "polygon"}
    assert not any(name.startswith("on") or "href" in name for element in root.iter() for name in element.attrib)
    assert "\x1b" not in to_text(graph)
    assert "\u202e" not in to_text(graph)
    mermaid = to_mermaid(graph)
    assert "<script" not in mermaid
    assert all(line.count('"') % 2 == 0 for line in mermaid.splitlines())


def shape(agents: int, edges: list[tuple[int, int]]) -> GraphSpec:
    data = {
        "version": 1,
        "name": "x",
        "agents": {f"agent_{number}": {"model": "some-model", "prompt": ""} for number in range(agents)},
        "edges": [{"from": f"agent_{left}", "to": f"agent_{right}", "channel": "auto"} for left, right in edges],
        "output": f"agent_{agents - 1}",
    }
    return GraphSpec.model_validate(data)


SHAPES = {
    "one": shape(1, []),
    "chain of 12": shape(12, [(number, number + 1) for number in range(11)]),
    "fan of 8": shape(10, [(0, number) for number in range(1, 9)] + [(number, 9) for number in range(1, 9)]),
    "diamond": shape(4, [(0, 1), (0, 2), (1, 3), (2, 3), (0, 3)]),
    "everybody reads all": shape(9, list(itertools.combinations(range(9), 2))),
}


@pytest.mark.parametrize("name", SHAPES)
def test_boxes_neither_overlap_nor_leave_the_picture(name: str) -> None:
    root = ET.fromstring(to_svg(SHAPES[name]))
    wide, tall = float(root.get("width", "")), float(root.get("height", ""))
    boxes = [
        tuple(float(rect.get(key, "")) for key in ("x", "y", "width", "height"))
        for rect in root.iter(f"{SVG}rect")
        if "box" in rect.get("class", "")
    ]
    assert len(boxes) == len(SHAPES[name].agents)
    for x, y, width, height in boxes:
        assert x >= 0
        assert y >= 0
        assert x + width <= wide
        assert y + height <= tall
    for (x1, y1, w1, h1), (x2, y2, w2, h2) in itertools.combinations(boxes, 2):
        assert x1 + w1 <= x2 or x2 + w2 <= x1 or y1 + h1 <= y2 or y2 + h2 <= y1
    for path in root.iter(f"{SVG}path"):
        numbers = [float(number) for number in re.findall(r"-?[\d.]+", path.get("d", ""))]
        assert all(0 <= x <= wide for x in numbers[::2])
        assert all(0 <= y <= tall for y in numbers[1::2])


@settings(deadline=None)
@given(st.sets(st.tuples(st.integers(0, 9), st.integers(0, 9)).filter(lambda pair: pair[0] < pair[1]), max_size=25))
def test_no_line_runs_through_a_box_that_it_passes(pairs: set[tuple[int, int]]) -> None:
    graph = shape(10, sorted(pairs))
    order = plan(graph)
    sizes = {name: Size(100, 50) for name in graph.agents}
    edges = [(edge.sender, edge.receiver) for edge in graph.edges]
    layout = arrange(order.generations, edges, sizes, [60.0] * len(order.generations))
    for left, right in itertools.combinations(graph.agents, 2):
        (x1, y1), (x2, y2) = layout.boxes[left], layout.boxes[right]
        assert abs(x1 - x2) >= 100 or abs(y1 - y2) >= 50
    for points in layout.routes.values():
        for along, across in points:
            for x, y in layout.boxes.values():
                assert not (abs(along - x) < 50 and abs(across - y) < 25)


def test_a_graph_too_large_for_a_picture_says_so() -> None:
    with pytest.raises(InputError, match="use the text format"):
        to_svg(shape(500, []))


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    register(app)
    return app


def test_validate_tells_all_problems_of_all_recipes(app: typer.Typer, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(RECIPE.replace("smollm2", "smollm2-135m-instruct"))
    bad.write_text(RECIPE.replace("output: answerer", "output: nobody").replace("smollm2", "gone"))
    done = CliRunner().invoke(app, ["validate", str(good)])
    first, warning, *_ = done.output.splitlines()
    assert (done.exit_code, first) == (0, f"{good}: fine, 3 agents, 2 edges")
    assert f"{good}:15:5: edge 'expert' -> 'answerer' hands over text: there is no fuser 'pair'" in warning
    done = CliRunner().invoke(app, ["validate", str(good), str(bad)])
    assert isinstance(done.exception, RecipeError)
    assert [problem.line for problem in done.exception.problems] == [5, 17]
    done = CliRunner().invoke(app, ["validate", "--json", str(good), str(bad)])
    assert done.exit_code == 2
    reports = json.loads(done.output)
    assert [report["valid"] for report in reports] == [True, False]
    assert reports[1]["problems"][1]["message"] == "output 'nobody' is not an agent of this recipe"


def test_show_and_schema_write_whole_files(app: typer.Typer, tmp_path: Path) -> None:
    recipe = tmp_path / "duo.yaml"
    recipe.write_text(RECIPE)
    warnings, _ = expected_warnings(spec(), tmp_path)
    assert CliRunner().invoke(app, ["show", str(recipe)]).output == to_text(spec(), warnings)
    assert CliRunner().invoke(app, ["show", str(recipe), "--format", "mermaid"]).output == to_mermaid(spec(), warnings)
    picture = tmp_path / "duo.svg"
    assert CliRunner().invoke(app, ["show", str(recipe), "-f", "svg", "-o", str(picture)]).exit_code == 0
    assert picture.read_text(encoding="utf-8") == to_svg(spec(), warnings)
    done = CliRunner().invoke(app, ["schema", "--output", str(tmp_path / "gone" / "schema.json")])
    assert isinstance(done.exception, ConfigError)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["duo.svg", "duo.yaml"]
