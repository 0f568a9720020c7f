// A run as its events tell it. Live runs, stored runs and replays all go through `apply`.

export const ENDED = new Set(["finished", "partial", "failed", "cancelled", "paused"]);
const SETTLED = new Set(["finished", "failed", "paused", "skipped", "cancelled"]);

/** The state before the first event. */
export function newRun() {
  return {
    status: "waiting",
    error: null,
    at: 0, // seconds of the latest event
    warnings: [],
    agents: new Map(), // by full name
    edges: new Map(), // by "sender>receiver": {report, count, bytes}
    turns: new Map(), // by turn id: {agent, turn, model, status, started, first, ended, timing}
    result: null,
  };
}

export const edgeKey = (sender, receiver) => `${sender}>${receiver}`;

/** All agents of a graph by full name, with those of the recipes that it includes. */
export const allAgents = (graph) => ({ ...graph.agents, ...graph.inner_agents });

/** All edges of a graph, with those of the recipes that it includes. */
export const allEdges = (graph) => [...graph.edges, ...graph.inner_edges];

/** Whether a turn is one item of a list, whose agent is at work until all of them are. */
const isItem = (turn) => turn.endsWith("]");

/** Whether an agent works on its turn now. */
export const isBusy = (agent) => agent.status === "prefill" || agent.status === "decode";

/** Change the state by one event. Skips unknown types, as the format asks. */
export function apply(run, event) {
  run.at = Math.max(run.at, event.at ?? 0);
  HANDLERS[event.type]?.(run, event);
}

const HANDLERS = {
  run_started(run, event) {
    Object.assign(run, { status: "running", error: null, warnings: event.warnings, result: null, at: event.at });
    run.turns.clear(); // a resumed run tells of its earlier turns again
  },

  agent_started(run, event) {
    const agent = agentOf(run, event.agent);
    if (!isItem(event.turn)) Object.assign(agent, { turn: event.turn, text: "", error: null, question: null });
    agent.status = "prefill";
    const turn = { agent: event.agent, turn: event.turn, model: "", status: "prefill", started: event.at };
    run.turns.set(event.turn, { ...turn, first: null, ended: null, timing: null });
  },

  agent_prefilled(run, event) {
    agentOf(run, event.agent).promptTokens = event.tokens;
  },

  text_delta(run, event) {
    const agent = agentOf(run, event.agent);
    if (agent.writes !== event.turn) Object.assign(agent, { writes: event.turn, text: "" });
    agent.text += event.text;
    agent.status = "decode";
    const turn = run.turns.get(event.turn);
    if (turn && turn.first === null) Object.assign(turn, { first: event.at, status: "decode" });
  },

  tool_called(run, event) {
    agentOf(run, event.agent).tools.push(event.call);
  },

  edge_travelled(run, event) {
    const key = edgeKey(event.sender, event.receiver);
    const before = run.edges.get(key) ?? { count: 0, bytes: 0 };
    const turns = { turn: event.turn, senderTurn: event.sender_turn };
    run.edges.set(key, { ...turns, report: event.report, count: before.count + 1, bytes: before.bytes + event.report.bytes });
  },

  agent_finished(run, event) {
    const result = event.result;
    close(run, event.turn, "finished", event.at, result);
    if (isItem(event.turn)) return;
    const agent = agentOf(run, event.agent);
    const text = result.text ?? "";
    const wrote = result.text !== null && (result.tokens?.generated > 0 || !result.tokens?.prefilled);
    Object.assign(agent, { status: "finished", turn: event.turn, text, wrote, recalled: event.recalled });
    Object.assign(agent, { model: result.model, timing: result.timing, tokens: result.tokens });
    agent.finish = result.finish_reason ?? null;
  },

  agent_failed(run, event) {
    Object.assign(agentOf(run, event.agent), { status: "failed", error: event.error, turn: event.turn });
    close(run, event.turn, "failed", event.at);
  },

  agent_paused(run, event) {
    Object.assign(agentOf(run, event.agent), { status: "paused", question: event.question, turn: event.turn });
    close(run, event.turn, "paused", event.at);
  },

  agent_skipped(run, event) {
    const agent = agentOf(run, event.agent);
    if (agent.status === "waiting") agent.status = "skipped";
  },

  agent_cancelled(run, event) {
    const because = event.because_of ? `because of ${event.because_of}` : null;
    Object.assign(agentOf(run, event.agent), { status: "cancelled", error: because });
    close(run, event.turn, "cancelled", event.at);
  },

  run_finished(run, event) {
    run.result = event.result;
    run.status = event.result.status;
    run.error = event.result.error ?? null;
    run.warnings = event.result.warnings ?? run.warnings;
    for (const agent of run.agents.values()) if (!SETTLED.has(agent.status)) agent.status = "cancelled";
    for (const turn of run.turns.values()) if (turn.ended === null) turn.ended = event.at;
  },
};

function agentOf(run, name) {
  let agent = run.agents.get(name);
  if (agent === undefined) {
    agent = { name, status: "waiting", turn: name, writes: null, text: "", wrote: true, error: null, question: null };
    Object.assign(agent, { tools: [], model: "", timing: null, tokens: null, finish: null, recalled: false });
    run.agents.set(name, agent);
  }
  return agent;
}

function close(run, id, status, at, result = null) {
  const turn = run.turns.get(id);
  if (turn === undefined) return;
  Object.assign(turn, { status, ended: at });
  if (result) Object.assign(turn, { model: result.model, timing: result.timing });
}

/** The reply of a run: of the first output that has one. */
export function replyOf(run, graph) {
  if (run.result?.text) return run.result.text;
  for (const name of Object.values(graph.outputs)) {
    const text = run.agents.get(name)?.text;
    if (text) return text;
  }
  return "";
}
