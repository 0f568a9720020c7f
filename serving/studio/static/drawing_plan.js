// Where the boxes of a drawing go: an included recipe that is open is a frame around the agents inside.

import { arrange } from "/studio/layout.js";
import { allAgents, allEdges } from "/studio/run_state.js";

export const BOX = { width: 216, height: 116 };
const GAPS = { down: { along: 74, across: 24 }, across: { along: 168, across: 28 } };
const LABEL = { down: 130, across: 44 }; // of an edge
export const FRAME = { side: 14, head: 62, foot: 14 }; // around the agents inside; the head holds the agent's own button
const ROOM = 64; // beside the boxes, for edges that lead back

/** The full name of the agent that stands for the recipe which this one belongs to; "" for the graph itself. */
export const parentOf = (name) => name.slice(0, Math.max(name.lastIndexOf("/"), 0));

/** The agents and edges of a graph by the agent that stands for their recipe. */
export function levelsOf(graph) {
  const levels = new Map();
  const level = (name) => levels.get(name) ?? levels.set(name, { names: [], edges: [] }).get(name);
  for (const name of Object.keys(allAgents(graph))) level(parentOf(name)).names.push(name);
  for (const edge of allEdges(graph)) level(parentOf(edge.to)).edges.push(edge);
  return levels;
}

/**
 * Plan a drawing that runs down or across. `isOpen(name)`: whether the recipe in this agent's place is drawn.
 * Returns the extent, a rectangle {x, y, width, height} by agent, and the points of each edge, with `isBack`.
 */
export function planDrawing(levels, isOpen, down) {
  const plan = { rectangles: new Map(), edges: new Map() };
  return { ...plan, ...place(plan, measure(levels, "", isOpen, down), { x: 0, y: 0 }, down) };
}

/** Arrange one level, and the open ones inside it first, since they give the sizes. */
function measure(levels, name, isOpen, down) {
  const { names, edges } = levels.get(name);
  const way = down ? "down" : "across";
  const open = new Map(names.filter((each) => levels.has(each) && isOpen(each)).map((each) => [each, measure(levels, each, isOpen, down)]));
  const sizes = new Map(names.map((each) => [each, open.has(each) ? framed(open.get(each).extent) : BOX]));
  const turned = (size) => (down ? { along: size.height, across: size.width } : { along: size.width, across: size.height });
  const plan = arrange(names, edges, (each) => turned(sizes.get(each)), GAPS[way], LABEL[way]);
  const across = plan.across + (plan.back.size || edges.some((edge) => edge.from === edge.to) ? ROOM : 0);
  const extent = down ? { width: across, height: plan.along } : { width: plan.along, height: across };
  return { names, edges, open, sizes, plan, extent };
}

const framed = ({ width, height }) => ({ width: width + 2 * FRAME.side, height: height + FRAME.head + FRAME.foot });

/** Write the rectangles and edges of a level, whose corner is `at`, into `found`; returns the extent. */
function place(found, { names, edges, open, sizes, plan, extent }, at, down) {
  const point = ({ along, across }) => (down ? { x: at.x + across, y: at.y + along } : { x: at.x + along, y: at.y + across });
  for (const name of names) {
    const centre = point(plan.centres.get(name));
    const { width, height } = sizes.get(name);
    const corner = { x: centre.x - width / 2, y: centre.y - height / 2 };
    found.rectangles.set(name, { ...corner, width, height });
    if (open.has(name)) place(found, open.get(name), { x: corner.x + FRAME.side, y: corner.y + FRAME.head }, down);
  }
  for (const edge of edges) found.edges.set(edge, route(edge, sizes, plan, point, down));
  return { extent };
}

function route(edge, sizes, plan, point, down) {
  const [from, to] = [plan.centres.get(edge.from), plan.centres.get(edge.to)];
  const [depth, breadth] = down ? ["height", "width"] : ["width", "height"];
  if (plan.back.has(edge) || edge.from === edge.to) {
    const low = { along: (from.along + to.along) / 2, across: beside(plan, sizes, from, to, breadth) };
    const foot = (at, name) => ({ ...at, across: at.across + sizes.get(name)[breadth] / 2 });
    return { isBack: true, points: [foot(from, edge.from), low, foot(to, edge.to)].map(point) };
  }
  const start = { ...from, along: from.along + sizes.get(edge.from)[depth] / 2 };
  const end = { ...to, along: to.along - sizes.get(edge.to)[depth] / 2 };
  return { isBack: false, points: [start, ...plan.corners.get(edge), end].map(point) };
}

/** Where an edge that leads back passes the boxes between its ends: just outside of them. */
function beside(plan, sizes, from, to, breadth) {
  const [low, high] = [Math.min(from.along, to.along), Math.max(from.along, to.along)];
  const passed = [...plan.centres].filter(([, at]) => at.along >= low - 1 && at.along <= high + 1);
  return Math.max(...passed.map(([name, at]) => at.across + sizes.get(name)[breadth] / 2)) + 40;
}
