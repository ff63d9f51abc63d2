// Asks the server again and again: every second in view, seldom when hidden, later and later while
// it is away. One poll is one pair of answers, so that both tell of the same moment.

const IN_VIEW_MS = 1000;
const HIDDEN_MS = 15000;
const AWAY_MS = [1000, 2000, 4000, 8000]; // the last one is kept to
const PATIENCE_MS = 5000;

// An answer that came and is of no use: a proxy's, or another server's.
class BadAnswer extends Error {}

export async function ask(path, read) {
  const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
  if (!answer.ok) throw new BadAnswer(`/${path} answers ${answer.status}`);
  return read(answer);
}

async function books(answer) {
  const memory = await answer.json().catch(() => null);
  if (!Array.isArray(memory?.devices)) throw new BadAnswer("/memory answers no memory report");
  return memory;
}

export class Poller {
  #timer = 0;
  #asking = false;
  #failures = 0;
  #since = 0; // of the first failure, in milliseconds

  // onAnswer({at, memory, metrics}) on each poll; onAway({since, why}) on each without an answer of
  // use, `why` being empty where there was none at all.
  constructor(handlers) {
    this.handlers = handlers;
    document.addEventListener("visibilitychange", () => this.#schedule(document.hidden ? HIDDEN_MS : 0));
    window.addEventListener("online", () => this.#schedule(0));
  }

  start() {
    this.#schedule(0);
  }

  #schedule(delay) {
    clearTimeout(this.#timer);
    if (!this.#asking) this.#timer = setTimeout(() => this.#poll(), delay);
  }

  async #poll() {
    this.#asking = true;
    const began = Date.now();
    try {
      const pair = await this.#pair();
      this.#succeed({ at: Date.now(), ...pair });
    } catch (error) {
      this.#fail(began, error instanceof BadAnswer ? error.message : "");
    }
    this.#asking = false;
    this.#schedule(Math.max(0, this.#interval() - (Date.now() - began)));
  }

  async #pair() {
    const [memory, metrics] = await Promise.all([
      ask("memory", books),
      ask("metrics", (answer) => answer.text()),
    ]);
    return { memory, metrics };
  }

  #fail(at, why) {
    if (this.#failures === 0) this.#since = at;
    this.#failures += 1;
    this.handlers.onAway({ since: this.#since, why });
  }

  #succeed(pair) {
    this.#failures = 0;
    this.handlers.onAnswer(pair);
  }

  #interval() {
    if (document.hidden) return HIDDEN_MS;
    if (this.#failures > 0) return AWAY_MS[Math.min(this.#failures, AWAY_MS.length) - 1];
    return IN_VIEW_MS;
  }
}
