// The drawing of a graph: agents and edges are buttons, placed over the lines of an SVG.

import { h, replace, setAttribute, setText, svg } from "/studio/dom.js";
import { edgeSummary } from "/studio/format.js";
import { arrange } from "/studio/layout.js";
import { edgeKey, isBusy } from "/studio/run_state.js";

const BOX = { width: 216, height: 116 };
const WORDS = {
  waiting: "waits",
  prefill: "reads its prompt",
  decode: "writes",
  finished: "done",
  failed: "failed",
  paused: "asks a person",
  skipped: "skipped",
  cancelled: "cancelled",
};

/** The text for an agent's status, as the drawing and screen readers give it. */
export const statusWords = (status) => WORDS[status] ?? status;

export class GraphView {
  /** `onAgent(name)` and `onEdge(edge)` are called when somebody opens one. */
  constructor(graph, { onAgent, onEdge, label }) {
    this.graph = graph;
    this.agents = new Map();
    this.edges = new Map();
    this.lines = svg("svg", { "aria-hidden": "true", focusable: "false" });
    this.plane = h("div", { class: "plane" });
    this.element = h("div", { class: "graph", role: "group", "aria-label": label, onkeydown: (event) => this.move(event) }, this.plane);
    for (const name of Object.keys(graph.agents)) this.agents.set(name, this.agentBox(name, onAgent));
    for (const edge of graph.edges) this.edges.set(edgeKey(edge.from, edge.to), this.edgeChip(edge, onEdge));
    this.buttons()[0]?.setAttribute("tabindex", "0");
    this.observer = new ResizeObserver(() => this.layOut());
    this.observer.observe(this.element);
    this.layOut();
  }

  close() {
    this.observer.disconnect();
  }

  /** Show this state of a run. */
  update(run) {
    for (const [name, box] of this.agents) showAgent(box, name, inside(run, name), this.graph);
    for (const [key, chip] of this.edges) this.showEdge(chip, run.edges.get(key), run.agents.get(chip.edge.to));
  }

  /** Show the channels of these edges, which somebody has switched. */
  setChannels(channels) {
    for (const [key, chip] of this.edges) {
      chip.channel = channels.get(key) ?? chip.edge.channel;
      this.showEdge(chip, null, null);
    }
  }

  agentBox(name, onAgent) {
    const entry = this.graph.agents[name];
    const status = h("span", { class: "status" }, statusWords("waiting"));
    const text = h("span", { class: "text" });
    const isOutput = Object.values(this.graph.outputs).includes(name);
    const head = h("span", { class: "name" }, h("span", { class: "own" }, name), isOutput && h("span", { class: "tag" }, "output"));
    const kind = entry.model ?? entry.graph ?? (entry.kind === "pause" ? "a person" : entry.kind);
    const button = h(
      "button",
      { class: "agent", type: "button", tabindex: "-1", title: `${name}, ${kind}`, "data-agent": name, onclick: () => onAgent(name) },
      head,
      h("span", { class: "model" }, h("span", { class: "kind" }, kind), status),
      text,
    );
    return { button, status, text };
  }

  edgeChip(edge, onEdge) {
    const name = h("span", { class: "channel" });
    const detail = h("span", { class: "detail" });
    const open = () => onEdge(edge);
    const button = h("button", { class: "edge", type: "button", tabindex: "-1", "data-edge": edgeKey(edge.from, edge.to), onclick: open }, name, detail);
    const chip = { button, name, detail, edge, channel: edge.channel, line: svg("path", { class: "line" }) };
    this.showEdge(chip, null, null);
    return chip;
  }

