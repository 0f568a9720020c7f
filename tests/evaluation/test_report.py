import html
import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browser import Page, chromium, open_page

from cachegraph.agents.base import ChoiceScore, Timing, Tokens
from cachegraph.channels.payload import EdgeReport
from cachegraph.errors import ConfigError
from cachegraph.evaluation.comparison import Comparison, MetricInfo
from cachegraph.evaluation.environment import Environment
from cachegraph.evaluation.metrics import METRICS
from cachegraph.evaluation.records import EdgeRecord, ExampleRecord
from cachegraph.evaluation.report import write_report
from cachegraph.evaluation.report.latency import median_interval
from cachegraph.evaluation.report.questions import questions
from cachegraph.evaluation.report.tables import agents
from cachegraph.evaluation.summary import summarise
from cachegraph.evaluation.variants import Variant
from cachegraph.evaluation.verdict import verdicts
from cachegraph.graph.data.examples import Example
from cachegraph.graph.run.result import AgentResult

VARIANTS = ("text", "cache", "both", "alone", "mismatched", "zero")
HOSTILE = (
    '</script><script>alert(1)</script><img src="http://evil.example/x.png" onerror=alert(2)>'
    " {{ 7*7 }} $\\frac{$ \u202e"
)
RECIPE = """
version: 1
name: duo
models: {m: some-model}
inputs: {question: {}}
agents:
  reader: {model: m, prompt: "{{ question }}"}
  answerer: {model: m, prompt: "{{ reader }} {{ question }}"}
edges: [{from: reader, to: answerer, channel: cache}]
output: answerer
"""
# Of 8 examples in turn: whether text, and whether cache is right.
TURNS = [
    (True, True),
    (True, False),
    (True, False),
    (True, False),
    (False, True),
    (False, True),
    (False, False),
    (True, True),
]


def record(variant: str, index: int, right: bool, reply: str) -> ExampleRecord:
    cached = variant not in ("text", "alone")
    agents = {
        name: AgentResult(
            "finished", reply, timing=Timing(prefill=0.2, fuse=0.1 * cached, decode=0.5), tokens=Tokens(9, 5)
        )
        for name in ("reader", "answerer")
    }
    sizes: dict[int, tuple[float | None, float | None]] = {layer: (0.1 * layer, None) for layer in range(4)}
    report = EdgeReport("cache" if cached else "text", "cache" if cached else "text", residuals=sizes if cached else {})
    scores = [ChoiceScore(-1.0 if (choice == 1) == right else -5.0, 1, 4) for choice in range(2)]
    return ExampleRecord(
        variant=variant,
        seed=0,
        index=index,
        reply=reply,
        scores=scores,
        seconds=1.0 + index / 10 + 0.3 * cached,
        first_token=0.5,
        agents=agents,
        edges=[EdgeRecord(sender="reader", receiver="answerer", report=report)],
    )


def comparison(count: int = 40, strange: str = "", long: int = 0) -> Comparison:
    texts = strange or "plain"
    examples = [
        Example(
            index=at,
            id=f"row {at} {strange}",
            inputs={"question": f"question {at}? {texts} " + "word " * long},
            choices=(f"wrong {strange}", f"right {strange}"),
            answer=1,
        )
        for at in range(count)
    ]
    records = []
    for variant in VARIANTS:
        for at in range(count):
            right = TURNS[at % 8][variant == "cache"] if variant in ("text", "cache") else at % 3 == 0
            records.append(record(variant, at, right, f"{variant} says {at} {texts} " + "word " * long))
    metrics = [METRICS["accuracy"], METRICS["contains"]]
    variants = [Variant(name, name) for name in VARIANTS] + [
        Variant("identical", "identical", why_not=f"none {strange}")
    ]
    found = summarise(variants, records, examples, metrics, 0)
    names = [MetricInfo(name=metric.name, unit=metric.unit) for metric in metrics]
    said = [*verdicts(found.rows, found.differences, names[0]), strange]
    return Comparison(
        graph=f"duo {strange}",
        recipe=RECIPE,
        metrics=names,
        rows=found.rows,
        differences=found.differences,
        verdicts=said,
        environment=Environment(
            data=f"rows.jsonl {strange}", data_hash="5ca1ab1e", seeds=[0], command="cachegraph compare x"
        ),
        examples=examples,
        records=records,
    )


class Structure(HTMLParser):
    """Headings, ids, and the texts of script elements."""

    def __init__(self, text: str):
        super().__init__()
        self.headings: list[int] = []
        self.ids: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append((tag, given))
        if re.fullmatch(r"h\d", tag):
            self.headings.append(int(tag[1]))
        if given.get("id"):
            self.ids.append(str(given["id"]))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(comparison(), path)
    return path


