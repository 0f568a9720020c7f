// Layered drawing of a graph: layers by the longest path, order by the neighbours' average, then packed without overlap.

const SWEEPS = 6;

/**
 * Place boxes. `sizeOf(name)` and `gap` are {along, across} of boxes and the distances between them, and `label` how far
 * across the label in the middle of an edge reaches.
 * Returns centres by name, the inner points of each edge, the edges that lead back, and the extent.
 */
export function arrange(names, edges, sizeOf, gap, label) {
  const back = backEdges(names, edges);
  const forward = edges.filter((edge) => !back.has(edge) && edge.from !== edge.to);
  const layerOf = longestPaths(names, forward);
  const layers = [];
  for (const name of names) (layers[layerOf.get(name)] ??= []).push(name);
  const chains = new Map(forward.map((edge) => [edge, addCorners(edge, layerOf, layers)]));
  const width = (slot) => (typeof slot === "string" ? sizeOf(slot).across : slot.isMiddle ? label : 12);
  const across = place(layers, [...chains.values()], width, gap.across);
  const [starts, depths] = rows(layers, sizeOf, gap.along);
  const along = (layer) => starts[layer] + depths[layer] / 2;
  const top = Math.min(...[...across].map(([slot, at]) => at - width(slot) / 2));
  const centres = new Map(names.map((name) => [name, { along: along(layerOf.get(name)), across: across.get(name) - top }]));
  const corners = new Map();
  for (const [edge, chain] of chains) {
    const inner = chain.slice(1, -1);
    corners.set(edge, inner.map((slot) => ({ along: along(slot.layer), across: across.get(slot) - top })));
  }
  const bottom = Math.max(...[...across].map(([slot, at]) => at + width(slot) / 2));
  return { centres, corners, back, along: starts.at(-1) + depths.at(-1), across: bottom - top };
}

/** Where each layer starts, and how deep it is. */
function rows(layers, sizeOf, gap) {
  const depths = layers.map((slots) => Math.max(...slots.map((slot) => (typeof slot === "string" ? sizeOf(slot).along : 0))));
  const starts = [0];
  for (const depth of depths.slice(0, -1)) starts.push(starts.at(-1) + depth + gap);
  return [starts, depths];
}

/** The edges that close a cycle, found depth first in the order of the recipe. */
function backEdges(names, edges) {
  const out = new Map(names.map((name) => [name, edges.filter((edge) => edge.from === name)]));
  const state = new Map();
  const back = new Set();
  for (const root of names) {
    const stack = [{ name: root, next: 0 }];
    if (state.has(root)) continue;
    state.set(root, "open");
    while (stack.length) {
      const top = stack.at(-1);
      const edge = out.get(top.name)[top.next++];
      if (edge === undefined) {
        state.set(top.name, "done");
        stack.pop();
      } else if (state.get(edge.to) === "open") back.add(edge);
      else if (!state.has(edge.to) && out.has(edge.to)) {
        state.set(edge.to, "open");
        stack.push({ name: edge.to, next: 0 });
      }
    }
  }
  return back;
}

function longestPaths(names, forward) {
  const layer = new Map(names.map((name) => [name, 0]));
  for (let round = 0; round < names.length; round++) {
    let changed = false;
    for (const { from, to } of forward) {
      if (layer.get(to) < layer.get(from) + 1) changed = layer.set(to, layer.get(from) + 1) && true;
    }
    if (!changed) break;
  }
  return layer;
}

/** Give a long edge a corner in every layer that it crosses. */
function addCorners(edge, layerOf, layers) {
  const chain = [edge.from];
  for (let layer = layerOf.get(edge.from) + 1; layer < layerOf.get(edge.to); layer++) {
    const corner = { edge, layer };
    layers[layer].push(corner);
    chain.push(corner);
  }
  if (chain.length % 2 === 0) chain[chain.length / 2].isMiddle = true;
  return [...chain, edge.to];
}

/** The centres across of every slot, a box or a corner. */
function place(layers, chains, extent, gap) {
  const before = new Map();
  const after = new Map();
  for (const chain of chains) {
    chain.slice(1).forEach((slot, index) => {
      before.set(slot, [...(before.get(slot) ?? []), chain[index]]);
      after.set(chain[index], [...(after.get(chain[index]) ?? []), slot]);
    });
  }
  const at = new Map();
  for (const slots of layers) pack(slots, () => 0, extent, gap, at);
  const mean = (slots, otherwise) => (slots.length ? slots.reduce((sum, slot) => sum + at.get(slot), 0) / slots.length : otherwise);
  for (let sweep = 0; sweep < SWEEPS; sweep++) {
    const beside = sweep % 2 ? after : before;
    for (const slots of sweep % 2 ? [...layers].reverse() : layers) {
      const wish = new Map(slots.map((slot) => [slot, mean(beside.get(slot) ?? [], at.get(slot))]));
      slots.sort((a, b) => wish.get(a) - wish.get(b));
      pack(slots, (slot) => wish.get(slot), extent, gap, at);
    }
  }
  for (const slots of layers) {
    const wish = new Map(slots.map((slot) => [slot, mean([...(before.get(slot) ?? []), ...(after.get(slot) ?? [])], at.get(slot))]));
    pack(slots, (slot) => wish.get(slot), extent, gap, at);
  }
  return at;
}

/** Place slots at their wishes; centre those that collide around their average wish. */
function pack(slots, wish, extent, gap, at) {
  const blocks = [];
  for (const slot of slots) {
    let block = { slots: [slot], offsets: [0], start: wish(slot) };
    while (blocks.length && endOf(blocks.at(-1), extent) + gap > block.start - extent(block.slots[0]) / 2) {
      block = join(blocks.pop(), block, wish, extent, gap);
    }
    blocks.push(block);
  }
  for (const { slots: members, offsets, start } of blocks) members.forEach((slot, index) => at.set(slot, start + offsets[index]));
}

const endOf = (block, extent) => block.start + block.offsets.at(-1) + extent(block.slots.at(-1)) / 2;

function join(first, second, wish, extent, gap) {
  const slots = [...first.slots, ...second.slots];
  const offsets = [0];
  for (let i = 1; i < slots.length; i++) offsets.push(offsets[i - 1] + (extent(slots[i - 1]) + extent(slots[i])) / 2 + gap);
  const start = slots.reduce((sum, slot, index) => sum + wish(slot) - offsets[index], 0) / slots.length;
  return { slots, offsets, start };
}