  showEdge(chip, seen, receiver) {
    const report = seen?.report;
    const used = report?.channel_used ?? chip.channel;
    const fell = Boolean(report?.fallback_reason);
    setText(chip.name, fell ? `${report.asked} → ${used}` : used + (seen?.count > 1 ? ` ×${seen.count}` : ""));
    setText(chip.detail, report ? edgeSummary(report) : (chip.edge.when ?? ""));
    const state = [used, fell && "fell", report && "done", receiver && isBusy(receiver) && !report && "busy"].filter(Boolean).join(" ");
    setAttribute(chip.button, "class", `edge ${state}`);
    setAttribute(chip.line, "class", `line ${state}`);
    const words = `edge from ${chip.edge.from} to ${chip.edge.to}, ${chip.name.textContent} ${chip.detail.textContent}`;
    setAttribute(chip.button, "aria-label", fell ? `${words}; fallback: ${report.fallback_reason}` : words);
    setAttribute(chip.button, "title", fell ? report.fallback_reason : words);
  }

  layOut() {
    const width = this.element.clientWidth;
    if (!width) return;
    const down = width < 620 || width < this.widthNeeded();
    if (this.drawn === `${down} ${down ? width : 0}`) return;
    this.drawn = `${down} ${down ? width : 0}`;
    this.plane.classList.toggle("down", down);
    const size = down ? { along: BOX.height, across: BOX.width } : { along: BOX.width, across: BOX.height };
    const gap = down ? { along: 74, across: 24 } : { along: 168, across: 28 };
    const plan = arrange([...this.agents.keys()], this.graph.edges, size, gap);
    const room = plan.back.size ? 64 : 0;
    const point = (at) => (down ? { x: at.across, y: at.along } : { x: at.along, y: at.across });
    const extent = point({ along: plan.along, across: plan.across + room });
    this.plane.style.width = `${extent.x}px`;
    this.plane.style.height = `${extent.y}px`;
    setSize(this.lines, extent);
    for (const [name, box] of this.agents) put(box.button, point(plan.centres.get(name)), BOX);
    for (const chip of this.edges.values()) this.drawEdge(chip, plan, point, down);
    replace(this.lines, [...this.edges.values()].map((chip) => chip.line));
    replace(this.plane, this.lines, this.inOrder());
    this.showFirst();
  }

  /** Scroll a drawing that is larger than its frame to its first agent. */
  showFirst() {
    const first = this.agents.values().next().value?.button;
    if (!first) return;
    this.element.scrollLeft = first.offsetLeft + this.plane.offsetLeft - this.element.offsetLeft + (BOX.width - this.element.clientWidth) / 2;
    this.element.scrollTop = first.offsetTop + this.plane.offsetTop - this.element.offsetTop + (BOX.height - this.element.clientHeight) / 2;
  }

  drawEdge(chip, plan, point, down) {
    const [from, to] = [plan.centres.get(chip.edge.from), plan.centres.get(chip.edge.to)];
    const isBack = plan.back.has(chip.edge) || chip.edge.from === chip.edge.to;
    const reach = (down ? BOX.height : BOX.width) / 2;
    const points = isBack
      ? [from, { along: (from.along + to.along) / 2, across: beside(plan, from, to, down) }, to]
      : [{ ...from, along: from.along + reach }, ...plan.corners.get(chip.edge), { ...to, along: to.along - reach }];
    chip.line.setAttribute("d", isBack ? arc(points.map(point)) : curve(points.map(point), down));
    const middle = isBack ? point(points[1]) : halfWay(points.map(point));
    chip.button.style.left = `${middle.x}px`;
    chip.button.style.top = `${middle.y}px`;
  }

  widthNeeded() {
    const layers = arrange([...this.agents.keys()], this.graph.edges, { along: 1, across: 1 }, { along: 0, across: 0 }).along;
    return layers * (BOX.width + 168) - 168;
  }

  /** Buttons in the order in which a keyboard meets them: each agent, then its edges. */
  inOrder() {
    const found = [];
    for (const [name, box] of this.agents) {
      found.push(box.button);
      for (const chip of this.edges.values()) if (chip.edge.from === name) found.push(chip.button);
    }
    return found;
  }

  buttons() {
    return [...this.agents.values(), ...this.edges.values()].map((each) => each.button);
  }

