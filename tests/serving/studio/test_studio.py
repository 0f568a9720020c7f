"""The studio in a real browser, against a real server."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from browser import Page, chromium, open_page
from free_port import lasting_port
from live_server import Running, send, served
from server_graphs import Gate, asking, gated, held, scripted_duo, tiny_duo, tiny_team, wordy

from cachegraph.graph.graph import Graph
from cachegraph.serving.auth import read_keys
from cachegraph.serving.config import ServerLimits

pytestmark = pytest.mark.skipif(chromium() is None, reason="no chromium on this machine")

STORY = "the sea is green and the moon is a stone"
HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'


@pytest.fixture(scope="module", autouse=True)
def own_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CACHEGRAPH_STORE", str(tmp_path_factory.mktemp("store") / "runs.db"))
        yield


@pytest.fixture(scope="module")
def server(own_store: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    reports = tmp_path_factory.mktemp("reports")
    (reports / "duo.html").write_text(
        "<p>report</p><script>try { parent.document.title = 'reached'; } catch { document.title = 'alone'; }"
        "document.querySelector('p').textContent = document.title + ' ' + origin;</script>"
    )
    graphs = [tiny_duo(), scripted_duo(), asking(), wordy(), tiny_team(tmp_path_factory.mktemp("team"))]
    with served(graphs, allow_upload=True, reports=reports) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with open_page() as page:
        page.width(1280)
        yield page


@pytest.fixture
def page(browser: Page, server: Running) -> Page:
    """The page, freshly loaded, at the recipe with the tiny model."""
    return at(browser, server, "#/recipe/pair")


def at(browser: Page, server: Running, place: str) -> Page:
    browser.open("about:blank")
    browser.events.clear()
    browser.open(f"{server.url}/{place}")
    browser.wait_for("document.querySelector('#main h1, #main h2, dialog[open]') !== null")
    if place.startswith("#/recipe/"):
        browser.wait_for("document.querySelector('.graph button') !== null")  # drawn once its width is known
    return browser


def content(selector: str) -> str:
    return f"document.querySelector({json.dumps(selector)}).textContent"


def shows(page: Page, selector: str, words: str) -> None:
    """Wait until the element's text has these words."""
    page.wait_for(f"{content(selector)}.includes({json.dumps(words)})")


def fill(page: Page, selector: str, value: str) -> None:
    page.wait_for(f"document.querySelector({json.dumps(selector)}) !== null")
    page.run(f"""(() => {{
        const field = document.querySelector({json.dumps(selector)});
        field.value = {json.dumps(value)};
        for (const kind of ["input", "change"]) field.dispatchEvent(new Event(kind, {{bubbles: true}}));
    }})()""")


def click(page: Page, selector: str) -> None:
    page.wait_for(f"document.querySelector({json.dumps(selector)}) !== null")
    page.run(f"document.querySelector({json.dumps(selector)}).click()")


def focus(page: Page, selector: str) -> None:
    page.wait_for(f"document.querySelector({json.dumps(selector)}) !== null")
    page.run(f"document.querySelector({json.dumps(selector)}).focus()")


def ended(page: Page, status: str = "finished", lanes: int = 1) -> None:
    page.wait_for(f"document.querySelectorAll('.lane h2 .status.{status}').length === {lanes}")


def complaints(page: Page) -> list[Any]:
    logged = [each for each in page.seen("Log.entryAdded") if each["entry"]["level"] in ("warning", "error")]
    return [*page.seen("Runtime.exceptionThrown"), *page.seen("Runtime.consoleAPICalled"), *logged]


def latest(server: Running) -> dict[str, Any]:
    run = server.get("/runs?limit=1").json()["runs"][0]["id"]
    found: dict[str, Any] = server.get(f"/runs/{run}").json()
    return found


