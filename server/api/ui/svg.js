// SVG elements, and the inks and patterns that tell the kinds of memory apart without colour.

const NAMESPACE = "http://www.w3.org/2000/svg";
const TILE = 6; // pixels
const MARKS = {
  hatch: "M-1 7L7 -1M-1 1L1 -1M5 7L7 5",
  back: "M-1 -1L7 7M5 -1L7 1M-1 5L1 7",
  cross: "M-1 7L7 -1M-1 -1L7 7",
  dots: "M1 1h1.4v1.4h-1.4zM4 4h1.4v1.4h-1.4z",
  points: "M2 2h1v1h-1z",
  rows: "M0 3h6",
  sparse: "M-1 7L7 -1",
};
const THIN = ["points", "rows", "sparse"]; // of what does not change, or is not used
const MARK_OF = {
  "kv_cache-cached": "hatch",
  "kv_cache-tail_waste": "dots",
  "kv_cache-free": "sparse",
  graphs: "back",
  workspace: "hatch",
  runtime: "rows",
  unaccounted: "cross",
  other_processes: "back",
  free: "points",
};
const KNOWN = [
  ...["weights", "kv_cache", "kv_cache-active", "activations", "io", "allocator_slack"],
  ...Object.keys(MARK_OF),
];

export function svg(name, attributes = {}, ...children) {
  const element = document.createElementNS(NAMESPACE, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

export function ink(id) {
  return `var(--band-${KNOWN.includes(id) ? id : "unknown"})`;
}

// Fills `element` as the band `id` is filled everywhere.
export function fillAs(element, id) {
  const mark = MARK_OF[id];
  element.style.fill = mark ? `url("#mark-${id}")` : ink(id);
  return element;
}

export function swatch(id) {
  const rect = fillAs(svg("rect", { width: 11, height: 11, x: 0.5, y: 0.5, rx: 1.5 }), id);
  rect.style.stroke = ink(id);
  return svg("svg", { class: "swatch", viewBox: "0 0 12 12", "aria-hidden": "true" }, rect);
}

// The patterns, once in the document.
export function addPatterns() {
  const patterns = Object.entries(MARK_OF).map(([id, mark]) => {
    const ground = svg("rect", { width: TILE, height: TILE });
    ground.style.fill = ink(id);
    ground.style.fillOpacity = THIN.includes(mark) ? 0.14 : 0.3;
    const line = svg("path", { d: MARKS[mark] });
    line.style.stroke = ink(id);
    line.style.strokeWidth = THIN.includes(mark) ? 0.8 : 1.5;
    line.style.fill = ["dots", "points"].includes(mark) ? ink(id) : "none";
    const size = { width: TILE, height: TILE, patternUnits: "userSpaceOnUse" };
    return svg("pattern", { id: `mark-${id}`, ...size }, ground, line);
  });
  const holder = svg("svg", { width: 0, height: 0, class: "unseen", "aria-hidden": "true" });
  holder.append(svg("defs", {}, ...patterns));
  document.body.append(holder);
}
