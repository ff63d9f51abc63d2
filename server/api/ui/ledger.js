// The table of the kinds: the graph's legend, its numbers, and the books in words.

import { named, partsOf } from "./bands.js";
import { bytes, integer, setText, show } from "./format.js";
import { swatch } from "./svg.js";

export class Ledger {
  #rows = new Map(); // id -> {now, peak, planned, detail}
  #shape = "";

  constructor({ body, foot, total, check }) {
    Object.assign(this, { body, foot, total, check });
  }

  // `device` is one of /memory's, of now or of an earlier moment.
  update(device) {
    this.#build(device);
    for (const [kind, line] of Object.entries(device.kinds)) {
      const row = this.#rows.get(kind);
      show(row.now, line.bytes, bytes);
      show(row.peak, line.peak_bytes, bytes);
      show(row.planned, line.planned_bytes, bytes);
      row.estimated.hidden = !line.estimated;
      for (const { part, bytes: held } of partsOf(kind, line)) {
        show(this.#rows.get(`${kind}-${part}`).now, held, bytes);
      }
      if (!row.detail.hidden) this.#explain(row, kind, line, device);
    }
    this.#close(device);
  }

  // The last line: do all kinds together make the device?
  #close(device) {
    const lines = Object.values(device.kinds);
    const off = device.total_bytes - lines.reduce((sum, line) => sum + (line.bytes ?? 0), 0);
    show(this.total, device.total_bytes, bytes);
    setText(this.check, off === 0 ? "the sum of all kinds" : `the kinds are off by ${bytes(off)}`);
    this.check.dataset.balanced = String(off === 0);
    this.foot.hidden = false;
  }

  #build(device) {
    this.latest = device;
    const shape = Object.entries(device.kinds)
      .map(([kind, line]) => [kind, ...partsOf(kind, line).map(({ part }) => part)].join(" "))
      .join(";");
    if (shape === this.#shape) return;
    this.#shape = shape;
    this.#rows.clear();
    this.body.replaceChildren();
    for (const [kind, line] of Object.entries(device.kinds)) {
      const parts = partsOf(kind, line);
      this.#addKind(kind, parts.length > 0);
      for (const { part } of parts) this.#addPart(`${kind}-${part}`, part);
    }
  }

  #addKind(kind, divided) {
    const detail = element("tr", { class: "detail", id: `detail-${kind}`, hidden: "" });
    detail.append(element("td", { colspan: 4 }));
    const button = element("button", { type: "button", "aria-expanded": "false" });
    button.setAttribute("aria-controls", detail.id);
    button.append(divided ? element("span", { class: "swatch" }) : swatch(kind), named(kind));
    const row = { ...this.#addRow(kind, "kind", button), detail };
    row.estimated = element("abbr", { title: "estimated", hidden: "" });
    row.estimated.textContent = "est.";
    button.after(" ", row.estimated);
    button.addEventListener("click", () => {
      detail.hidden = !detail.hidden;
      button.setAttribute("aria-expanded", String(!detail.hidden));
      if (!detail.hidden) this.#explain(row, kind, this.latest.kinds[kind], this.latest);
    });
    this.body.append(detail);
    this.#rows.set(kind, row);
  }

  #addPart(id, part) {
    const name = element("span");
    name.append(swatch(id), named(part));
    this.#rows.set(id, this.#addRow(id, "part", name));
  }

  #addRow(id, kind, name) {
    const row = element("tr", { class: kind, "data-band": id });
    const head = element("th", { scope: "row" });
    head.append(name);
    row.append(head);
    const cells = ["now", "peak", "planned"].map((column) => {
      const data = element("data", { "data-column": column, value: "" });
      const cell = element("td");
      if (kind === "kind" || column === "now") cell.append(data);
      row.append(cell);
      return [column, data];
    });
    this.body.append(row);
    return Object.fromEntries(cells);
  }

  // The formula with its numbers, and the parts with theirs.
  #explain(row, kind, line, device) {
    const formula = element("p");
    formula.textContent = line.formula ?? "";
    const list = element("dl");
    for (const part of partsOf(kind, line).length ? [] : (line.parts ?? [])) {
      const name = element("dt");
      name.textContent = part.format ? `${named(part.part)} (${part.format})` : named(part.part);
      const value = element("dd");
      value.textContent = bytes(part.bytes);
      const pair = element("div");
      pair.append(name, value);
      list.append(pair);
    }
    const about = element("p");
    about.textContent = kind === "kv_cache" ? blocks(device.kv) : "";
    const content = [formula, about, list].filter((one) => one.textContent);
    row.detail.firstElementChild.replaceChildren(...content);
  }
}

function blocks(kv) {
  if (!kv) return "";
  const held = kv.mean_bytes_per_running_request;
  const mean = held ? `; a running request holds ${bytes(held)} on average` : "";
  return (
    `${integer(kv.bytes_per_token)} B a token, ` +
    `${integer(kv.bytes_per_block)} B a block of ${kv.block_size_tokens}${mean}`
  );
}

function element(name, attributes = {}) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}
