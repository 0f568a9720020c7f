// The line of an edge, and where its button stands.

/** The path of an edge. */
export function pathOf({ points, isBack }, down) {
  return isBack ? arc(points) : curve(points, down);
}

/** The middle of an edge. */
export function middleOf({ points, isBack }) {
  if (isBack) return points[1];
  const at = (points.length - 1) / 2;
  const [a, b] = [points[Math.floor(at)], points[Math.ceil(at)]];
  return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 };
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

function arc([from, low, to]) {
  const control = { x: 2 * low.x - (from.x + to.x) / 2, y: 2 * low.y - (from.y + to.y) / 2 };
  return `M${from.x} ${from.y}Q${control.x} ${control.y} ${to.x} ${to.y}`;
}
