// A form that streams one answer. What the model writes is shown as text and never read as markup.

import { integer, rate, seconds, setText } from "./format.js";

const ROUTES = {
  completion: {
    path: "v1/completions",
    prompt: (text) => ({ prompt: text }),
    text: (choice) => choice.text,
  },
  chat: {
    path: "v1/chat/completions",
    prompt: (text) => ({ messages: [{ role: "user", content: text }] }),
    text: (choice) => choice.delta?.content,
  },
};
const NUMBERS = { "max-tokens": "max_tokens", temperature: "temperature", seed: "seed" };

const by = (id) => document.getElementById(id);

// An error as the API words it.
class ApiError extends Error {
  constructor({ message, code, param }) {
    super(message);
    this.about = [code, param].filter(Boolean).join(", ");
  }
}

export class Playground {
  #running = null; // the AbortController of the answer under way

  constructor() {
    by("form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#run();
    });
    by("form").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) by("form").requestSubmit();
    });
    by("stop").addEventListener("click", () => this.#running?.abort());
    by("mode").addEventListener("change", () => {
      setText(by("playground-route"), `POST /${this.#route.path}`);
    });
  }

  // Chat is offered where the served model has a chat template.
  offerChat(served) {
    by("mode").hidden = !served;
  }

  get #route() {
    const mode = by("mode").hidden ? "completion" : new FormData(by("form")).get("mode");
    return ROUTES[mode];
  }

  async #run() {
    if (this.#running) return;
    this.#running = new AbortController();
    const answer = { began: performance.now(), first: 0, last: 0, usage: null, reason: null };
    this.#begin();
    try {
      await this.#stream(answer, this.#running.signal);
      this.#say("done", summary(answer));
    } catch (error) {
      this.#fail(error, answer);
    } finally {
      this.#running = null;
      this.#end();
    }
  }

  async #stream(answer, signal) {
    const route = this.#route;
    const response = await fetch(route.path, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ ...route.prompt(by("prompt").value), ...settings() }),
      signal,
    });
    if (!response.ok) throw await refusal(response);
    let done = false;
    for await (const { name, data } of events(response.body)) {
      if (data === "[DONE]") done = true;
      else if (name === "error") throw new ApiError(JSON.parse(data).error);
      else this.#take(JSON.parse(data), route, answer);
    }
    if (!done) throw new ApiError({ message: "The answer ended before it was complete." });
  }

  #take({ choices, usage }, route, answer) {
    answer.usage = usage ?? answer.usage;
    for (const choice of choices) {
      const text = route.text(choice);
      if (text) {
        answer.last = performance.now();
        answer.first ||= answer.last;
        this.#append(text);
      }
      answer.reason = choice.finish_reason ?? answer.reason;
    }
  }

  #append(text) {
    const output = by("output");
    const atEnd = output.scrollHeight - output.scrollTop - output.clientHeight < 24;
    output.append(text); // a text node
    if (atEnd) output.scrollTop = output.scrollHeight;
  }

  #begin() {
    by("output").replaceChildren();
    by("output").setAttribute("aria-busy", "true"); // to be read out when it is whole
    by("stop").disabled = false;
    if (document.activeElement === by("run")) by("stop").focus();
    by("run").disabled = true;
    this.#say("busy", "Streaming.");
  }

  #end() {
    const stopped = document.activeElement === by("stop");
    by("run").disabled = false;
    if (stopped) by("run").focus();
    by("stop").disabled = true;
    by("output").setAttribute("aria-busy", "false");
  }

  #fail(error, answer) {
    if (error.name === "AbortError") {
      const first = answer.first ? ` First token after ${duration(answer.first - answer.began)}.` : "";
      this.#say("stopped", `Stopped.${first}`);
    } else if (error instanceof ApiError) {
      this.#say("error", error.about ? `${error.message} (${error.about})` : error.message);
    } else {
      this.#say("error", `The server cannot be reached: ${error.message}.`);
    }
  }

  #say(state, text) {
    by("outcome").dataset.state = state;
    setText(by("outcome"), text);
  }
}

async function refusal(response) {
  const body = await response.json().catch(() => null); // a proxy's answer need not be JSON
  return new ApiError(body?.error ?? { message: `The answer was ${response.status}.` });
}

// The fields that were filled in; the server decides about their values.
function settings() {
  const filled = Object.entries(NUMBERS)
    .filter(([id]) => by(id).value !== "")
    .map(([id, field]) => [field, Number(by(id).value)]);
  return { ...Object.fromEntries(filled), stream: true, stream_options: { include_usage: true } };
}

function summary({ began, first, last, usage, reason }) {
  const parts = [];
  if (usage) {
    parts.push(`${integer(usage.prompt_tokens)} + ${integer(usage.completion_tokens)} tokens`);
  }
  if (first) parts.push(`first after ${duration(first - began)}`);
  const generated = usage?.completion_tokens ?? 0;
  if (generated > 1 && last > first) {
    parts.push(`${rate(((generated - 1) * 1000) / (last - first))} tokens/s`);
  }
  if (reason) parts.push(`ended by ${reason}`);
  return parts.join(" · ");
}

function duration(milliseconds) {
  return seconds(milliseconds / 1000);
}

// Server-sent events of a body: {name, data}.
async function* events(body) {
  let rest = "";
  for await (const text of chunks(body.pipeThrough(new TextDecoderStream()))) {
    const blocks = (rest + text).split(/\r?\n\r?\n/);
    rest = blocks.pop();
    for (const block of blocks) {
      const fields = block.split(/\r?\n/).map((line) => /^(\w+): ?(.*)$/s.exec(line));
      const of = (key) => fields.filter((field) => field?.[1] === key).map((field) => field[2]);
      const data = of("data");
      if (!data.length) continue;  // a comment, which keeps the connection alive
      yield { name: of("event")[0] ?? "message", data: data.join("\n") };
    }
  }
}

// A stream as something to iterate; not every browser's streams are.
async function* chunks(stream) {
  const reader = stream.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    await reader.cancel();
  }
}
