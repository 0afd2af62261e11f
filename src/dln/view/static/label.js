// Inputs that wait for a label, the least sure first. One key labels; every label is written at once.

import { count, el, fill, get, percent, post, text } from "./dom.js";

const KEYS = [..."123456789abcdefghijklmnoprtvwxyz"]; // u takes back, s skips, and q is left to the terminal

export async function labelPage(main, id, signal) {
  const page = await get(`/api/runs/${id}/labels`, signal);
  document.title = "Label · dln";
  const back = el("p", {}, el("a", { href: `#/run/${id}` }, "The run"));
  if (!page.rows.length) {
    fill(main, back, el("h1", {}, "Label inputs"), el("p", {}, "No inputs wait for a label. ", el("code", {}, "dln label RUN FILE"), " ranks those of a file by how unsure the network is."));
    return;
  }
  let at = page.rows.findIndex((row) => row.y === null);
  let busy = false;
  const order = [];
  const shown = el("div", { "aria-live": "polite" });
  const told = el("p", { class: "m", role: "status" });
  const buttons = page.labels.map((name, i) => {
    const made = el("button", { type: "button", "data-label": name }, KEYS[i] ? el("kbd", {}, KEYS[i]) : null, " ", text(name, 60));
    made.addEventListener("click", () => give(name));
    return made;
  });
  const action = (name, key, run) => {
    const made = el("button", { type: "button", "data-action": name.toLowerCase().replaceAll(" ", "-") }, el("kbd", {}, key), ` ${name}`);
    made.addEventListener("click", run);
    return made;
  };

  async function send(number, y) {
    if (busy) return false;
    busy = true;
    try {
      await post(`/api/runs/${id}/labels`, { number, y });
      page.rows[number].y = y;
      told.textContent = "";
      return true;
    } catch (error) {
      told.textContent = error.message;
      return false;
    } finally {
      busy = false;
    }
  }

  async function give(name) {
    const number = at;
    if (number < 0 || !(await send(number, name))) return;
    order.push(number);
    skip();
  }

  async function takeBack() {
    const number = order.at(-1) ?? page.rows.findLastIndex((row) => row.y !== null);
    if (number < 0 || !(await send(number, null))) return;
    order.pop();
    at = number;
    draw();
  }

  function skip() {
    const open = (row) => row.y === null;
    const after = page.rows.findIndex((row, i) => i > at && open(row));
    at = after < 0 ? page.rows.findIndex(open) : after;
    draw();
  }

  function draw() {
    const row = page.rows[at];
    const done = page.rows.filter((one) => one.y !== null).length;
    fill(
      shown,
      el("p", { class: "m" }, `${count(done)} of ${count(page.rows.length)} labelled`),
      row ? el("div", { class: "prompt", dir: "auto" }, text(row.x, 5000)) : el("p", {}, "All inputs have a label."),
      row ? el("p", { class: "m" }, row.probabilities.map(([name, p], i) => [i ? " · " : "the network: ", text(name, 60), ` ${percent(p, 0)}`])) : null,
    );
    for (const button of buttons) button.disabled = !row;
  }

  fill(
    main,
    back,
    el("h1", {}, "Label inputs"),
    el("p", { class: "m" }, "Those that the network is least sure of come first. ", el("code", {}, "dln train --labelled RUN"), " trains with the labels."),
    shown,
    el("p", { class: "bar-line", role: "group", "aria-label": "Labels" }, buttons),
    el("p", { class: "bar-line" }, action("Take back", "u", takeBack), action("Skip", "s", skip)),
    told,
  );
  addEventListener(
    "keydown",
    (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey || event.repeat || event.target.closest("input, textarea, select")) return;
      if (event.key === "u") takeBack();
      else if (event.key === "s") skip();
      else if (KEYS.includes(event.key) && KEYS.indexOf(event.key) < page.labels.length) give(page.labels[KEYS.indexOf(event.key)]);
    },
    { signal },
  );
  draw();
}
