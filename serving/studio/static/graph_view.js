// The drawing of a graph: agents and edges are buttons, placed over the lines of an SVG.

import { h, replace, setAttribute, setText, svg } from "/studio/dom.js";
import { BOX, FRAME, levelsOf, planDrawing } from "/studio/drawing_plan.js";
import { middleOf, pathOf } from "/studio/edge_line.js";
import { edgeSummary } from "/studio/format.js";
import { allAgents, allEdges, edgeKey, isBusy } from "/studio/run_state.js";

const MOST_OPEN = 12; // agents of included recipes that are drawn at first
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
    this.entries = allAgents(graph);
    this.levels = levelsOf(graph);
    this.closed = new Set(Object.keys(graph.inner_agents).length > MOST_OPEN ? this.levels.keys() : []);
    this.agents = new Map();
    this.edges = new Map();
    this.lines = svg("svg", { "aria-hidden": "true", focusable: "false" });
    this.plane = h("div", { class: "plane" });
    this.element = h("div", { class: "graph", role: "group", "aria-label": label, onkeydown: (event) => this.move(event) }, this.plane);
    for (const name of Object.keys(this.entries)) this.agents.set(name, this.agentBox(name, onAgent));
    for (const edge of allEdges(graph)) this.edges.set(edgeKey(edge.from, edge.to), this.edgeChip(edge, onEdge));
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
    for (const [name, box] of this.agents) showAgent(box, name, this.isOpen(name) ? run.agents.get(name) : inside(run, name), this.entries);
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
    const entry = this.entries[name];
    const status = h("span", { class: "status" }, statusWords("waiting"));
    const text = h("span", { class: "text" });
    const isOutput = Object.values(this.graph.outputs).includes(name);
    const head = h("span", { class: this.levels.has(name) ? "name beside-toggle" : "name" }, h("span", { class: "own" }, name.split("/").at(-1)), isOutput && h("span", { class: "tag" }, "output"));
    const kind = entry.model ?? entry.graph ?? (entry.kind === "pause" ? "a person" : entry.kind);
    const button = h(
      "button",
      { class: "agent", type: "button", tabindex: "-1", title: `${name}, ${kind}`, "data-agent": name, onclick: () => onAgent(name) },
      head,
      h("span", { class: "model" }, h("span", { class: "kind" }, kind), status),
      text,
    );
    return { button, status, text, ...(this.levels.has(name) && this.frame(name)) };
  }

  /** What an agent with a recipe in its place has beside its button: a frame, and a button that opens and closes it. */
  frame(name) {
    const toggle = h("button", { class: "toggle", type: "button", tabindex: "-1", "data-toggle": name, onclick: () => this.toggle(name) });
    return { toggle, frame: h("div", { class: "frame" }) };
  }

  isOpen(name) {
    return this.levels.has(name) && !this.closed.has(name);
  }

  toggle(name) {
    if (!this.closed.delete(name)) this.closed.add(name);
    this.layOut(true);
    this.focusOn(this.agents.get(name).toggle);
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

  layOut(anew = false) {
    const width = this.element.clientWidth;
    if (!width) return;
    const isFirst = this.drawn === undefined;
    if (isFirst && this.plan(true).extent.width > width) this.closed = new Set(this.levels.keys());
    const across = this.plan(false);
    const down = width < 620 || width < across.extent.width;
    if (this.drawn === `${down} ${down ? width : 0}` && !anew) return;
    this.drawn = `${down} ${down ? width : 0}`;
    this.plane.classList.toggle("down", down);
    this.put(down ? this.plan(true) : across, down);
    if (isFirst || !anew) this.showFirst();
  }

  plan(down) {
    return planDrawing(this.levels, (name) => this.isOpen(name), down);
  }

  /** Draw by a plan. */
  put(plan, down) {
    this.plane.style.width = `${plan.extent.width}px`;
    this.plane.style.height = `${plan.extent.height}px`;
    for (const side of ["width", "height"]) this.lines.setAttribute(side, plan.extent[side]);
    for (const [name, rectangle] of plan.rectangles) this.putAgent(name, rectangle);
    const shown = [...this.edges.values()].filter((chip) => plan.edges.has(chip.edge));
    for (const chip of shown) putEdge(chip, plan.edges.get(chip.edge), down);
    const frames = [...plan.rectangles.keys()].filter((name) => this.isOpen(name)).map((name) => this.agents.get(name).frame);
    replace(this.lines, shown.map((chip) => chip.line));
    replace(this.plane, frames, this.lines, this.inOrder());
  }

  putAgent(name, rectangle) {
    const { button, toggle, frame } = this.agents.get(name);
    const isOpen = this.isOpen(name);
    button.classList.toggle("open", isOpen);
    put(button, isOpen ? { ...rectangle, height: FRAME.head - 6 } : rectangle);
    if (!toggle) return;
    put(frame, rectangle);
    toggle.style.left = `${rectangle.x + rectangle.width - 30}px`;
    toggle.style.top = `${rectangle.y + 6}px`;
    setText(toggle, isOpen ? "−" : "+");
    setAttribute(toggle, "aria-expanded", String(isOpen));
    const words = `${isOpen ? "hide" : "show"} the agents of ${name}`;
    setAttribute(toggle, "aria-label", words);
    setAttribute(toggle, "title", words);
  }

  /** Scroll a drawing that is larger than its frame to its first agent. */
  showFirst() {
    const first = this.agents.values().next().value?.button;
    if (!first) return;
    this.element.scrollLeft = first.offsetLeft + this.plane.offsetLeft - this.element.offsetLeft + (BOX.width - this.element.clientWidth) / 2;
    this.element.scrollTop = first.offsetTop + this.plane.offsetTop - this.element.offsetTop + (BOX.height - this.element.clientHeight) / 2;
  }

  /** Buttons in the order in which a keyboard meets them: each agent, what is inside it, then its edges. */
  inOrder(level = "") {
    const found = [];
    for (const name of this.levels.get(level).names) {
      const { button, toggle } = this.agents.get(name);
      found.push(button, ...(toggle ? [toggle] : []), ...(this.isOpen(name) ? this.inOrder(name) : []));
      for (const chip of this.edges.values()) if (chip.edge.from === name) found.push(chip.button);
    }
    return found;
  }

  /** All buttons that are drawn. */
  buttons() {
    return this.inOrder();
  }

  /** Arrow keys move to the nearest button in that direction; the graph is one stop of the tab key. */
  move(event) {
    const step = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[event.key];
    const current = event.target.closest("button");
    if (!step || !current) return;
    event.preventDefault();
    const next = nearest(centre(current), step, this.buttons().filter((button) => button !== current));
    if (next) this.focusOn(next);
  }

  focusOn(next) {
    for (const button of this.buttons()) button.setAttribute("tabindex", button === next ? "0" : "-1");
    next.focus();
  }
}

function showAgent(box, name, agent, entries) {
  const status = agent?.status ?? "waiting";
  setText(box.status, statusWords(status));
  const reads = agent?.status === "finished" && !agent.wrote ? "(hands over what it read)" : "";
  setText(box.text, tail(agent?.error ?? agent?.question ?? (reads || agent?.text || "")));
  setAttribute(box.button, "class", `agent ${status}${box.button.classList.contains("open") ? " open" : ""}`);
  if (box.frame) setAttribute(box.frame, "class", `frame ${status}`);
  const entry = entries[name];
  setAttribute(box.button, "aria-label", `agent ${name}, ${entry.model ?? entry.graph ?? entry.kind}, ${statusWords(status)}`);
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

function put(element, { x, y, width, height }) {
  Object.assign(element.style, { left: `${x}px`, top: `${y}px`, width: `${width}px`, height: `${height}px` });
}

function putEdge(chip, route, down) {
  chip.line.setAttribute("d", pathOf(route, down));
  const middle = middleOf(route);
  chip.button.style.left = `${middle.x}px`;
  chip.button.style.top = `${middle.y}px`;
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