  /** Arrow keys move to the nearest button in that direction; the graph is one stop of the tab key. */
  move(event) {
    const step = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[event.key];
    const current = event.target.closest("button");
    if (!step || !current) return;
    event.preventDefault();
    const next = nearest(centre(current), step, this.buttons().filter((button) => button !== current));
    if (!next) return;
    for (const button of this.buttons()) button.setAttribute("tabindex", button === next ? "0" : "-1");
    next.focus();
  }
}

function showAgent(box, name, agent, graph) {
  const status = agent?.status ?? "waiting";
  setText(box.status, statusWords(status));
  const reads = agent?.status === "finished" && !agent.wrote ? "(hands over what it read)" : "";
  setText(box.text, tail(agent?.error ?? agent?.question ?? (reads || agent?.text || "")));
  setAttribute(box.button, "class", `agent ${status}`);
  const entry = graph.agents[name];
  setAttribute(box.button, "aria-label", `agent ${name}, ${entry.model ?? entry.kind}, ${statusWords(status)}`);
}

/** The agent of this name; of a recipe in an agent's place, the state of the agents inside. */
function inside(run, name) {
  const agent = run.agents.get(name);
  if (!agent || agent.status !== "prefill") return agent;
  const inner = [...run.agents.values()].filter((each) => each.name.startsWith(`${name}/`)).find(isBusy);
  return inner ? { ...agent, status: inner.status, text: inner.text } : agent;
}

/** The end of a text on one line, as much as a box shows. */
function tail(text) {
  const line = text.slice(-400).replace(/\s+/g, " ").trim();
  return line.length > 105 ? `… ${line.slice(-105)}` : line;
}

function put(button, at, box) {
  button.style.left = `${at.x - box.width / 2}px`;
  button.style.top = `${at.y - box.height / 2}px`;
  button.style.width = `${box.width}px`;
  button.style.height = `${box.height}px`;
}

function setSize(node, extent) {
  node.setAttribute("width", extent.x);
  node.setAttribute("height", extent.y);
}

function curve(points, down) {
  let path = `M${points[0].x} ${points[0].y}`;
  for (let i = 1; i < points.length; i++) {
    const [a, b] = [points[i - 1], points[i]];
    const [x, y] = [(a.x + b.x) / 2, (a.y + b.y) / 2];
    path += down ? `C${a.x} ${y} ${b.x} ${y} ${b.x} ${b.y}` : `C${x} ${a.y} ${x} ${b.y} ${b.x} ${b.y}`;
  }
  return path;
}

/** Where an edge that leads back passes the boxes between its ends: just outside of them. */
function beside(plan, from, to, down) {
  const [low, high] = [Math.min(from.along, to.along), Math.max(from.along, to.along)];
  const passed = [...plan.centres.values()].filter((at) => at.along >= low - 1 && at.along <= high + 1);
  return Math.max(...passed.map((at) => at.across)) + (down ? BOX.width : BOX.height) / 2 + 40;
}

function halfWay(points) {
  const at = (points.length - 1) / 2;
  const [a, b] = [points[Math.floor(at)], points[Math.ceil(at)]];
  return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 };
}

function arc([from, low, to]) {
  const control = { x: 2 * low.x - (from.x + to.x) / 2, y: 2 * low.y - (from.y + to.y) / 2 };
  return `M${from.x} ${from.y}Q${control.x} ${control.y} ${to.x} ${to.y}`;
}

function centre(button) {
  const box = button.getBoundingClientRect();
  return { x: box.x + box.width / 2, y: box.y + box.height / 2 };
}

function nearest(from, [dx, dy], buttons) {
  let [best, least] = [null, Infinity];
  for (const button of buttons) {
    const to = centre(button);
    const ahead = (to.x - from.x) * dx + (to.y - from.y) * dy;
    const aside = Math.abs((to.x - from.x) * dy) + Math.abs((to.y - from.y) * dx);
    if (ahead > 4 && ahead + 2 * aside < least) [best, least] = [button, ahead + 2 * aside];
  }
  return best;
}
