// What the graph stacks: a band for each kind of /memory, in its order, and for each part of the KV
// cache, which is where memory moves while requests come and go.

export const LARGE = ["other_processes", "free"]; // hidden at first, or the others are too thin

// [{id, label, kind, bytes}] of one device of /memory.
export function bandsOf(device) {
  return Object.entries(device.kinds).flatMap(([kind, line]) => {
    const parts = partsOf(kind, line);
    if (parts.length === 0) return [{ id: kind, label: named(kind), kind, bytes: line.bytes ?? 0 }];
    return parts.map(({ part, bytes }) => ({
      id: `${kind}-${part}`,
      label: `KV ${named(part)}`,
      kind,
      bytes,
    }));
  });
}

// The parts that stand in the stack in place of their kind; none where they do not add up to it.
export function partsOf(kind, line) {
  if (kind !== "kv_cache") return [];
  const parts = line.parts ?? [];
  return parts.reduce((sum, { bytes }) => sum + bytes, 0) === line.bytes ? parts : [];
}

export function named(kind) {
  return kind.replaceAll("_", " ");
}