def test_a_recipe_is_drawn_and_run(page: Page, server: Running) -> None:
    page.expect("[...document.querySelectorAll('.agent')].map(a => a.dataset.agent)", ["reader", "writer"])
    page.expect(content(".edge .channel"), "cache")
    fill(page, "#input-story", STORY)
    click(page, "button.main")
    ended(page)
    page.wait_for("document.querySelector('[data-agent=writer]').classList.contains('finished')")
    page.expect(content(".lane .reply"), latest(server)["text"])
    (edge,) = latest(server)["result"]["edges"]
    shows(page, ".edge .detail", f"{edge['positions_grafted']} grafted")
    page.expect("document.querySelectorAll('.bars i.decode').length", 1)
    page.wait_for("document.querySelector('.lane details').open = true")
    page.wait_for("/from reader, cache/.test(document.querySelector('.outline').textContent)")
    assert complaints(page) == []
    asked = {each["request"]["url"].split("/")[2] for each in page.seen("Network.requestWillBeSent")}
    assert asked <= {server.url.split("/")[2], ""}


def test_an_edge_is_switched_and_the_run_goes_that_way(page: Page, server: Running) -> None:
    fill(page, "[data-switch='reader>writer']", "text")
    page.expect(content(".edge .channel"), "text")
    fill(page, "#input-story", STORY)
    click(page, "button.main")
    ended(page)
    assert latest(server)["result"]["edges"][0]["channel_used"] == "text"
    page.expect(content(".lane .edge .channel"), "text")


def test_an_edge_of_an_included_recipe_is_switched_and_its_details_are_opened(browser: Page, server: Running) -> None:
    page = at(browser, server, "#/recipe/outer")
    inner = "[data-edge='team/reader>team/writer']"
    click(page, inner)
    page.expect("document.activeElement.dataset.switch", "team/reader>team/writer")
    fill(page, "[data-switch='team/reader>team/writer']", "both")
    shows(page, f"{inner} .channel", "both")
    fill(page, "#input-story", STORY)
    click(page, "button.main")
    ended(page)
    (edge,) = latest(server)["result"]["edges"]
    assert edge["channel_used"] == "both"
    shows(page, f".lane {inner} .detail", f"{edge['positions_grafted']} grafted")
    page.wait_for("document.querySelector('.lane [data-agent=\"team/writer\"]').classList.contains('finished')")
    click(page, ".lane [data-agent=team]")
    click(page, "#details [data-inner]")
    shows(page, "#details h2", "team/reader → team/writer")
    page.wait_for("document.querySelectorAll('#details .pair').length > 0")
    click(page, f".lane {inner}")
    shows(page, "#details dl", f"{edge['positions_grafted']} grafted")
    assert complaints(page) == []


def test_a_keyboard_opens_and_closes_an_included_recipe(browser: Page, server: Running) -> None:
    page = at(browser, server, "#/recipe/outer")
    drawn = "[...document.querySelectorAll('.graph button')].map(b => Object.values(b.dataset)[0])"
    all_of_it = ["team", "team", "team/reader", "team/reader>team/writer", "team/writer"]
    page.expect(drawn, all_of_it)
    page.expect("document.querySelectorAll('.frame').length", 1)
    framed = (
        "[...document.querySelectorAll('[data-agent*=\"/\"]')].every(a => { const [i, o] = [a, document.querySelector("
        "'.frame')].map(e => e.getBoundingClientRect()); return i.left > o.left && i.right < o.right &&"
        " i.top > o.top && i.bottom < o.bottom; })"
    )
    page.wait_for(framed)
    focus(page, "[data-agent=team]")
    page.press("ArrowRight")
    page.expect("document.activeElement.dataset.toggle", "team")
    page.press("Enter")
    page.expect(drawn, ["team", "team"])
    page.expect("document.activeElement.ariaExpanded", "false")
    page.press("Enter")
    page.expect(drawn, all_of_it)
    page.expect("document.activeElement.ariaLabel", "hide the agents of team")


@pytest.mark.parametrize("in_turn", [False, True])
def test_both_ways_race_side_by_side(page: Page, in_turn: bool) -> None:
    fill(page, "#input-story", STORY)
    if in_turn:
        click(page, ".check input")
    click(page, "[data-race]")
    ended(page, lanes=2)
    page.wait_for("document.querySelector('.comparison table') !== null")
    headings = "[...document.querySelectorAll('.lane > h2')].map(h => h.firstChild.textContent)"
    page.expect(headings, ["Over text", "Over cache"])
    grafted = page.wait_for(
        "[...document.querySelectorAll('.comparison tr')].find(r => /reused/.test(r.textContent)).cells[2].textContent"
    )
    assert int(grafted) > 0
    assert complaints(page) == []


