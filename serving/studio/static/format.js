// Numbers for people.

export function bytes(count) {
  if (count < 1000) return `${count} B`;
  for (const unit of ["kB", "MB", "GB"]) {
    count /= 1000;
    if (count < 999.5) return `${count < 10 ? count.toFixed(1) : Math.round(count)} ${unit}`;
  }
  return `${count.toFixed(1)} GB`;
}

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0 s";
  if (value < 0.0995) return `${(value * 1000).toFixed(value < 0.00995 ? 1 : 0)} ms`;
  return value < 100 ? `${value.toFixed(2)} s` : `${Math.round(value)} s`;
}

export function plural(count, noun) {
  return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
}

/** Summarise what an edge did: "783 kB, 34 grafted, 3.1 ms". */
export function edgeSummary(report) {
  const parts = report.bytes ? [bytes(report.bytes)] : [];
  if (report.positions_grafted) parts.push(`${report.positions_grafted} grafted`);
  if (report.positions_fused) parts.push(`${report.positions_fused} fused`);
  const time = report.seconds.transfer ?? report.seconds.fuse;
  if (time) parts.push(seconds(time));
  return parts.join(", ") || "delivered";
}

export function when(epochSeconds) {
  return new Date(epochSeconds * 1000).toLocaleString();
}
