// The page: shows the view that the address names.

import { Unreachable, ask, useKey } from "/studio/api.js";
import { found, lost, onReturn, watchServer } from "/studio/connection.js";
import { closePanel } from "/studio/details.js";
import { h, replace } from "/studio/dom.js";
import { reportsView } from "/studio/reports_view.js";
import { recipeView } from "/studio/recipe_view.js";
import { runView, raceView } from "/studio/run_view.js";
import { runsView } from "/studio/runs_view.js";

const main = document.getElementById("main");
let view = null; // {element, close()}
let shown = 0; // counts views, so that a slow one doesn't replace a later one

async function route() {
  const number = ++shown;
  const [, name = "recipes", ...rest] = location.hash.split("/").map(decode);
  closePanel();
  view?.close?.();
  view = null;
  for (const link of document.querySelectorAll("nav a")) {
    const current = link.dataset.view === (name === "recipe" ? "recipes" : name === "run" || name === "race" ? "runs" : name || "recipes");
    link.toggleAttribute("aria-current", current);
  }
  try {
    const next = await open(name, rest);
    if (number !== shown) return next.close?.();
    view = next;
    replace(main, view.element);
    document.title = `${main.querySelector("h1, h2")?.textContent ?? ""} – cachegraph studio`;
    found();
  } catch (error) {
    if (number !== shown) return;
    if (error instanceof Unreachable) lost();
    replace(main, h("p", { class: "trouble", role: "alert" }, error.message));
  }
}

function decode(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part; // a lone percent sign
  }
}

async function open(name, rest) {
  if (name === "recipe") return recipeView(rest[0]);
  if (name === "run") return runView(rest[0]);
  if (name === "race") return raceView(rest);
  if (name === "runs") return runsView();
  if (name === "reports") return reportsView(rest[0]);
  const { graphs } = await ask("/graphs");
  if (graphs.length === 1) return recipeView(graphs[0].name);
  const items = graphs.map((graph) => h("li", {}, h("a", { href: `#/recipe/${encodeURIComponent(graph.name)}` }, graph.name), h("p", {}, graph.description)));
  return { element: h("div", {}, h("h1", {}, "Recipes"), h("ul", { class: "recipes" }, items)) };
}

function askForKey() {
  const dialog = document.getElementById("key-dialog");
  if (!dialog.open) dialog.showModal();
}

/** Show the link to the reports if the server has a folder of them. */
async function offerReports() {
  try {
    document.querySelector('nav [data-view="reports"]').hidden = !(await ask("/graphs")).reports;
  } catch {
    // The view says what is wrong.
  }
}

function takeKey() {
  const input = document.getElementById("key-input");
  if (!input.value.trim()) return;
  useKey(input.value.trim());
  input.value = "";
  document.getElementById("key-dialog").close();
  route();
  offerReports();
}

document.addEventListener("key-needed", askForKey);
document.getElementById("key-use").addEventListener("click", takeKey);
document.getElementById("key-input").addEventListener("keydown", (event) => event.key === "Enter" && takeKey());
window.addEventListener("hashchange", async () => {
  await route();
  main.focus({ preventScroll: true }); // a screen reader begins to read there
});
onReturn(() => view === null && route());
onReturn(offerReports);
route();
offerReports();
watchServer();
