// The memory section: keeps what was seen, draws it, and shows any moment of it in the table.

import { LARGE, bandsOf } from "./bands.js";
import { StackedChart } from "./chart.js";
import { bytes, clock, setText } from "./format.js";
import { Ledger } from "./ledger.js";

const KEPT = 900; // samples of a device: a quarter of an hour in view
const SPAN_MS = { least: 60_000, most: 900_000, step: 30_000 }; // of the graph: what holds all
const GAP_MS = 40_000; // between two samples: what lies between is not drawn

const by = (id) => document.getElementById(id);

export class MemoryView {
  #samples = new Map(); // device -> [{at, device, bands} or null]
  #device = null; // the name of the one shown
  #chosen = null; // the sample that the visitor went back to; null is now
  #pointed = null; // the sample under the pointer
  #hidden = new Set(LARGE);
  #from = 0; // the time at the graph's left edge

  constructor() {
    this.chart = new StackedChart(by("chart"));
    this.ledger = new Ledger({
      body: by("ledger"),
      foot: by("ledger-foot"),
      total: by("ledger-total"),
      check: by("ledger-check"),
    });
    for (const kind of LARGE) {
      by(`show-${kind}`).addEventListener("change", ({ target }) => {
        this.#hidden[target.checked ? "delete" : "add"](kind);
        this.#draw();
      });
    }
    by("device").addEventListener("change", ({ target }) => this.#choose(target.value));
    by("moment").addEventListener("input", ({ target }) => this.#goTo(Number(target.value)));
    by("moment-live").addEventListener("click", () => this.#goTo(Infinity));
    by("chart").addEventListener("pointermove", (event) => this.#point(event.offsetX));
    by("chart").addEventListener("pointerleave", () => this.#point(null));
    new ResizeObserver(() => this.#draw()).observe(by("chart"));
  }

  // `memory` is the answer of /memory. A device whose engine has no reading yet leaves a gap.
  update(at, memory) {
    const names = memory.devices.map(({ device }) => device);
    for (const device of memory.devices) {
      if (device.ready === false) this.#keep(device.device, null);
      else this.#keep(device.device, { at, device, bands: bandsOf(device) });
    }
    if (!names.includes(this.#device)) this.#device = names[0];
    this.#offer(names);
    setText(by("memory-notes"), (memory.notes ?? []).join(" "));
    this.#draw();
  }

  // Nothing is known of this time.
  gap() {
    for (const name of this.#samples.keys()) this.#keep(name, null);
    this.#draw();
  }

  get #seen() {
    return (this.#samples.get(this.#device) ?? []).filter(Boolean);
  }

  #keep(name, sample) {
    const kept = this.#samples.get(name) ?? [];
    const last = kept.at(-1);
    if (sample && last && sample.at - last.at > GAP_MS) kept.push(null);
    if (sample || last) kept.push(sample);
    this.#samples.set(name, kept.slice(-KEPT));
  }

  #offer(names) {
    const select = by("device");
    by("device-choice").hidden = names.length < 2;
    if ([...select.options].map(({ value }) => value).join() === names.join()) return;
    select.replaceChildren(...names.map((name) => new Option(name, name, false, name === this.#device)));
  }

  #choose(name) {
    this.#device = name;
    this.#chosen = null;
    this.#draw();
  }

  // To the sample nearest to a place of the slider; one further where that is the one shown, so that
  // a key always moves.
  #goTo(second) {
    const seen = this.#seen;
    const at = this.#from + second * 1000;
    const shown = this.#chosen ? seen.indexOf(this.#chosen) : seen.length - 1;
    let index = seen.indexOf(nearest(seen, at));
    if (index === shown) index += at < seen[shown].at ? -1 : 1;
    const live = second === Infinity || index >= seen.length - 1;
    this.#chosen = live ? null : seen[Math.max(0, index)];
    this.#draw();
  }

  #point(offset) {
    const known = offset !== null && this.chart.at && this.#seen.length > 0;
    this.#pointed = known ? nearest(this.#seen, this.chart.at(offset)) : null;
    this.#draw();
  }

  #draw() {
    const seen = this.#seen;
    if (seen.length === 0) return;
    if (!seen.includes(this.#chosen)) this.#chosen = null;
    const last = seen.at(-1);
    const marked = this.#pointed ?? this.#chosen;
    this.#tell(marked ?? last, marked !== null);
    const span = spanOf(last.at - seen[0].at);
    const samples = this.#samples.get(this.#device);
    this.#from = last.at - span;
    this.#slide(span);
    this.chart.draw({ samples, hidden: this.#hidden, from: this.#from, to: last.at, marked });
  }

  #tell({ at, device }, earlier) {
    this.ledger.update(device);
    setText(by("ledger-now"), earlier ? clock(at) : "now");
    setText(by("moment-text"), earlier ? clock(at) : "now");
    const held = device.resident_bytes ? `, the engine holds ${bytes(device.resident_bytes)}` : "";
    setText(by("memory-line"), `${device.device}: ${bytes(device.total_bytes)}${held}`);
  }

  #slide(span) {
    const slider = by("moment");
    const at = this.#chosen ? this.#chosen.at - this.#from : span;
    slider.max = String(span / 1000);
    slider.value = String(at / 1000);
    slider.setAttribute("aria-valuetext", this.#chosen ? clock(this.#chosen.at) : "now");
    by("moment-live").hidden = this.#chosen === null;
  }
}

// Grows in steps: a width that grew with each sample would never stand still.
function spanOf(milliseconds) {
  const { least, most, step } = SPAN_MS;
  return Math.min(most, Math.max(least, Math.ceil(milliseconds / step) * step));
}

function nearest(samples, at) {
  const away = (sample) => Math.abs(sample.at - at);
  return samples.reduce((best, one) => (away(one) < away(best) ? one : best));
}
