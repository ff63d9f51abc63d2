// The figures of serving: rates, requests, latencies and the tokens of the KV cache.

import { drawLines } from "./chart.js";
import { NONE, integer, rate, seconds, setText, show } from "./format.js";
import { Scrape, Window, quantile, total } from "./metrics.js";

const RATE_SECONDS = 10;
const LATENCY_SECONDS = 60;
const DRAWN = 120; // values of a small line
const LATENCIES = {
  ttft: { metric: "quire_time_to_first_token_seconds", counted: ["request", "requests"] },
  itl: { metric: "quire_inter_token_latency_seconds", counted: ["token", "tokens"] },
};
const PHASES = ["decode", "prompt"];

const by = (id) => document.getElementById(id);

export class ServingView {
  #rates = new Window(RATE_SECONDS);
  #latencies = Object.fromEntries(Object.keys(LATENCIES).map((name) => [name, new Window(LATENCY_SECONDS)]));
  #lines = new Map(); // name -> the last values

  // `text` is the answer of /metrics. Returns whether the engine takes requests.
  update(at, text) {
    const scrape = new Scrape(text);
    this.#showRates(at, scrape);
    this.#showRequests(scrape);
    for (const name of Object.keys(LATENCIES)) this.#showLatency(at, name, scrape);
    this.#showTokens(scrape);
    return scrape.value("quire_engine_up") !== 0;
  }

  #showRates(at, scrape) {
    const computed = (phase) => scrape.value("quire_engine_step_tokens_total", { phase }) ?? 0;
    this.#rates.add(at, new Map(PHASES.map((phase) => [phase, computed(phase)])));
    const added = this.#rates.difference();
    for (const phase of PHASES) {
      const perSecond = added && added.counters.get(phase) / added.seconds;
      show(by(`rate-${phase}`), perSecond, rate);
      this.#remember(phase, perSecond);
    }
    this.#drawLines("spark-rate", ["decode"]);
  }

  #showRequests(scrape) {
    for (const state of ["running", "waiting"]) {
      const count = scrape.value(`quire_requests_${state}`);
      show(by(`requests-${state}`), count, integer);
      this.#remember(state, count);
    }
    this.#drawLines("spark-requests", ["waiting", "running"]);
  }

  #showLatency(at, name, scrape) {
    const { metric, counted } = LATENCIES[name];
    const window = this.#latencies[name];
    window.add(at, scrape.buckets(metric));
    const added = window.difference();
    const count = added ? total(added.counters) : 0;
    const median = count ? quantile(0.5, added.counters) : null;
    const p95 = count ? quantile(0.95, added.counters) : null;
    show(by(`${name}-median`), median, latency);
    show(by(`${name}-p95`), p95, latency);
    const length = added ? Math.round(added.seconds) : 0;
    const what = counted[count === 1 ? 0 : 1];
    setText(by(`${name}-window`), `${integer(count)} ${what} in ${length}\u00a0s`); // on one line
    this.#remember(name, median && median.value);
    this.#drawLines(`spark-${name}`, [name]);
  }

  #showTokens(scrape) {
    const state = (name) => scrape.value("quire_kv_tokens", { state: name });
    const [capacity, held, filled] = ["capacity", "reserved", "filled"].map(state);
    show(by("kv-capacity"), capacity, integer);
    show(by("kv-filled"), filled, integer);
    show(by("kv-reserved"), held === null ? null : held - filled, integer);
    show(by("kv-free"), held === null ? null : capacity - held, integer);
    const cached = cachedTokens(scrape, capacity);
    show(by("kv-cached"), cached, integer);
    const share = (tokens) => String(capacity ? (100 * tokens) / capacity : 0);
    const ends = { filled, reserved: held, cached: held + cached };
    for (const [name, tokens] of Object.entries(ends)) {
      by("kv-bar").querySelector(`.${name}`).setAttribute("width", share(tokens));
    }
  }

  #remember(name, value) {
    const values = [...(this.#lines.get(name) ?? []), value ?? null];
    this.#lines.set(name, values.slice(-DRAWN));
  }

  #drawLines(id, names) {
    const series = names.map((name) => ({ name, values: this.#lines.get(name) }));
    drawLines(by(id), series, DRAWN);
  }
}

// Slots of blocks that no request holds and that keep a prefix for the next one.
function cachedTokens(scrape, capacity) {
  const blocks = scrape.value("quire_kv_blocks");
  return blocks ? (scrape.value("quire_kv_blocks", { state: "cached" }) * capacity) / blocks : null;
}

function latency(found) {
  return found ? `${found.above ? "> " : ""}${seconds(found.value)}` : NONE;
}
