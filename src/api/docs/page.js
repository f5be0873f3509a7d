"use strict";
// Renders openapi.json. Texts go in as text, never as markup. The token lives in its field alone.
const el = (name, props, ...children) => {
  const node = Object.assign(document.createElement(name), props);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
};
// `code` and **strong**, as descriptions write them.
const rich = (text) => String(text).split(/(`[^`]+`|\*\*[^*]+\*\*)/).map((part) =>
  part.startsWith("`") ? el("code", {}, part.slice(1, -1))
    : part.startsWith("**") ? el("strong", {}, part.slice(2, -2)) : part);
const paragraphs = (text) => String(text ?? "").trim().split(/\n\s*\n/).filter(Boolean).map((part) => el("p", {}, ...rich(part)));
const pre = (value) => el("pre", { tabIndex: 0 }, typeof value === "string" ? value : JSON.stringify(value, null, 2));
const table = (heads, rows) => el("div", { className: "table" }, el("table", {},
  el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)))),
  el("tbody", {}, ...rows.map((cells) => el("tr", {}, ...cells.map((cell) => el("td", {}, ...[cell].flat())))))));

const show = (api) => {
  const resolve = (thing) => {
    if (!thing?.$ref) return thing;
    const target = thing.$ref.slice(2).split("/").reduce((at, key) => at[key.replaceAll("~1", "/").replaceAll("~0", "~")], api);
    return { ...resolve(target), ...Object.fromEntries(Object.entries(thing).filter(([key]) => key !== "$ref")) };
  };
  const nameOf = (schema) => {
    if (schema.$ref?.startsWith("#/components/schemas/")) {
      const name = schema.$ref.split("/").pop();
      const target = resolve(schema);
      return target.properties ? [el("a", { href: `#schema-${name}` }, name)] : typeOf(target);
    }
    return typeOf(schema);
  };
  const typeOf = (schema) => {
    const either = (schema.oneOf ?? schema.anyOf)?.filter((one) => one.maxLength !== 0);
    if (either) return either.flatMap((one, at) => [...(at ? [" or "] : []), ...nameOf(one)]);
    const types = [schema.type ?? "anything"].flat();
    if (types.includes("array")) {
      return ["list of ", ...nameOf(schema.items ?? {}), ...(types.includes("null") ? [" or null"] : [])];
    }
    const limits = [];
    if (schema.const !== undefined) limits.push(`always ${schema.const}`);
    if (schema.minimum !== undefined && schema.maximum !== undefined && schema.maximum < 1e6) {
      limits.push(`${schema.minimum} to ${schema.maximum}`);
    }
    if (schema.default !== undefined) limits.push(`else ${schema.default}`);
    const kind = schema.format === "date-time" ? "time" : schema.format === "uri" ? "address" : null;
    const text = types.map((type) => (type === "string" && kind) || type).join(" or ");
    const words = (schema.enum ?? []).filter((word) => word !== null);
    return [text + (limits.length ? ` (${limits.join("; ")})` : ""), ...(words.length && words.length < 12
      ? [": ", ...words.flatMap((word, at) => [...(at ? [", "] : []), el("code", {}, String(word))])] : [])];
  };
  const members = (schema) => table(["Member", "Kind", "Meaning"], Object.entries(schema.properties).map(([name, member]) =>
    [el("code", {}, name), nameOf(member), rich(resolve(member).description ?? "")]));

  const answer = (status, response) => {
    const body = el("details", {}, el("summary", {}, el("code", { className: status < 400 ? "GET" : "bad" }, status), " ",
      ...rich(response.description)));
    const headers = Object.entries(response.headers ?? {}).map(([name, header]) => [el("code", {}, name), rich(resolve(header).description)]);
    for (const [kind, content] of Object.entries(response.content ?? {})) {
      body.append(el("p", { className: "quiet" }, `${kind}: `, ...nameOf(content.schema)));
      for (const example of Object.values(content.examples ?? {}).map(resolve)) {
        body.append(el("details", { open: status < 400 && Object.keys(content.examples).length === 1 },
          el("summary", {}, example.value?.code ? el("code", {}, example.value.code) : null,
            example.value?.code ? " " : null, example.summary ?? "Example"), pre(example.value)));
      }
    }
    if (headers.length) body.append(el("details", {}, el("summary", { className: "quiet" }, "Headers"), table(["Header", "Meaning"], headers)));
    return body;
  };

  const attempt = (path, method, operation, parameters, isOpen) => {
    const fields = parameters.map((parameter) => [parameter, el("input", { name: parameter.name, autocomplete: "off", spellcheck: false,
      required: parameter.required === true, placeholder: parameter.example === undefined ? "" : String(parameter.example) })]);
    const result = el("div", { ariaLive: "polite" });
    const form = el("form", { onsubmit: async (event) => {
      event.preventDefault();
      const url = new URL(location.href.replace(/docs([?#].*)?$/, path.slice(1)
        .replace(/\{(\w+)\}/g, (_, name) => encodeURIComponent(form.elements[name].value))));
      const headers = {};
      for (const [parameter, input] of fields.filter(([, input]) => input.value !== "")) {
        if (parameter.in === "query") url.searchParams.set(parameter.name, input.value);
        if (parameter.in === "header") headers[parameter.name] = input.value;
      }
      const token = document.getElementById("token").value.trim();
      if (token && !isOpen) headers.Authorization = `Bearer ${token}`;
      try {
        const response = await fetch(url, { method, headers, redirect: "manual", cache: "no-store", credentials: "omit" });
        const text = await response.text();
        const isJson = response.headers.get("content-type")?.includes("json");
        const head = [...response.headers].map(([name, value]) => `${name}: ${value}`).join("\n");
        const line = response.type === "opaqueredirect" ? "A redirect; browsers do not tell scripts where to."
          : `${response.status} ${response.statusText}`;
        result.replaceChildren(el("p", { className: response.ok ? "GET" : "bad" }, line), pre(`${head}\n\n${isJson && text
          ? JSON.stringify(JSON.parse(text), null, 2) : text}`.trim() || "no body"));
      } catch (error) {
        result.replaceChildren(el("p", { className: "bad" }, `No answer: ${error.message}`));
      }
    } }, ...fields.map(([parameter, input]) => el("label", {}, el("code", {}, parameter.name), input)),
    el("button", { type: "submit" }, "Send"), result);
    return el("details", {}, el("summary", {}, "Try it"), form);
  };

  const content = document.getElementById("content");
  const menu = document.getElementById("menu");
  const heading = (text, id) => {
    content.append(el("h2", { id }, text));
    const list = el("ul");
    menu.append(el("strong", {}, text), list);
    return (name, target) => list.append(el("li", {}, el("a", { href: `#${target}` }, name)));
  };
  document.getElementById("about").replaceWith(...paragraphs(api.info.description),
    el("p", {}, "For programs: ", el("a", { href: "openapi.json" }, "openapi.json"), ` (OpenAPI ${api.openapi}).`));

  const access = heading("Access", "access");
  access("Tokens", "access");
  content.append(el("p", {}, ...rich("Send the header `Authorization: Bearer <token>`, with one of these:")), el("ul", {},
    ...Object.values(api.components.securitySchemes).map((scheme) => el("li", {}, el("code", {}, scheme.bearerFormat), ". ", ...rich(scheme.description)))),
  el("form", { onsubmit: (event) => event.preventDefault() }, el("label", {}, "Token for “Try it”",
    el("input", { id: "token", type: "password", autocomplete: "off", placeholder: "is not kept" }))));

  for (const tag of api.tags) {
    const link = heading(tag.name, `tag-${tag.name.toLowerCase().replaceAll(" ", "-")}`);
    content.append(...paragraphs(tag.description));
    for (const [path, item] of Object.entries(api.paths)) {
      for (const [method, operation] of Object.entries(item).filter(([, operation]) => operation.tags?.includes(tag.name))) {
        const verb = method.toUpperCase();
        const isOpen = operation.security?.length === 0;
        const parameters = (operation.parameters ?? []).map(resolve);
        link(operation.summary, operation.operationId);
        const where = (parameter) => parameter.required ? `${parameter.in}, required` : parameter.in;
        content.append(el("article", { id: operation.operationId }, el("h3", {}, operation.summary),
          el("p", { className: "path" }, el("span", { className: `method ${verb}` }, verb), path),
          el("p", { className: "quiet" }, isOpen ? "Open to everybody." : "Needs a token."), ...paragraphs(operation.description),
          ...(parameters.length ? [el("h4", {}, "Parameters"), table(["Name", "Where", "Kind", "Meaning"], parameters.map((parameter) =>
            [el("code", {}, parameter.name), where(parameter), nameOf(parameter.schema), rich(parameter.description ?? "")]))] : []),
          el("h4", {}, "Answers"), ...Object.entries(operation.responses).map(([status, response]) => answer(status, resolve(response))),
          attempt(path, verb, operation, parameters, isOpen)));
      }
    }
  }
  const link = heading("Documents", "documents");
  for (const [name, schema] of Object.entries(api.components.schemas).filter(([, schema]) => schema.properties)) {
    link(name, `schema-${name}`);
    content.append(el("article", { id: `schema-${name}` }, el("h3", {}, name), ...paragraphs(schema.description), members(schema)));
  }
  if (location.hash) document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
  document.body.dataset.ready = "yes";
};

fetch("openapi.json").then((response) => {
  if (!response.ok) throw new Error(`the service answered ${response.status}`);
  return response.json();
}).then(show).catch((error) => {
  const about = document.getElementById("about") ?? document.getElementById("content");
  about.replaceChildren(el("span", { className: "bad" }, `The document cannot be shown: ${error.message}`));
});
