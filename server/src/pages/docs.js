"use strict";
const make = (tag, attributes = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), attributes);
  element.append(...children);
  return element;
};
// Backticks become code; everything else stays text.
const prose = (text) => (text || "").split(/`([^`]*)`/).map((part, at) => at % 2 ? make("code", { textContent: part }) : part);
// What a schema may be, where it may be several things, with the names that lead there; nothing where it is one.
const alternatives = (schema, all, seen) => {
  const variants = (schema.oneOf || schema.anyOf)?.filter((one) => one.type !== "null");
  return variants?.flatMap((one) => {
    if (!one.$ref) return alternatives(one, all, seen) || [[one, seen]];
    const name = one.$ref.split("/").pop();
    return seen.includes(name) ? [] : alternatives(all[name], all, [...seen, name]) || [[all[name], [...seen, name]]];
  });
};
// What a value of a schema looks like.
const sample = (schema, all, seen = []) => {
  if (!schema) return null;
  if (schema.$ref) {
    const name = schema.$ref.split("/").pop();
    return seen.includes(name) ? {} : sample(all[name], all, [...seen, name]);
  }
  if (schema.allOf) return Object.assign({}, ...schema.allOf.map((one) => sample(one, all, seen)));
  const kinds = alternatives(schema, all, seen);
  if (kinds?.length > 1 && kinds.every(([one]) => one.properties)) return { "one of": kinds.map(([one, names]) => sample(one, all, names)) };
  if (kinds) return kinds.length ? sample(kinds[0][0], all, kinds[0][1]) : null;
  if (schema.enum) return schema.enum.join(" | ");
  const type = Array.isArray(schema.type) ? schema.type.find((one) => one !== "null") : schema.type;
  if (type === "array") {
    const of = sample(schema.items, all, seen);
    return of?.["one of"] || [of];
  }
  if (type === "integer" || type === "number") return 0;
  if (type === "boolean") return true;
  if (type === "string") return schema.format === "date-time" ? "2026-01-31T12:00:00.000Z" : schema.format === "uuid" ? "019b7f3e-…" : "…";
  const fields = {};
  for (const [name, field] of Object.entries(schema.properties || {})) fields[name] = sample(field, all, seen);
  if (schema.additionalProperties && typeof schema.additionalProperties === "object") fields["…"] = sample(schema.additionalProperties, all, seen);
  return fields;
};
const show = (content, all) => {
  const schema = content && Object.values(content)[0]?.schema;
  const value = sample(schema, all);
  return value && typeof value === "object" && Object.keys(value).length ? make("pre", { textContent: JSON.stringify(value, null, 2) }) : "";
};
const operation = (verb, path, spec, all) => {
  const body = make("div", { className: "body" });
  const rest = (spec.description || "").trim();
  if (rest) body.append(make("p", {}, ...prose(rest)));
  const key = (spec.security || []).flatMap((one) => Object.keys(one));
  body.append(make("p", { className: "soft" }, key.length ? `Key: ${key.join(" or ").replaceAll("_", " ")}` : "No key"));
  if (spec.parameters?.length) {
    body.append(make("h4", { textContent: "Parameters" }), make("table", {}, ...spec.parameters.map((one) => make("tr", {},
      make("td", {}, make("code", { textContent: one.name })), make("td", { className: "soft", textContent: one.in + (one.required ? "" : ", optional") }),
      make("td", {}, ...prose(one.description || [sample(one.schema, all)].flat().filter((value) => typeof value === "string" && value !== "…").join("")))))));
  }
  if (spec.requestBody) body.append(make("h4", { textContent: "Body" }), make("p", {}, ...prose(spec.requestBody.description)), show(spec.requestBody.content, all));
  body.append(make("h4", { textContent: "Answers" }));
  const table = make("table");
  for (const [status, response] of Object.entries(spec.responses)) {
    const lines = (response.description || "").split("\n").map((line) => make("div", {}, ...prose(line.replace(/^- /, ""))));
    const cell = make("td", {}, ...lines);
    if (status < 300) cell.append(show(response.content, all));
    table.append(make("tr", {}, make("th", { textContent: status, scope: "row" }), cell));
  }
  body.append(table);
  const id = `${verb}-${path}`.replace(/[^a-zA-Z0-9-]+/g, "-");
  const details = make("details", { id }, make("summary", {}, make("span", { className: `verb ${verb}`, textContent: verb }),
    make("span", { className: "path", textContent: path }), make("span", { className: "soft" }, ...prose(spec.summary))), body);
  return [id, details];
};
const main = document.querySelector("main"), nav = document.querySelector("nav");
const load = async () => {
  const spec = await (await fetch("/openapi.json")).json();
  const all = spec.components?.schemas || {};
  const intro = document.getElementById("intro");
  intro.replaceChildren(...prose(spec.info.description), make("br"), `Version ${spec.info.version}, `, make("a", { href: "/openapi.json", textContent: "openapi.json" }));
  const bySpelling = new Map();
  for (const tag of spec.tags) {
    main.append(make("h2", { textContent: tag.name }), make("p", { className: "soft" }, ...prose(tag.description)));
    nav.append(make("h2", { textContent: tag.name }));
    // Of several spellings of one route one is told, the others beside it.
    const first = ["/v1/track", "/v1/batch"];
    const paths = Object.keys(spec.paths).sort((a, b) => first.includes(b) - first.includes(a));
    for (const path of paths) for (const [method, one] of Object.entries(spec.paths[path])) {
      if (!one.tags?.includes(tag.name)) continue;
      const same = one.summary + method;
      if (bySpelling.has(same)) { bySpelling.get(same).append(` ${path}`); continue; }
      const [id, details] = operation(method.toUpperCase(), path, one, all);
      main.append(details);
      const link = make("a", { href: `#${id}` }, make("span", { className: `verb ${method.toUpperCase()}`, textContent: method.toUpperCase() }), ` ${path}`);
      link.onclick = () => { details.open = true; };
      nav.append(link);
      const others = make("p", { className: "soft path", textContent: "" });
      details.querySelector(".body").append(others);
      bySpelling.set(same, others);
    }
  }
  for (const others of bySpelling.values()) if (others.textContent) others.prepend("Also at:");
  const asked = document.getElementById(location.hash.slice(1));
  if (asked) { asked.open = true; asked.scrollIntoView(); }
};
load().catch((error) => { document.getElementById("intro").textContent = `The document could not be loaded: ${error}`; });
