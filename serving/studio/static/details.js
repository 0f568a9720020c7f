// The panel for one agent or one edge of a run.

import { h, replace } from "/studio/dom.js";
import { edgeSummary, plural, seconds } from "/studio/format.js";
import { statusWords } from "/studio/graph_view.js";
import { drawAlignment, drawLayers, drawPrompt, fetchPrompt } from "/studio/prompt_view.js";
import { allAgents, edgeKey } from "/studio/run_state.js";

let origin = null; // what had the focus before the panel opened

/** Open the panel for an agent of a lane's run. */
export function openAgent(lane, name) {
  const entry = allAgents(lane.graph)[name] ?? { kind: "model" };
  const agent = lane.run.agents.get(name);
  const facts = [["Model", agent?.model || entry.model || entry.kind], ["Status", statusWords(agent?.status ?? "waiting")]];
  if (agent?.tokens) {
    facts.push(["Tokens", `${agent.tokens.prefilled} read, ${agent.tokens.reused} reused, ${agent.tokens.generated} written`]);
  }
  if (agent?.timing) facts.push(["Time", `${seconds(agent.timing.total)}, first token after ${seconds(agent.timing.first_token)}`]);
  if (agent?.finish) facts.push(["Reply ended by", agent.finish]);
  const calls = (agent?.tools ?? []).map((call) => h("li", {}, `${call.tool}(${JSON.stringify(call.arguments)}) → ${call.result}`));
  show(
    `Agent ${name}`,
    factList(facts),
    agent?.text && [h("h3", {}, "Reply"), h("div", { class: "reply" }, agent.text)],
    agent?.error && h("p", { class: "trouble" }, agent.error),
    calls.length > 0 && [h("h3", {}, "Tool calls"), h("ul", {}, calls)],
    innerAgents(lane, name),
    agent && entry.kind === "model" && prompts(lane, name, agent.turn),
  );
}

function innerAgents(lane, name) {
  const inner = [...lane.run.agents.keys()].filter((each) => each.startsWith(`${name}/`));
  const buttons = inner.map((each) => h("button", { type: "button", class: "small", onclick: () => openAgent(lane, each) }, each));
  const edges = lane.graph.inner_edges.filter((edge) => edge.to.startsWith(`${name}/`));
  const edgeButton = (edge) => h("button", { type: "button", class: "small", "data-inner": edgeKey(edge.from, edge.to), onclick: () => openEdge(lane, edge) }, `${edge.from} → ${edge.to}`);
  return [
    inner.length > 0 && [h("h3", {}, "Agents inside"), h("p", { class: "row" }, buttons)],
    edges.length > 0 && [h("h3", {}, "Edges inside"), h("p", { class: "row" }, edges.map(edgeButton))],
  ];
}

/** The prompt of a turn, and buttons for the agent's other turns. */
function prompts(lane, name, turn) {
  const turns = [...lane.run.turns.values()].filter((each) => each.agent === name).map((each) => each.turn);
  const place = h("div");
  const open = (id) => replace(place, later(lane, id, (prompt) => drawPrompt(prompt)));
  if (!turns.length) return null;
  const buttons = turns.map((id) => h("button", { type: "button", class: "small", onclick: () => open(id) }, id));
  open(turns.includes(turn) ? turn : turns.at(-1));
  return [h("h3", {}, "Prompt"), turns.length > 1 && h("p", { class: "row" }, buttons), place];
}

/** Open the panel for an edge of a lane's run. */
export function openEdge(lane, edge) {
  const seen = lane.run.edges.get(edgeKey(edge.from, edge.to));
  const report = seen?.report;
  const facts = [["Channel", edge.channel]];
  if (report) {
    facts.push(["Went as", report.channel_used], ["Handed over", edgeSummary(report)]);
    if (seen.count > 1) facts.push(["Payloads", `${plural(seen.count, "payload")}, ${seen.bytes.toLocaleString("en")} bytes together`]);
    if (report.fuser) facts.push(["Fuser", `${report.fuser} (${report.fuser_reason ?? "chosen"})`]);
    for (const [phase, time] of Object.entries(report.seconds)) facts.push([phase.replace("_", " "), seconds(time)]);
  }
  show(
    `Edge ${edge.from} → ${edge.to}`,
    factList(facts),
    report?.fallback_reason && h("p", { class: "fallback" }, `Fallback: ${report.fallback_reason}`),
    !report && h("p", { class: "quiet" }, "Nothing has travelled over this edge in this run."),
    report && drawLayers(report.residuals),
    report && report.channel_used !== "text" && later(lane, seen.turn, (prompt) => (prompt.edges[edge.from.split("/").at(-1)] ?? []).map((each) => drawAlignment(each, edge))),
  );
}

/** A place that is filled once the prompt of a turn is there. */
function later(lane, turn, draw) {
  const place = h("div", { class: "later" });
  fetchPrompt(lane.id, turn).then(
    (prompt) => replace(place, draw(prompt)),
    (error) => replace(place, h("p", { class: "quiet" }, error.message)),
  );
  return place;
}

/** Show the panel with this content. Escape closes it, and the focus returns to where it was. */
export function show(title, ...content) {
  const panel = document.getElementById("details") ?? build();
  if (!panel.contains(document.activeElement)) origin = document.activeElement;
  const close = h("button", { type: "button", class: "small", onclick: () => closePanel() }, "Close");
  replace(panel, h("div", { class: "panel-head" }, h("h2", { tabindex: "-1" }, title), close), content);
  panel.hidden = false;
  panel.querySelector("h2").focus();
}

export function closePanel() {
  const panel = document.getElementById("details");
  if (!panel || panel.hidden) return;
  panel.hidden = true;
  if (origin?.isConnected) origin.focus();
}

function build() {
  const panel = h("aside", { id: "details", class: "panel", "aria-label": "Details", hidden: true });
  document.addEventListener("keydown", (event) => event.key === "Escape" && closePanel());
  document.body.append(panel);
  return panel;
}

function factList(facts) {
  return h("dl", {}, facts.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}
