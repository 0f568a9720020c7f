// Comparison reports, opened in place.

import { ask } from "/studio/api.js";
import { h } from "/studio/dom.js";
import { bytes, when } from "/studio/format.js";

/** Open the list of reports, or one of them. */
export async function reportsView(name) {
  if (name) return reportView(name);
  const { reports } = await ask("/reports");
  const link = (report) => h("a", { href: `#/reports/${encodeURIComponent(report.name)}` }, report.name);
  const rows = reports.map((report) => h("tr", {}, [link(report), when(report.modified), bytes(report.bytes)].map((cell) => h("td", {}, cell))));
  const head = h("tr", {}, ["Report", "Written", "Size"].map((title) => h("th", { scope: "col" }, title)));
  const table = h("div", { class: "scroll" }, h("table", {}, h("thead", {}, head), h("tbody", {}, rows)));
  const none = h("p", { class: "quiet" }, "The folder holds no report yet. `cachegraph compare --report` writes one.");
  return { element: h("div", {}, h("h1", {}, "Reports"), rows.length ? table : none) };
}

/** A report is a page with scripts of its own, so it gets a frame from which nothing of the studio can be reached. */
async function reportView(name) {
  const { url } = await ask(`/reports/${encodeURIComponent(name)}`, { method: "POST" });
  const frame = h("iframe", { class: "report", title: `Report ${name}`, sandbox: "allow-scripts", src: url });
  const path = h("p", { class: "path" }, h("a", { href: "#/reports" }, "Reports"), ` › ${name}`);
  return { element: h("div", {}, path, h("h1", { class: "sr" }, name), frame) };
}
