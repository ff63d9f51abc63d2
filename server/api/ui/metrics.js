// Reads the exposition text, and what happened between two readings of it.

const LINE = /^([A-Za-z_]\w*)(?:\{(.*)\})? (\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

// One scrape: samples by metric name.
export class Scrape {
  #samples = new Map();

  constructor(text) {
    for (const line of text.split("\n")) {
      const found = LINE.exec(line);
      if (found === null) continue;
      const [, name, labels = "", value] = found;
      const sample = { labels: Object.fromEntries(pairs(labels)), value: number(value) };
      if (!this.#samples.has(name)) this.#samples.set(name, []);
      this.#samples.get(name).push(sample);
    }
  }

  // The sum of the samples that carry `labels`; null where there is none.
  value(name, labels = {}) {
    const wanted = Object.entries(labels);
    const found = (this.#samples.get(name) ?? []).filter((sample) =>
      wanted.every(([key, value]) => sample.labels[key] === value),
    );
    return found.length ? found.reduce((sum, sample) => sum + sample.value, 0) : null;
  }

  // A histogram's cumulative counts by upper bound, over all its label sets: Map(le -> count).
  buckets(name) {
    const counts = new Map();
    for (const { labels, value } of this.#samples.get(`${name}_bucket`) ?? []) {
      const bound = number(labels.le);
      counts.set(bound, (counts.get(bound) ?? 0) + value);
    }
    return counts;
  }
}

function* pairs(text) {
  for (const [, key, value] of text.matchAll(LABEL)) yield [key, value];
}

function number(text) {
  return text === "+Inf" ? Infinity : Number(text);
}

// Readings of the last `seconds`, and one that is as old or older, to subtract from the newest.
// A reading is a Map of counters; one that went down means a new server, and forgets the rest.
export class Window {
  #readings = [];

  constructor(seconds) {
    this.length = seconds * 1000;
  }

  add(at, counters) {
    const last = this.#readings.at(-1);
    if (last && [...last.counters].some(([key, value]) => (counters.get(key) ?? 0) < value)) {
      this.#readings = [];
    }
    this.#readings.push({ at, counters });
    while (this.#readings.length > 2 && this.#readings[1].at <= at - this.length) {
      this.#readings.shift();
    }
  }

  // {seconds, counters}: what was added since, and in how long. Null after one reading.
  difference() {
    if (this.#readings.length < 2) return null;
    const [first, last] = [this.#readings[0], this.#readings.at(-1)];
    const counters = new Map();
    for (const [key, value] of last.counters) {
      counters.set(key, value - (first.counters.get(key) ?? 0));
    }
    return { seconds: (last.at - first.at) / 1000, counters };
  }
}

export function total(buckets) {
  return buckets.get(Infinity) ?? 0;
}

// The value below which a share `q` of the observations lies, linear within its bucket:
// {value, above}; `above` where it is beyond the last bound. Null without an observation.
export function quantile(q, buckets) {
  const rank = q * total(buckets);
  if (rank === 0) return null;
  let lower = 0;
  let below = 0;
  for (const bound of [...buckets.keys()].sort((a, b) => a - b)) {
    const count = buckets.get(bound);
    if (count >= rank) {
      if (bound === Infinity) return { value: lower, above: true };
      return { value: lower + ((bound - lower) * (rank - below)) / (count - below), above: false };
    }
    [lower, below] = [bound, count];
  }
  return null;
}
