// Shows /openapi.json and sends requests to this service. Text only: nothing from the document becomes markup.
"use strict";

const element = (name, text, ...children) => {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  made.append(...children);
  return made;
};

const resolve = (contract, schema) => {
  const name = schema && schema.$ref && schema.$ref.split("/").pop();
  return name ? { name, ...contract.components.schemas[name] } : schema || {};
};

const typeOf = (contract, schema) => {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.oneOf) return schema.oneOf.map((it) => typeOf(contract, it)).join(" | ");
  const type = [].concat(schema.type || []).join(" | ");
  return schema.items ? `${typeOf(contract, schema.items)}[]` : type;
};

const fields = (contract, schema) => {
  const { properties, required = [] } = resolve(contract, schema);
  if (!properties) return [];
  const table = element("table", "", element("tr", "", element("th", "字段"), element("th", "类型"), element("th", "含义")));
  for (const [name, property] of Object.entries(properties)) {
    const mark = required.includes(name) ? "（必填）" : "";
    const inner = (property.oneOf || []).map((it) => it.description || resolve(contract, it).description).find(Boolean);
    const meaning = property.description || resolve(contract, property).description || inner || "";
    table.append(element("tr", "", element("td", name + mark), element("td", typeOf(contract, property)), element("td", meaning)));
  }
  return [table];
};

const examplesOf = (content) => {
  if (content.examples) return Object.entries(content.examples).map(([name, it]) => [name, it.value]);
  return content.example === undefined ? [] : [["", content.example]];
};

const pretty = (value) => (typeof value === "string" ? value : JSON.stringify(value, null, 2));

const response = (contract, status, it) => {
  const details = element("details", "", element("summary", `${status} ${it.description || ""}`));
  for (const content of Object.values(it.content || {})) {
    details.append(...fields(contract, content.schema));
    for (const [, value] of examplesOf(content)) details.append(element("pre", pretty(value)));
  }
  return details;
};

const tryIt = (method, path, operation) => {
  const content = ((operation.requestBody || {}).content || {})["application/json"];
  const [example] = content ? examplesOf(content) : [];
  const body = content && element("textarea", pretty(example ? example[1] : {}));
  if (body) body.rows = 8;
  const button = element("button", "发送");
  const answer = element("pre");
  answer.hidden = true;
  button.addEventListener("click", async () => {
    const headers = {};
    const key = document.getElementById("key").value;
    if (key) headers.authorization = `Bearer ${key}`;
    if (body) headers["content-type"] = "application/json";
    answer.hidden = false;
    answer.textContent = "……";
    try {
      const reply = await fetch(path.replace("{model}", "triage"), { method, headers, body: body && body.value });
      const text = await reply.text();
      let shown = text;
      try { shown = pretty(JSON.parse(text)); } catch { /* Not JSON: as it is. */ }
      answer.textContent = `${reply.status} ${reply.headers.get("server-timing") || ""}\n${shown}`;
    } catch (error) {
      answer.textContent = String(error);
    }
  });
  return [...(body ? [body] : []), button, answer];
};

const parameters = (contract, operation) => {
  const given = operation.parameters || [];
  if (!given.length) return [];
  const places = { header: "请求头", path: "路径", query: "查询" };
  const table = element("table", "", element("tr", "", element("th", "参数"), element("th", "位置"), element("th", "含义")));
  for (const it of given) {
    const mark = it.required ? "（必填）" : "";
    table.append(element("tr", "", element("td", it.name + mark), element("td", places[it.in] || it.in), element("td", it.description || "")));
  }
  return [element("h4", "参数"), table];
};

const operationSection = (contract, id, method, path, operation) => {
  const verb = element("span", method);
  verb.className = "method";
  const section = element("section", "", element("h3", "", verb, path), element("p", operation.summary || operation.description || ""));
  section.id = id;
  section.append(...parameters(contract, operation));
  const content = ((operation.requestBody || {}).content || {})["application/json"];
  if (content) section.append(element("h4", "请求"), ...fields(contract, content.schema));
  section.append(element("h4", "答复"));
  for (const [status, it] of Object.entries(operation.responses)) section.append(response(contract, status, it));
  section.append(element("h4", "试一试"), ...tryIt(method, path, operation));
  return section;
};

// What most callers come for stands first.
const groups = [
  ["分诊", (path) => path.startsWith("/v1/")],
  ["兼容其他系统的客户端", (path, operation) => (operation.tags || []).includes("compatible")],
  ["运维", (path) => !path.startsWith("/docs")],
  ["本页", () => true],
];

const show = (contract) => {
  const main = document.getElementById("operations");
  const index = document.getElementById("index");
  main.replaceChildren();
  const all = Object.entries(contract.paths).flatMap(([path, item]) =>
    ["post", "get"].filter((it) => item[it]).map((it) => [path, it.toUpperCase(), item[it]]));
  const groupOf = ([path, , operation]) => groups.findIndex(([, holds]) => holds(path, operation));
  groups.forEach(([title], group) => {
    const line = element("p", `${title}：`);
    index.append(line);
    main.append(element("h2", title));
    for (const [path, method, operation] of all.filter((it) => groupOf(it) === group)) {
      const id = `${method}-${path.replace(/[^a-z0-9]+/gi, "-")}`.toLowerCase();
      const link = element("a", `${method} ${path}`);
      link.href = `#${id}`;
      line.append(link);
      main.append(operationSection(contract, id, method, path, operation));
    }
  });
};

fetch("/openapi.json")
  .then((reply) => reply.json())
  .then(show)
  .catch((error) => { document.getElementById("operations").textContent = `读取失败：${error}`; });
