// Shows /openapi.json: each operation with its fields, its answers and an example.

const SCHEMAS = "#/components/schemas/";

function element(name, text, children = []) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  made.append(...children);
  return made;
}

function folded(title, children) {
  return element("details", "", [element("summary", title), ...children]);
}

function bounds(schema) {
  const found = [];
  const low = schema.exclusiveMinimum ?? schema.minimum;
  if (low !== undefined) {
    found.push(`${schema.exclusiveMinimum === undefined ? "from" : "above"} ${low} to ${schema.maximum}`);
  }
  for (const [unit, least, most] of [
    ["characters", schema.minLength, schema.maxLength],
    ["items", schema.minItems, schema.maxItems],
    ["entries", schema.minProperties, schema.maxProperties],
  ]) {
    if (most !== undefined) found.push(`${least ?? 0} to ${most} ${unit}`);
  }
  return found.length ? ` (${found.join(", ")})` : "";
}

// What a value may be, in a line.
function said(schema) {
  if (schema.$ref) return schema.$ref.replace(SCHEMAS, "");
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices) return choices.map(said).join(" or ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" or ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.type === "array") return `list of ${schema.items ? said(schema.items) : "anything"}${bounds(schema)}`;
  return `${schema.type ?? "anything"}${bounds(schema)}`;
}

function table(rows) {
  const lines = rows.map((cells) => element("tr", "", cells.map((cell) => element("td", cell))));
  return element("table", "", [element("tbody", "", lines)]);
}

// A field that is served only where it asks for nothing has no type, just those values.
function isServed(schema) {
  return !(schema.enum || schema.type === "null");
}

function fields(schema) {
  const required = new Set(schema.required ?? []);
  const rows = (served) =>
    Object.entries(schema.properties ?? {})
      .filter(([, field]) => isServed(field) === served)
      .map(([name, field]) => [required.has(name) ? `${name} *` : name, said(field), field.description ?? ""]);
  const others = rows(false);
  const parts = [table(rows(true))];
  if (others.length) {
    parts.push(folded(`${others.length} fields that are known and not served`, [table(others)]));
  }
  return parts;
}

function code(value) {
  return element("pre", JSON.stringify(value, null, 2));
}

function named(api, schema) {
  return schema.$ref ? api.components.schemas[schema.$ref.replace(SCHEMAS, "")] : schema;
}

function requestOf(api, operation) {
  const schema = operation.requestBody?.content["application/json"]?.schema;
  if (!schema) return [];
  const model = named(api, schema);
  const examples = (model.examples ?? []).map(code);
  return [element("h4", "Request"), ...fields(model), ...(examples.length ? [folded("Examples", examples)] : [])];
}

function answersOf(operation) {
  const rows = Object.entries(operation.responses).map(([status, answer]) => [
    status,
    Object.entries(answer.content ?? {})
      .map(([type, { schema, itemSchema }]) => `${type}: ${said(schema ?? itemSchema ?? {})}`)
      .join("; "),
    answer.description ?? "",
  ]);
  return [element("h4", "Answers"), table(rows)];
}

function operationOf(api, path, method, operation) {
  const parameters = (operation.parameters ?? []).map((one) => [
    `${one.name} (${one.in})`,
    said(one.schema ?? {}),
    one.description ?? "",
  ]);
  const title = element("h3", `${method.toUpperCase()} ${path}`);
  title.id = operation.operationId;
  return element("section", "", [
    title,
    element("p", operation.description ?? operation.summary ?? ""),
    ...(parameters.length ? [element("h4", "Parameters"), table(parameters)] : []),
    ...requestOf(api, operation),
    ...answersOf(operation),
  ]);
}

function show(api) {
  const groups = new Map();
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const tag = operation.tags?.[0] ?? "";
      if (!groups.has(tag)) groups.set(tag, []);
      groups.get(tag).push(operationOf(api, path, method, operation));
    }
  }
  const parts = [element("p", api.info.description)];
  for (const [tag, operations] of groups) parts.push(element("h2", tag), ...operations);
  const schemas = Object.entries(api.components.schemas).map(([name, schema]) =>
    folded(name, [element("p", schema.description ?? ""), ...fields(schema)]),
  );
  parts.push(element("h2", "Objects"), ...schemas);
  document.getElementById("document").replaceChildren(...parts);
  document.getElementById("state").textContent = `${api.info.title} ${api.info.version}`;
}

try {
  const answer = await fetch("openapi.json");
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  show(await answer.json());
} catch (error) {
  document.getElementById("state").textContent = `openapi.json cannot be read: ${error.message}`;
}
