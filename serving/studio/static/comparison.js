// What two runs of one recipe have in common, and where they differ.

import { diffWords } from "/studio/diff.js";
import { h, replace } from "/studio/dom.js";
import { bytes, seconds } from "/studio/format.js";
import { ENDED, replyOf } from "/studio/run_state.js";

const FIGURES = [
  ["Time", (lane) => lane.run.result?.seconds, seconds],
  ["First token of the reply", (lane) => firstToken(lane), seconds],
  ["Tokens read", (lane) => lane.run.result?.totals?.tokens.prefilled, String],
  ["Tokens reused", (lane) => lane.run.result?.totals?.tokens.reused, String],
  ["Tokens written", (lane) => lane.run.result?.totals?.tokens.generated, String],
  ["Bytes over edges", (lane) => lane.run.result?.totals?.bytes, bytes],
];

export class Comparison {
  constructor() {
    this.element = h("section", { class: "comparison", "aria-label": "Comparison", "aria-live": "polite" });
  }

  /** Compare the lanes, once all their runs have ended. */
  show(lanes) {
    const ended = lanes.every((lane) => lane.shown === null && ENDED.has(lane.run.status));
    const key = ended ? lanes.map((lane) => lane.run.status).join() : "";
    if (key === this.key) return;
    this.key = key;
    replace(this.element, ended && [h("h2", {}, "Comparison"), table(lanes), difference(lanes), CAVEAT()]);
  }
}

const CAVEAT = () => h("p", { class: "quiet" }, "Runs at the same time share the machine, so each is slower than alone. One pair of replies proves nothing: `cachegraph compare` measures, with controls.");

function table(lanes) {
  const rows = FIGURES.map(([name, figure, format]) => {
    const values = lanes.map(figure);
    return h("tr", {}, h("th", { scope: "row" }, name), values.map((value) => h("td", {}, value === undefined || value === null ? "–" : format(value))));
  });
  const head = h("tr", {}, h("td"), lanes.map((lane) => h("th", { scope: "col" }, lane.label)));
  return h("div", { class: "scroll" }, h("table", {}, h("thead", {}, head), h("tbody", {}, rows)));
}

/** Seconds from the start of a run to the first token of its reply. */
function firstToken(lane) {
  const output = Object.values(lane.graph.outputs)[0];
  const agent = lane.run.result?.agents?.[output];
  return agent?.timing?.first_token == null || agent.started == null ? null : agent.started + agent.timing.first_token;
}

function difference(lanes) {
  const [first, second] = lanes.map((lane) => replyOf(lane.run, lane.graph));
  if (lanes.length !== 2) return null;
  if (first === second) return h("p", {}, "Both replies are the same.");
  const parts = diffWords(first, second);
  if (parts === null) return h("p", { class: "quiet" }, "The replies are too long to compare word by word.");
  const shown = parts.map(({ kind, text }) => (kind === "same" ? text : h(kind === "first" ? "del" : "ins", {}, text)));
  const legend = h("p", { class: "quiet" }, h("del", {}, lanes[0].label), " ", h("ins", {}, lanes[1].label));
  return [h("h3", {}, "Difference of the replies"), legend, h("div", { class: "reply diff" }, shown)];
}