def test_warnings_stand_in_the_report_as_text(tmp_path: Path) -> None:
    lost = "cache: over this channel the output never gets the input 'topic': 'topic' -> 'writer' -x 'editor'"
    write_report(comparison().model_copy(update={"warnings": [lost, HOSTILE]}), tmp_path / "report.html")
    text = html.unescape((tmp_path / "report.html").read_text("utf-8"))
    assert lost in text
    assert "<h3>Warnings</h3>" in text
    assert all(
        tag != "img" or "evil" not in str(given)
        for tag, given in Structure((tmp_path / "report.html").read_text("utf-8")).tags
    )


def test_verdicts_numbers_and_environment_are_there_in_words(plain: Path) -> None:
    text = plain.read_text("utf-8")
    found = comparison()
    assert all(verdict in text.replace("&#39;", "'") for verdict in found.verdicts)
    for part in ("5ca1ab1e", "cachegraph compare x", "McNemar, exact", "gate closed", "first token", "what it is"):
        assert part in text
    assert text.count("<figure>") == 5  # two metrics, time, its parts, one fused edge


def test_a_mean_over_fusers_has_quality_and_no_examples_or_times(tmp_path: Path) -> None:
    found = comparison()
    cache = found.row("cache")
    assert cache is not None
    found.rows.append(cache.model_copy(update={"name": "cache@mean", "mean_of": ("cache", "zero")}))
    write_report(found, tmp_path / "mean.html")
    assert "cache@mean" in (tmp_path / "mean.html").read_text()
    assert "cache@mean" not in questions(found)["variants"]
    assert "cache@mean" not in str(agents(found))


def test_the_page_is_well_formed(plain: Path) -> None:
    page = Structure(plain.read_text("utf-8"))
    assert page.headings[0] == 1
    assert all(after <= before + 1 for before, after in zip(page.headings, page.headings[1:], strict=False))
    assert len(page.ids) == len(set(page.ids))
    assert all(given.get("scope") in ("col", "row") for tag, given in page.tags if tag == "th")


