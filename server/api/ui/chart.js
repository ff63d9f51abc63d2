// The stacked area over time, and the small lines of the figures. Own code: a few paths a second.

import { clock } from "./format.js";
import { fillAs, ink, svg } from "./svg.js";

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];
const LABEL_HEIGHT = 13; // pixels between two names at the right
const TICK_SECONDS = [10, 15, 30, 60, 120, 300];

// Draws into an <svg>. Bands with less than nothing (unaccounted is signed) take no height.
export class StackedChart {
  constructor(element) {
    this.element = element;
  }

  // samples: [{at, bands: [{id, label, bytes}]} or null for a gap], oldest first; `hidden` holds the
  // kinds left out; `marked` is the sample under a line, or null.
  draw({ samples, hidden, from, to, marked }) {
    const { width, height } = this.element.getBoundingClientRect();
    if (width === 0) return;
    const wide = width > 480;
    const stacks = samples.map((sample) => sample && stack(sample, hidden));
    const scale = memoryScale(Math.max(1, ...stacks.map((one) => one?.top ?? 0)));
    const plot = { left: 58, right: width - (wide ? 118 : 4), top: 8, bottom: height - 20 };
    this.x = (at) => plot.left + ((at - from) / (to - from)) * (plot.right - plot.left);
    this.at = (x) => from + ((x - plot.left) / (plot.right - plot.left)) * (to - from);
    this.y = (bytes) => plot.bottom - (bytes / scale.top) * (plot.bottom - plot.top);
    this.element.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.element.replaceChildren(
      ...this.#axes(plot, scale, from, to),
      ...this.#areas(stacks.filter((one) => !one || one.at >= from)),
      ...(wide ? this.#names(stacks.findLast((one) => one), plot) : []),
      ...(marked ? [this.#line("mark", this.x(marked.at), plot.top, this.x(marked.at), plot.bottom)] : []),
    );
  }

  #axes(plot, scale, from, to) {
    const parts = [];
    for (let bytes = 0; bytes <= scale.top; bytes += scale.step) {
      const y = this.y(bytes);
      parts.push(this.#line("grid", plot.left, y, plot.right, y));
      parts.push(text(plot.left - 8, y + 4, sizeLabel(bytes), "end"));
    }
    const most = Math.max(2, Math.floor((plot.right - plot.left) / 84));
    const span = (to - from) / 1000;
    const step = (TICK_SECONDS.find((seconds) => span / seconds <= most) ?? 300) * 1000;
    for (let at = Math.ceil(from / step) * step; at <= to; at += step) {
      const x = this.x(at);
      if (x < plot.left + 24 || x > plot.right - 20) continue;
      parts.push(this.#line("grid", x, plot.bottom, x, plot.bottom + 4));
      parts.push(text(x, plot.bottom + 16, clock(at), "middle"));
    }
    return parts;
  }

  #areas(stacks) {
    const ids = new Set(stacks.flatMap((one) => (one ? one.bands.map(({ id }) => id) : [])));
    return [...ids].map((id) => {
      const path = svg("path", { class: "area", "data-band": id, d: this.#outline(stacks, id) });
      return fillAs(path, id);
    });
  }

  #outline(stacks, id) {
    return runs(stacks.map((one) => one && one.spans.has(id) && { at: one.at, ...one.spans.get(id) }))
      .map((run) => {
        const upper = run.map(({ at, high }) => point(this.x(at), this.y(high)));
        const lower = run.map(({ at, low }) => point(this.x(at), this.y(low))).reverse();
        return `M${[...upper, ...lower].join("L")}Z`;
      })
      .join("");
  }

  // Each band's name at its height, pushed apart where bands are thin, with a line to its band.
  #names(last, plot) {
    if (!last) return [];
    const names = last.bands
      .filter(({ bytes }) => bytes > 0)
      .map(({ id, label }) => {
        const { low, high } = last.spans.get(id);
        return { id, label, at: this.y((low + high) / 2), y: this.y((low + high) / 2) };
      });
    spread(names, plot.top + 4, plot.bottom - 2);
    const edge = this.x(last.at);
    return names.flatMap(({ id, label, at, y }) => {
      const d = `M${point(edge + 1, at)}L${point(plot.right + 5, at)}L${point(plot.right + 13, y)}`;
      const leader = svg("path", { class: "leader", d });
      leader.style.stroke = ink(id);
      return [leader, text(plot.right + 17, y + 4, label, "start")];
    });
  }

  #line(kind, x1, y1, x2, y2) {
    return svg("line", { class: kind, x1, y1, x2, y2 });
  }
}

// A line for each series in a small picture: [{name, values}], null where there is no value.
export function drawLines(element, series, length) {
  const [width, height] = [120, 32];
  const most = Math.max(1e-9, ...series.flatMap(({ values }) => values));
  element.setAttribute("viewBox", `0 0 ${width} ${height}`);
  element.setAttribute("preserveAspectRatio", "none");
  const paths = series.map(({ name, values }) => {
    const points = values.map((value, index) => ({
      gone: value === null,
      x: width - ((values.length - 1 - index) / (length - 1)) * width,
      y: height - 1 - (value / most) * (height - 3),
    }));
    const drawn = runs(points.map((one) => !one.gone && one));
    const d = drawn.map((run) => `M${run.map(({ x, y }) => point(x, y)).join("L")}`).join("");
    return svg("path", { class: `line ${name}`, d });
  });
  element.replaceChildren(...paths);
}

function stack(sample, hidden) {
  const bands = sample.bands.filter(({ kind }) => !hidden.has(kind));
  const spans = new Map();
  let top = 0;
  for (const { id, bytes } of bands) {
    const high = top + Math.max(0, bytes);
    spans.set(id, { low: top, high });
    top = high;
  }
  return { at: sample.at, bands, spans, top };
}

// Stretches of a list without a gap.
function runs(list) {
  const found = [];
  let open = false;
  for (const item of list) {
    if (item && !open) found.push([]);
    if (item) found.at(-1).push(item);
    open = Boolean(item);
  }
  return found;
}

// Lines at powers of two, at most five, the topmost at or above `most`.
function memoryScale(most) {
  const step = 2 ** Math.ceil(Math.log2(most / 5));
  return { step, top: Math.ceil(most / step) * step };
}

function sizeLabel(bytes) {
  const power = bytes === 0 ? 0 : Math.floor(Math.log2(bytes) / 10);
  return bytes === 0 ? "0" : `${bytes / 1024 ** power} ${UNITS[power]}`;
}

// Moves names, given lowest band first (largest y), until none overlaps another.
function spread(names, top, bottom) {
  let limit = bottom;
  for (const name of names) {
    name.y = Math.min(name.y, limit);
    limit = name.y - LABEL_HEIGHT;
  }
  limit = top;
  for (const name of names.toReversed()) {
    name.y = Math.max(name.y, limit);
    limit = name.y + LABEL_HEIGHT;
  }
}

function point(x, y) {
  return `${x.toFixed(1)} ${y.toFixed(1)}`;
}

function text(x, y, content, anchor) {
  const element = svg("text", { x, y, "text-anchor": anchor });
  element.textContent = content;
  return element;
}