def test_a_keyboard_walks_the_graph_and_opens_agents_and_edges(page: Page) -> None:
    focus(page, ".graph button")
    focused = (
        "document.activeElement.dataset.agent ?? document.activeElement.dataset.edge ?? document.activeElement.tagName"
    )
    page.press("ArrowRight")
    page.expect(focused, "reader>writer")
    page.press("ArrowRight")
    page.expect(focused, "writer")
    page.expect("getComputedStyle(document.activeElement).outlineStyle", "solid")
    fill(page, "#input-story", STORY)
    click(page, "button.main")
    ended(page)
    focus(page, "[data-agent=reader]")
    page.press("Enter")
    page.wait_for("document.querySelector('#details:not([hidden]) h2')?.textContent === 'Agent reader'")
    page.press("Escape")
    page.expect(focused, "reader")
    page.expect("document.querySelectorAll('.graph [tabindex=\"0\"]').length", 1)


def test_an_agent_shows_its_prompt_by_origin_and_an_edge_its_tokens(page: Page) -> None:
    fill(page, "#input-story", STORY)
    fill(page, "#input-question", "who?")
    click(page, "button.main")
    ended(page)
    click(page, ".lane [data-agent=writer]")
    page.wait_for("document.querySelector('#details .prompt') !== null")
    kinds = "[...document.querySelectorAll('#details .prompt mark')].map(m => [m.className, m.firstChild.textContent])"
    parts = [[kind, words.strip()] for kind, words in page.run(kinds)]
    assert ["grafted", STORY] in parts
    assert ["words", "who?"] in parts
    click(page, ".lane .edge")
    page.wait_for("document.querySelector('#details .tokens') !== null")
    grafted = page.run("document.querySelectorAll('#details .pair').length")
    shows(page, "#details dl", f"{grafted} grafted")
    click(page, "#details button")
    page.wait_for("document.getElementById('details').hidden")


def test_an_agent_lights_up_while_it_works(browser: Page, own_store: None) -> None:
    gate = Gate()
    with served([gated(gate)]) as server:
        page = at(browser, server, "#/recipe/duo")
        fill(page, "#input-question", "why?")
        click(page, "button.main")
        page.wait_for("document.querySelector('.lane [data-agent=answerer].prefill') !== null")
        gate.open.set()
        ended(page)
        page.expect(content(".lane .reply"), "at last")


def test_a_run_whose_first_events_the_server_has_dropped_is_shown_from_the_store(
    browser: Page, own_store: None
) -> None:
    gate, reply = Gate(), "a long reply " * 100
    with served([held(gate, reply)], limits=ServerLimits(event_bytes=2_000)) as server:
        run = server.post("/runs", {"graph": "duo", "inputs": {"question": "why?"}}).json()["id"]
        assert gate.entered.acquire(timeout=60)
        page = at(browser, server, f"#/run/{run}")
        page.wait_for("document.querySelector('.lane [data-agent=expert].finished') !== null")
        shows(page, ".lane h2 .status", "running")
        gate.open.set()
        ended(page)
        page.expect(content(".lane .reply"), f"answerer({reply})")


def test_what_a_model_writes_stays_text(browser: Page, server: Running) -> None:
    page = at(browser, server, "#/recipe/duo")
    fill(page, "#input-question", HOSTILE)
    click(page, "button.main")
    ended(page)
    shows(page, ".lane .reply", HOSTILE)
    page.expect("document.querySelectorAll('main img, main script').length + (window.hacked ?? 0)", 0)


def edit(page: Page) -> str:
    """Open the editor, and return its text."""
    page.wait_for("document.querySelector('.recipe-text').open = true")
    return str(page.wait_for("document.querySelector('#recipe-text').value"))