def test_the_same_comparison_gives_the_same_bytes(plain: Path, tmp_path: Path) -> None:
    write_report(comparison(), tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == plain.read_bytes()


def test_a_place_that_cannot_be_written_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"can't be written to .*missing.*report"):
        write_report(comparison(3), tmp_path / "missing" / "report.html")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="folder"):
        write_report(comparison(3), tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_half_a_character_in_a_reply_does_no_harm(tmp_path: Path) -> None:
    found = comparison(3)
    found.records[0].reply = "half \ud83d"
    write_report(found, tmp_path / "report.html")
    assert "half \ufffd" in (tmp_path / "report.html").read_text("utf-8")


def test_large_runs_stay_small_enough_to_open(tmp_path: Path) -> None:
    found = comparison(40, long=400)
    many = {
        name: [each.model_copy(update={"index": each.index + 40 * turn}) for turn in range(50) for each in each_of]
        for name, each_of in (("examples", found.examples), ("records", found.records))
    }
    write_report(found.model_copy(update=many), tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 20_000_000
    assert "more characters)" in (tmp_path / "report.html").read_text("utf-8")


def test_a_comparison_in_which_nothing_ran_has_a_report_too(tmp_path: Path) -> None:
    found = comparison(3)
    empty = found.model_copy(
        update={
            "records": [],
            "differences": [],
            "rows": [row.model_copy(update={"why_not": "no"}) for row in found.rows],
        }
    )
    write_report(empty, tmp_path / "report.html")
    assert "not available: no" in (tmp_path / "report.html").read_text("utf-8")


@pytest.mark.parametrize("count", [1, 2, 6, 40, 401])
def test_the_median_lies_in_its_interval(count: int) -> None:
    values = [math.sin(at) for at in range(count)]
    found = median_interval(values)
    assert found is not None
    assert min(values) <= found.low <= found.value <= found.high <= max(values)
    assert found.low == min(values) or count > 6


# In a browser


in_a_browser = pytest.mark.skipif(chromium() is None, reason="no chromium on this machine")


@pytest.fixture(scope="module")
def browser(plain: Path) -> Iterator[Page]:
    with open_page() as page:
        page.open(plain.as_uri())
        yield page


def choose(page: Page, name: str, value: str) -> None:
    page.run(f"(() => {{ const e = document.getElementById({name!r}); e.value = {value!r};"
             "e.dispatchEvent(new Event('change')); })()")  # fmt: skip


def shown(page: Page) -> Any:
    return page.run("document.getElementById('shown').textContent")


@in_a_browser
def test_nothing_is_fetched_and_nothing_complains(browser: Page, plain: Path) -> None:
    asked = [each["request"]["url"] for each in browser.seen("Network.requestWillBeSent")]
    assert {url for url in asked if not url.startswith("data:")} == {plain.as_uri()}
    assert not browser.seen("Runtime.exceptionThrown")
    assert not browser.seen("Runtime.consoleAPICalled")
    assert not browser.seen("Log.entryAdded")
    assert browser.run("document.querySelector('img.graph').naturalWidth") > 200


@in_a_browser
@pytest.mark.parametrize(("which", "count"), [("all", 40), ("left", 15), ("right", 10), ("wrong", 5), ("both", 10)])
def test_filters_show_the_examples_that_they_name(browser: Page, which: str, count: int) -> None:
    choose(browser, "which", which)
    rows = browser.run("document.getElementById('rows').rows.length")
    assert (shown(browser), rows) == (f"1 to {min(count, 25)} of {count} examples", min(count, 25))
    marks = browser.run(
        "[...new Set([...document.querySelectorAll('#rows tr')].map("
        "row => [...row.querySelectorAll('.mark')].map(mark => mark.textContent).join()))]"
    )
    expected = {
        "left": ["✓ right,✗ wrong"],
        "right": ["✗ wrong,✓ right"],
        "wrong": ["✗ wrong,✗ wrong"],
        "both": ["✓ right,✓ right"],
    }
    assert which == "all" or marks == expected[which]
    choose(browser, "which", "all")


@in_a_browser
def test_pages_search_and_other_variants(browser: Page) -> None:
    browser.run("document.getElementById('after').click()")
    assert shown(browser) == "26 to 40 of 40 examples"
    choose(browser, "size", "100")
    assert shown(browser) == "1 to 40 of 40 examples"
    choose(browser, "right", "zero")
    assert browser.run("document.getElementById('right-name').textContent") == "zero"
    browser.run(
        "(() => { const e = document.getElementById('search'); e.value = 'ZERO says 17';"
        "e.dispatchEvent(new Event('input')); })()"
    )
    browser.run("new Promise(done => setTimeout(done, 300))")
    assert shown(browser) == "1 to 1 of 1 examples"


@in_a_browser
def test_tables_sort_by_their_headings_both_ways(browser: Page) -> None:
    click = "document.querySelectorAll('table.sortable')[0].tHead.rows[0].cells[2].firstChild.click()"
    values = (
        "[...document.querySelectorAll('table.sortable')[0].tBodies[0].rows]"
        ".map(r => r.cells[2].dataset.value).filter(v => v).map(Number)"
    )
    browser.run(click)
    rising = browser.run(values)
    browser.run(click)
    assert rising == sorted(rising)
    assert browser.run(values) == rising[::-1]


@in_a_browser
def test_letters_stand_out_from_the_ground_in_light_dark_and_print(browser: Page) -> None:
    colours = "['body', '.drawing text'].map(s => getComputedStyle(document.querySelector(s)))"
    read = f"(() => {{ const [b, t] = {colours}; return [b.backgroundColor, b.color, t.fill]; }})()"
    for media, scheme, dark in (("", "light", False), ("", "dark", True), ("print", "dark", False)):
        browser.media(media, scheme)
        ground, ink, fill = (sum(map(int, re.findall(r"\d+", each)[:3])) for each in browser.run(read))
        assert (ground < 100) is dark
        assert min(abs(ground - ink), abs(ground - fill)) > 250
    browser.media()
    assert browser.pdf().startswith(b"%PDF")


@in_a_browser
@pytest.mark.parametrize("pixels", [1280, 400])
def test_the_page_fits_its_window(browser: Page, pixels: int) -> None:
    browser.width(pixels)
    assert browser.run("document.documentElement.scrollWidth") <= pixels


@in_a_browser
def test_nothing_is_cut_off_in_print(browser: Page) -> None:
    browser.width(720)
    browser.media("print")
    wide = "[...document.querySelectorAll('table, svg, img')].filter(e => e.getBoundingClientRect().right > 721).length"
    assert browser.run(wide) == 0
    browser.media()


@in_a_browser
def test_strangers_texts_stay_texts(tmp_path: Path) -> None:
    write_report(comparison(8, strange=HOSTILE), tmp_path / "report.html")
    with open_page() as page:
        page.open((tmp_path / "report.html").as_uri())
        asked = [each["request"]["url"] for each in page.seen("Network.requestWillBeSent")]
        assert not [url for url in asked if "evil" in url]
        assert not page.seen("Page.javascriptDialogOpening")
        assert not page.seen("Runtime.exceptionThrown")
        assert page.run("document.querySelectorAll('script').length") == 2
        assert page.run("document.querySelectorAll('img').length") == 1
        assert HOSTILE.strip() in page.run("document.querySelector('#rows td .text').textContent")
        assert page.run("document.body.textContent.includes('{{ 7*7 }}')")


@in_a_browser
def test_without_scripts_the_replies_are_there(plain: Path) -> None:
    with open_page() as page:
        page.call("Emulation.setScriptExecutionDisabled", value=True)
        page.open(plain.as_uri())
        document = page.call("DOM.getDocument", depth=-1)["root"]["nodeId"]
        rows = page.call("DOM.querySelectorAll", nodeId=document, selector="noscript .examples tbody tr")["nodeIds"]
        assert len(rows) == 40
