// The history: stored runs, the newest first.

import { ask } from "/studio/api.js";
import { h, setText } from "/studio/dom.js";
import { plural, seconds, when } from "/studio/format.js";

const PAGE = 25;

/** Open the view of stored runs. */
export async function runsView() {
  const chosen = new Set();
  const body = h("tbody");
  const more = h("button", { type: "button" }, "Older runs");
  const side = h("button", { type: "button", disabled: true, onclick: () => (location.hash = `#/race/${[...chosen].join("/")}`) }, "Show side by side");
  const words = h("p", { class: "quiet" });
  const pick = (id, on) => {
    chosen[on ? "add" : "delete"](id);
    side.disabled = chosen.size !== 2;
  };
  const load = async () => {
    const { runs } = await ask(`/runs?limit=${PAGE}&skip=${body.rows.length}`);
    body.append(...runs.map((run) => row(run, pick)));
    more.hidden = runs.length < PAGE;
    setText(words, body.rows.length ? "" : "There are no stored runs yet. Run a recipe, and it appears here.");
  };
  more.addEventListener("click", load);
  await load();
  const head = ["", "Run", "Recipe", "Status", "Began", "Time", "Turns"].map((name) => h("th", { scope: "col" }, name));
  const table = h("table", { class: "runs" }, h("thead", {}, h("tr", {}, head)), body);
  return { element: h("div", {}, h("h1", {}, "Runs"), words, h("div", { class: "scroll" }, table), h("p", { class: "row" }, side, more)) };
}

function row(run, pick) {
  const box = h("input", { type: "checkbox", "aria-label": `Choose run ${run.id}`, onchange: () => pick(run.id, box.checked) });
  const link = h("a", { href: `#/run/${encodeURIComponent(run.id)}` }, run.id.slice(-8));
  const cells = [box, link, run.graph, h("span", { class: `status ${run.status}` }, run.status), when(run.created), seconds(run.seconds), plural(run.turns, "turn")];
  return h("tr", {}, cells.map((cell) => h("td", {}, cell)));
}