def test_an_error_is_read_at_its_line_and_mended(browser: Page, server: Running) -> None:
    page = at(browser, server, "#/recipe/duo")
    recipe = edit(page)
    wrong = recipe.replace("{{ expert }} {{ question }}", "{{ expert }} {{ qestion }}")
    fill(page, "#recipe-text", wrong)
    line = page.wait_for("document.querySelector('.lines .wrong')?.textContent")
    assert "qestion" in wrong.splitlines()[int(line) - 1]
    shows(page, ".problems", "did you mean 'question'?")
    page.wait_for("document.querySelector('button.main').disabled")
    click(page, ".problems button")
    page.expect("document.activeElement.selectionStart", wrong.index("qestion"))
    fill(page, "#recipe-text", recipe.replace("{{ expert }} {{ question }}", "{{ expert }}!"))
    page.wait_for("/changed/.test(document.querySelector('button.main').textContent)")
    fill(page, "#input-question", "why?")
    click(page, "button.main")
    ended(page)
    page.expect(content(".lane .reply"), "answerer(expert(why?))")
    assert "{{ expert }}!" not in server.get("/graphs/duo/recipe").json()["recipe"]
    assert complaints(page) == []


def test_an_agent_of_the_drawing_leads_to_its_lines(browser: Page, server: Running) -> None:
    page = at(browser, server, "#/recipe/duo")
    click(page, "[data-agent=answerer]")
    page.wait_for("document.activeElement.id === 'recipe-text' && document.activeElement.selectionStart > 0")
    found = page.run("document.activeElement.value.slice(document.activeElement.selectionStart).trimStart()")
    assert found.startswith("answerer:")


def test_a_new_agent_is_drawn_while_it_is_written(browser: Page, server: Running) -> None:
    page = at(browser, server, "#/recipe/duo")
    recipe = edit(page)
    fill(page, "#input-question", "kept?")
    added = recipe.replace("agents:\n", 'agents:\n  critic: {model: m, prompt: "{{ question }}"}\n')
    added = added.replace("edges:\n", "edges:\n  - {from: critic, to: expert}\n")
    fill(page, "#recipe-text", added)
    page.wait_for("document.querySelector('[data-agent=critic]') !== null")
    page.expect("document.querySelector('#input-question').value", "kept?")


def test_the_editor_completes_keys_and_names(browser: Page, server: Running) -> None:
    page = at(browser, server, "#/recipe/duo")
    edit(page)
    focus(page, "#recipe-text")
    fill(page, "#recipe-text", "version: 1\nname: duo\non_e")
    page.wait_for("!document.querySelector('.completions').hidden")
    page.press("Enter")
    page.wait_for("document.querySelector('#recipe-text').value.endsWith('on_error')")


def test_a_pause_is_answered_in_the_page(browser: Page, server: Running) -> None:
    page = at(browser, server, "#/recipe/asking")
    fill(page, "#input-question", "how many?")
    click(page, "button.main")
    page.wait_for("document.querySelector('.question-form') !== null")
    shows(page, ".question-form", "how many?")
    fill(page, ".question-form textarea", "seven")
    click(page, ".question-form button")
    ended(page)
    page.expect(content(".lane .reply"), "last(seven)")


def test_a_stored_run_is_replayed_from_the_history(browser: Page, server: Running) -> None:
    run = server.post("/runs", {"graph": "pair", "inputs": {"story": STORY}}).json()["id"]
    page = at(browser, server, "#/runs")
    page.wait_for(f"document.querySelector('a[href=\"#/run/{run}\"]') !== null")
    click(page, f'a[href="#/run/{run}"]')
    ended(page)
    fill(page, ".replay input", "1")
    page.wait_for("document.querySelector('[data-agent=writer]').classList.contains('waiting')")
    click(page, ".replay button")
    ended(page)
    page.wait_for("document.querySelector('[data-agent=writer]').classList.contains('finished')")


def test_a_report_is_opened_in_place_and_reaches_nothing(browser: Page, server: Running) -> None:
    page = at(browser, server, "#/reports")
    page.wait_for("!document.querySelector('nav [data-view=reports]').hidden")
    click(page, "td a")
    frame = page.wait_for("document.querySelector('iframe.report')?.src")
    assert page.run("document.querySelector('iframe.report').contentDocument") is None
    page.open(frame)
    page.wait_for(f"{content('p')}.endsWith(' null')")  # its scripts run, and its origin is that of no page


