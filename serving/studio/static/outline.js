// The graph and its run as a list, for screen readers and for people who prefer text.

import { h, replace } from "/studio/dom.js";
import { levelsOf } from "/studio/drawing_plan.js";
import { edgeSummary, plural, seconds } from "/studio/format.js";
import { statusWords } from "/studio/graph_view.js";
import { allAgents, allEdges, edgeKey } from "/studio/run_state.js";

/** Write the outline: every agent, with the edges that lead to it and, of an included recipe, the agents inside. */
export function writeOutline(element, graph, run) {
  const [entries, edges, levels] = [allAgents(graph), allEdges(graph), levelsOf(graph)];
  const item = (name) => {
    const lines = edges.filter((edge) => edge.to === name).map((edge) => h("li", {}, edgeLine(edge, run)));
    const inside = (levels.get(name)?.names ?? []).map(item);
    return h("li", {}, h("strong", {}, name), `: ${agentLine(entries[name], run.agents.get(name))}`, lines.length + inside.length > 0 && h("ul", {}, lines, inside));
  };
  replace(element, h("ul", {}, levels.get("").names.map(item)));
}

function agentLine(entry, agent) {
  const parts = [entry.model ?? entry.graph ?? entry.kind, statusWords(agent?.status ?? "waiting")];
  if (agent?.tokens) parts.push(`${plural(agent.tokens.prefilled, "token")} read, ${agent.tokens.reused} reused, ${agent.tokens.generated} written`);
  if (agent?.timing) parts.push(seconds(agent.timing.total));
  if (agent?.finish && !["stop", "eos"].includes(agent.finish)) parts.push(`ended by ${agent.finish}`);
  if (agent?.error) parts.push(agent.error);
  return parts.join("; ");
}

function edgeLine(edge, run) {
  const seen = run.edges.get(edgeKey(edge.from, edge.to));
  const limits = [edge.when && `when ${edge.when}`, edge.max_rounds && `at most ${plural(edge.max_rounds, "round")}`].filter(Boolean).join(", ");
  const head = `from ${edge.from}, ${edge.channel}${limits ? ` (${limits})` : ""}`;
  if (!seen) return head;
  const report = seen.report;
  const used = report.channel_used === report.asked ? "" : ` went as ${report.channel_used}`;
  const why = report.fallback_reason ? `; fallback: ${report.fallback_reason}` : "";
  return `${head}:${used} ${edgeSummary(report)}${why}${report.fuser ? `; fuser ${report.fuser}` : ""}`;
}
