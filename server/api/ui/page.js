// Joins the parts of the page.

import { clock, integer, setText } from "./format.js";
import { MemoryView } from "./memory.js";
import { Playground } from "./playground.js";
import { Poller, ask } from "./poll.js";
import { ServingView } from "./serving.js";
import { addPatterns } from "./svg.js";

const by = (id) => document.getElementById(id);

addPatterns();
const memoryView = new MemoryView();
const servingView = new ServingView();
const playground = new Playground();

function connection(state, text) {
  by("connection").dataset.state = state;
  setText(by("connection"), text);
  document.body.dataset.stale = String(state === "away");
}

let loadedFrom; // the version of the server whose page this is

async function showFacts() {
  const read = (answer) => answer.json();
  const [models, version] = await Promise.all([ask("v1/models", read), ask("version", read)]);
  const [model] = models.data;
  document.title = `Quire: ${model.id}`;
  setText(by("fact-model"), model.id);
  setText(by("fact-length"), `${integer(model.max_model_len)} tokens`);
  setText(by("fact-format"), `${version.dtype} on ${version.device}`);
  loadedFrom ??= version.version;
  const changed = version.version === loadedFrom ? "" : `, this page is of ${loadedFrom}: reload it`;
  setText(by("fact-version"), version.version + changed);
  playground.offerChat(model.chat === true);
}

let known = false; // the server's facts, asked anew after it was away

new Poller({
  async onAnswer({ at, memory, metrics }) {
    memoryView.update(at, memory);
    const up = servingView.update(at, metrics);
    connection(up ? "live" : "down", up ? "live" : "the engine is not ready");
    if (!known) {
      known = true;
      await showFacts().catch(() => (known = false)); // with the next answer, then
    }
  },
  onAway({ since, why }) {
    known = false;
    memoryView.gap();
    connection("away", `${why || "no answer"} since ${clock(since)}, trying again`);
  },
}).start();