def test_the_page_comes_back_when_the_server_does(browser: Page, own_store: None) -> None:
    gate, stack = Gate(), ExitStack()
    with stack:
        port = lasting_port()
        first = stack.enter_context(served([gated(gate)], port=port))
        page = at(browser, first, "#/recipe/duo")
        fill(page, "#input-question", "why?")
        click(page, "button.main")
        page.wait_for("document.querySelector('[data-agent=answerer].prefill') !== null")
        stack.pop_all().close()  # the run is parked
        page.wait_for("!document.getElementById('banner').hidden")
        gate.open.set()
        with served([gated(gate)], port=port):  # and resumed
            ended(page)
            page.wait_for("document.getElementById('banner').hidden")
            page.expect(content(".lane .reply"), "at last")


def test_a_key_is_asked_for_and_kept_in_this_tab(browser: Page, tmp_path: Path, own_store: None) -> None:
    (tmp_path / "keys").write_text("alice secret\n")
    with served([scripted_duo()], keys=read_keys(tmp_path / "keys")) as server:
        page = at(browser, server, "")
        page.wait_for("document.getElementById('key-dialog').open")
        page.run("document.getElementById('key-input').value = 'secret'")
        click(page, "#key-use")
        page.wait_for("document.querySelector('.agent') !== null")
        fill(page, "#input-question", "why?")
        click(page, "button.main")
        ended(page)
        page.expect("[sessionStorage.length, localStorage.length, document.cookie]", [1, 0, ""])
        assert send("GET", f"{server.url}/runs").status_code == 401


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_text_stands_out_and_nothing_is_cut_off_sideways(
    browser: Page, server: Running, scheme: str, width: int
) -> None:
    browser.width(width)
    browser.media(scheme=scheme)
    try:
        page = at(browser, server, "#/recipe/pair")
        page.wait_for("document.querySelector('.agent') !== null")
        page.wait_for("document.documentElement.scrollWidth <= innerWidth")
        shades = page.run(
            "['body', '.agent', '.edge .channel', '.quiet'].map(s => { let n = document.querySelector(s), c = n;"
            "while (getComputedStyle(c).backgroundColor === 'rgba(0, 0, 0, 0)') c = c.parentElement;"
            "return [getComputedStyle(n).color, getComputedStyle(c).backgroundColor]; })"
        )
        assert min(contrast(*each) for each in shades) >= 4.5
    finally:
        browser.width(1280)
        browser.media()


def test_long_names_leave_room_for_an_agents_state(browser: Page, server: Running) -> None:
    page = at(browser, server, "#/recipe/wordy")
    inside = (
        "[...document.querySelectorAll('.agent .status, .agent .tag')].map(e => e.getBoundingClientRect().right <="
        " e.closest('.agent').getBoundingClientRect().right)"
    )
    page.expect(inside, [True, True])


def test_a_recipe_without_edges_offers_no_race(browser: Page, server: Running) -> None:
    page = at(browser, server, "#/recipe/wordy")
    page.wait_for("document.querySelector('[data-race]').getClientRects().length === 0")


@pytest.mark.models
def test_the_demo_models_race_over_text_and_cache(browser: Page, demo_engines: Any, tmp_path: Path) -> None:
    recipe = Path(__file__).parents[3] / "recipes" / "story-relay.yaml"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CACHEGRAPH_STORE", str(tmp_path / "runs.db"))
        with served([Graph.from_yaml(recipe)]) as server:
            page = at(browser, server, "#/recipe/story-relay")
            click(page, "[data-race]")
            page.wait_for("document.querySelectorAll('.lane h2 .status.finished').length === 2", 240)
            page.wait_for("document.querySelector('.comparison table') !== null")
            edges = "[...document.querySelectorAll('.lane .edge')].map(e => e.className + e.textContent)"
            page.expect(
                f"{edges}.map(edge => [/cache/.test(edge), /grafted/.test(edge)])", [[False, False], [True, True]]
            )
            page.run("document.querySelectorAll('.lane')[1].querySelector('.edge').click()")
            page.wait_for("document.querySelector('#details .tokens') !== null")
            tokens = page.run("[...document.querySelectorAll('#details .pair')].map(p => p.lastChild.textContent)")
            assert "".join(tokens).replace("␣", " ").startswith("Anna keeps bees on the roof")
            assert complaints(page) == []


def contrast(first: str, second: str) -> float:
    """The contrast of two colours by WCAG 2."""
    bright, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in colour.split("(")[1].rstrip(")").split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
