// A lane: one run, live or replayed, with its graph, its reply, its times and its questions.

import { ask } from "/studio/api.js";
import { openAgent, openEdge } from "/studio/details.js";
import { h, replace, setText } from "/studio/dom.js";
import { seconds } from "/studio/format.js";
import { GraphView } from "/studio/graph_view.js";
import { writeOutline } from "/studio/outline.js";
import { pauseForm } from "/studio/pause.js";
import { ENDED, apply, newRun, replyOf } from "/studio/run_state.js";
import { drawTimeline } from "/studio/timeline.js";
import { watch } from "/studio/watch.js";

const STATUS = { waiting: "in the queue", running: "running", paused: "asks a person", partial: "finished in part" };

export class Lane {
  /** `graph` is the recipe as the run has it; `onChange(lane)` is called after every change that is shown. */
  constructor(id, graph, { label, onChange = () => {} }) {
    this.id = id;
    this.label = label;
    this.graph = graph;
    this.onChange = onChange;
    this.run = newRun();
    this.events = []; // all so far, for replays
    this.shown = null; // how many of them are shown in a replay; null: all
    const open = { onAgent: (name) => openAgent(this, name), onEdge: (edge) => openEdge(this, edge), label: `Graph of ${graph.name}` };
    this.view = new GraphView(graph, open);
    this.build(label);
    this.stop = watch(id, {
      onReset: () => this.reset(),
      onEvent: (event) => this.take(event),
      onDetails: (run) => this.settle(run),
      onError: (error) => setText(this.trouble, error.message),
    });
    this.draw();
  }

  build(label) {
    this.status = h("span", { class: "status" });
    this.clock = h("span", { class: "clock" });
    this.cancel = h("button", { type: "button", class: "small", onclick: () => this.end() }, "Cancel");
    this.trouble = h("p", { class: "trouble", role: "alert" });
    this.reply = h("div", { class: "reply" });
    this.replyStatus = h("p", { class: "sr", role: "status" });
    this.pause = h("div", { class: "pause" });
    this.warnings = h("ul", { class: "warnings" });
    this.timeline = h("div", { class: "timeline" });
    this.outline = h("div", { class: "outline" });
    this.slider = h("input", { type: "range", min: "0", step: "1", "aria-label": "Position in the run's events", oninput: () => this.seek() });
    const play = h("button", { type: "button", class: "small", onclick: () => this.play() }, "Replay");
    this.replay = h("p", { class: "replay", hidden: true }, play, this.slider);
    const heading = h("h2", {}, label, h("a", { class: "id", href: `#/run/${this.id}` }, this.id.slice(-8)), this.status, this.clock, this.cancel);
    this.element = h(
      "section",
      { class: "lane", "aria-label": label },
      heading,
      this.trouble,
      this.view.element,
      this.replay,
      this.pause,
      h("h3", {}, "Reply"),
      this.reply,
      this.replyStatus,
      this.warnings,
      h("h3", {}, "Time"),
      this.timeline,
      h("details", { ontoggle: () => writeOutline(this.outline, this.graph, this.run) }, h("summary", {}, "As text"), this.outline),
    );
  }

  reset() {
    this.run = newRun();
    this.events = [];
    this.draw();
  }

  take(event) {
    this.events.push(event);
    if (this.shown === null) {
      apply(this.run, event);
      this.origin = performance.now() - 1000 * event.at;
    }
    this.draw();
  }

  /** Take the stored run, once its events have ended. */
  settle(stored) {
    if (this.shown === null && this.run.status !== stored.status && ENDED.has(stored.status)) {
      this.run.status = stored.status;
      this.run.error = stored.error;
    }
    this.draw();
  }

  /** Draw soon, at most every 60 ms; while the run is at work also without news, since its clock moves. */
  draw() {
    if (this.timer || this.closed) return;
    this.timer = setTimeout(() => {
      this.timer = null;
      if (this.closed) return;
      this.show();
      if (this.shown === null && this.run.status === "running") setTimeout(() => this.draw(), 100);
    }, 60);
  }

  show() {
    const { run } = this;
    const live = this.shown === null && run.status === "running";
    const now = live ? Math.max((performance.now() - this.origin) / 1000, run.at) : run.at;
    this.view.update(run);
    setText(this.status, STATUS[run.status] ?? run.status);
    this.status.className = `status ${run.status}`;
    setText(this.clock, run.status === "waiting" ? "" : seconds(run.result?.seconds ?? now));
    this.cancel.hidden = ENDED.has(run.status);
    setText(this.trouble, run.error ?? "");
    const reply = replyOf(run, this.graph);
    setText(this.reply, reply || "…");
    this.reply.classList.toggle("quiet", !reply);
    setText(this.replyStatus, ENDED.has(run.status) ? `The run is ${run.status}. ${reply}` : "");
    if (this.warned !== run.warnings) replace(this.warnings, run.warnings.map((warning) => h("li", {}, warning.message)));
    this.warned = run.warnings;
    this.showPause();
    drawTimeline(this.timeline, run, now);
    if (this.outline.parentElement.open) writeOutline(this.outline, this.graph, run);
    this.replay.hidden = !ENDED.has(run.status) && this.shown === null;
    this.slider.max = String(this.events.length);
    if (this.shown === null) this.slider.value = this.slider.max;
    this.onChange(this);
  }

  showPause() {
    const asking = this.shown === null && this.run.status === "paused" ? [...this.run.agents.values()].filter((agent) => agent.status === "paused") : [];
    const key = asking.map((agent) => `${agent.turn} ${agent.question}`).join("\n");
    if (this.pause.dataset.key === key) return;
    this.pause.dataset.key = key;
    replace(this.pause, asking.map((agent) => pauseForm(agent, (text) => this.answer(agent.turn, text))));
  }

  /** Answer a paused run, and follow it on. */
  async answer(turn, text) {
    await ask(`/runs/${encodeURIComponent(this.id)}/answer`, { method: "POST", body: { turn, answer: text } });
    this.stop();
    this.reset();
    const to = { onReset: () => this.reset(), onEvent: (event) => this.take(event), onDetails: (run) => this.settle(run) };
    this.stop = watch(this.id, { ...to, onError: (error) => setText(this.trouble, error.message) });
  }

  async end() {
    try {
      await ask(`/runs/${encodeURIComponent(this.id)}/cancel`, { method: "POST" });
    } catch (error) {
      setText(this.trouble, error.message);
    }
  }

  /** Show the run as it was after as many events as the slider says. */
  seek() {
    const count = Number(this.slider.value);
    this.shown = count >= this.events.length ? null : count;
    this.run = newRun();
    for (const event of this.events.slice(0, count)) apply(this.run, event);
    this.draw();
  }

  /** Replay the events at their own pace; long silences are cut to a second. */
  async play() {
    const playing = (this.playing = Symbol("replay"));
    for (let count = 0; count <= this.events.length; count++) {
      if (this.playing !== playing || this.closed) return;
      this.slider.value = String(count);
      this.seek();
      const wait = (this.events[count]?.at ?? 0) - (this.events[count - 1]?.at ?? 0);
      if (wait > 0.004) await new Promise((done) => setTimeout(done, Math.min(wait, 1) * 1000));
    }
  }

  close() {
    this.closed = true;
    this.stop();
    this.view.close();
  }
}
