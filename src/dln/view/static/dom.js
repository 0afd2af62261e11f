// Elements, numbers and requests. Texts from data and models only ever become text nodes.

export function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "value" || key === "checked" || key === "max" || key === "min") node[key] = value;
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export const fill = (node, ...children) => {
  node.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
};

// --- numbers -------------------------------------------------------------------------------------------------------

const DASH = "—";
const minus = (text) => text.replace("-", "−");
const known = (value) => typeof value === "number" && Number.isFinite(value);

export const number = (value, digits = 3) => (known(value) ? minus(value.toFixed(digits)) : DASH);
export const percent = (value, digits = 1) => (known(value) ? `${minus((100 * value).toFixed(digits))} %` : DASH);
export const count = (value) => (known(value) ? Math.round(value).toLocaleString("en").replaceAll(",", "\u202f") : DASH);
export const usd = (value) => (known(value) ? `$${value < 10 ? value.toFixed(4) : value.toFixed(2)}` : DASH);
export const interval = (low, high) => (known(low) && known(high) ? `${percent(low)} to ${percent(high)}` : "");

export function compact(value) {
  if (!known(value)) return DASH;
  for (const [size, unit] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(value) >= size) return `${Number((value / size).toPrecision(3))} ${unit}`;
  }
  return count(value);
}

export function duration(seconds) {
  if (!known(seconds)) return DASH;
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  return minutes < 2880 ? `${Math.floor(minutes / 60)} h ${minutes % 60} min` : `${Math.round(minutes / 1440)} days`;
}

export const age = (time) => (known(time) ? `${duration(Math.max(0, Date.now() / 1000 - time))} ago` : DASH);

// --- texts ---------------------------------------------------------------------------------------------------------

const LONG = 600;

export function text(value, limit = LONG) {
  const whole = String(value ?? "");
  if (whole === "") return el("span", { class: "m" }, "(empty)");
  if (whole.length <= limit) return el("span", { class: "t", dir: "auto" }, whole);
  const shown = el("span", { class: "t", dir: "auto" }, `${whole.slice(0, limit)}… `);
  const more = el("button", { class: "link", type: "button" }, `show all ${count(whole.length)} characters`);
  more.addEventListener("click", () => fill(shown, whole));
  return el("span", {}, shown, more);
}

export function difference(found, prompt) {
  if (!found) return text(prompt.instruction);
  const parts = found.segments.map(([kind, words]) =>
    kind === "insert" ? el("ins", {}, words) : kind === "delete" ? el("del", {}, words) : words,
  );
  const shown = el("span", { class: "t", dir: "auto" }, parts.length ? parts : el("span", { class: "m" }, "(empty)"));
  const notes = [
    found.added && `${found.added} demonstrations added`,
    found.removed && `${found.removed} removed`,
    found.reordered && "reordered",
  ].filter(Boolean);
  return el("span", {}, shown, notes.length ? el("span", { class: "m" }, ` (${notes.join(", ")})`) : null);
}

export function demonstrations(prompt) {
  const items = prompt.demonstrations ?? [];
  if (!items.length) return null;
  return el(
    "details",
    {},
    el("summary", {}, `${items.length} demonstration${items.length === 1 ? "" : "s"}`),
    el("ol", { class: "demos" }, items.map((d) => el("li", {}, text(d.h ?? d.x, 300), " → ", el("b", {}, text(d.y, 300))))),
  );
}

export function copyButton(value) {
  const button = el("button", { type: "button", class: "small" }, "Copy");
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(value);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  return button;
}

export function table(label, columns, rows, kind = "") {
  return el(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": label },
    el(
      "table",
      { class: kind },
      el("thead", {}, el("tr", {}, columns.map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, rows),
    ),
  );
}

export const pill = (state) => el("b", { class: `pill state-${state}` }, state);

export const say = (words) => (document.getElementById("live").textContent = words);

// --- requests ------------------------------------------------------------------------------------------------------

export class Failed extends Error {}

const KEY = "dln-token";

export function takeToken() {
  const given = /^#token=([^&]+)(.*)$/.exec(location.hash);
  if (!given) return;
  sessionStorage.setItem(KEY, given[1]);
  history.replaceState(null, "", `${location.pathname}#/`);
}

const headers = () => ({ Authorization: `Bearer ${sessionStorage.getItem(KEY) ?? ""}` });

async function asked(path, options) {
  const answer = await fetch(path, options);
  if (answer.ok) return answer;
  const content = await answer.json().catch(() => ({}));
  throw new Failed(content.error ?? `the server answered ${answer.status}`);
}

export const get = async (path, signal) => (await asked(path, { headers: headers(), signal })).json();

export const post = async (path, body) =>
  (
    await asked(path, {
      method: "POST",
      headers: { ...headers(), "Content-Type": "application/json" },
      body: JSON.stringify(body),
    })
  ).json();

export async function download(path, name) {
  const content = await (await asked(path, { headers: headers() })).blob();
  const link = el("a", { href: URL.createObjectURL(content), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// server-sent events over fetch: EventSource cannot send the token
export async function* stream(path, signal) {
  const answer = await asked(path, { headers: headers(), signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest = (rest + value).replaceAll("\r\n", "\n");
    const blocks = rest.split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n");
      const field = (name) => lines.filter((l) => l.startsWith(`${name}: `)).map((l) => l.slice(name.length + 2)).join("\n");
      if (field("data")) yield { event: field("event"), data: JSON.parse(field("data")) };
    }
  }
}
