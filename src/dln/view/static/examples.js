// Examples with filters; each opens to its hidden texts, output and posterior.

import { count, el, fill, number, percent, table, text } from "./dom.js";

const FIRST = 60;

// items: {x, y, prediction, correct, turn: "fixed" | "broken" | "", was, hidden: [levels], probability, feedback}
export function examplesView(label) {
  const state = el(
    "select",
    { "aria-label": "Show" },
    [["", "all"], ["wrong", "wrong"], ["right", "right"], ["fixed", "fixed"], ["broken", "broken"]].map(([value, name]) => el("option", { value }, name)),
  );
  const wanted = el("select", { "aria-label": "Label" });
  const search = el("input", { type: "search", placeholder: "Text", "aria-label": "Text of the example" });
  const list = el("div", { class: "examples" });
  const summary = el("span", { class: "m", role: "status" });
  const node = el("div", {}, el("p", { class: "bar-line" }, state, wanted, search, summary), list);
  let items = [];
  for (const control of [state, wanted, search]) control.addEventListener("input", draw);

  function fits(item) {
    const filters = { wrong: !item.correct, right: item.correct, fixed: item.turn === "fixed", broken: item.turn === "broken" };
    if (state.value && !filters[state.value]) return false;
    if (wanted.value && item.y !== wanted.value) return false;
    const sought = search.value.toLowerCase();
    return !sought || [item.x, item.y, item.prediction, ...item.hidden.map((h) => h.forward ?? h)].some((t) => String(t).toLowerCase().includes(sought));
  }

  function draw() {
    const found = items.filter(fits);
    const right = items.filter((item) => item.correct).length;
    const turned = (kind) => items.filter((item) => item.turn === kind).length;
    summary.textContent = `${count(found.length)} of ${count(items.length)} · ${count(right)} right · ${count(turned("fixed"))} fixed · ${count(turned("broken"))} broken`;
    fill(list, found.slice(0, FIRST).map(entry));
    if (found.length > FIRST) {
      const more = el("button", { type: "button", class: "small" }, `Show ${count(found.length - FIRST)} more`);
      more.addEventListener("click", () => {
        more.remove();
        list.append(...found.slice(FIRST).map(entry));
      });
      list.append(more);
    }
    if (!found.length) fill(list, el("p", { class: "m" }, items.length ? "No example matches." : "No examples."));
  }

  function entry(item) {
    const line = item.x.replace(/\s+/g, " ");
    const box = el(
      "details",
      { class: `example ${item.correct ? "right" : "wrong"}` },
      el(
        "summary",
        {},
        el("b", { class: item.correct ? "ok" : "no" }, item.correct ? "✓ " : "✗ ", el("span", { class: "hidden" }, item.correct ? "right" : "wrong")),
        el("span", { class: "t line" }, line.length > 140 ? `${line.slice(0, 140)}…` : line || "(empty)"),
        el("span", { class: "m" }, " ", text(item.y, 60), " → ", text(item.prediction, 60)),
        item.turn ? el("b", { class: `pill ${item.turn}` }, item.turn) : null,
      ),
    );
    box.addEventListener("toggle", () => box.childElementCount === 1 && box.append(details(item)), { once: true });
    return box;
  }

  return {
    node,
    set(fresh) {
      items = fresh;
      const labels = [...new Set(items.map((item) => item.y))].sort();
      const kept = wanted.value;
      fill(wanted, el("option", { value: "" }, "any label"), labels.slice(0, 200).map((name) => el("option", { value: name }, name.slice(0, 60))));
      wanted.value = labels.includes(kept) ? kept : "";
      draw();
    },
  };
}

function details(item) {
  const pair = (name, ...content) => [el("dt", {}, name), el("dd", {}, ...content)];
  return el(
    "div",
    { class: "case" },
    el(
      "dl",
      {},
      pair("input", text(item.x, 4000)),
      item.hidden.map((level, i) => pair(`h${level.level ?? i + 1}`, text(level.forward ?? level, 4000))),
      pair("output", text(item.prediction, 2000)),
      pair("wanted", text(item.y, 2000)),
      item.was ? pair("before", text(item.was, 400)) : null,
      Number.isFinite(item.probability) ? pair("p(y|x)", number(item.probability)) : null,
      item.feedback ? pair("feedback", text(item.feedback, 2000)) : null,
    ),
    item.hidden.filter((level) => level.particles?.length).map(posterior),
  );
}

function posterior(level) {
  const rows = level.particles.map((p) =>
    el(
      "tr",
      { class: p.heaviest ? "win" : "" },
      el("td", {}, text(p.text, 800)),
      el("td", {}, text(p.source, 60)),
      el("td", { class: "r" }, number(p.alpha, 2)),
      el("td", { class: "r" }, number(p.beta, 2)),
      el("td", { class: "r" }, percent(p.weight, 0), p.weight === null ? null : el("meter", { min: 0, max: 1, value: p.weight, "aria-hidden": "true" })),
    ),
  );
  return el(
    "div",
    {},
    el("h4", {}, `Posterior of h${level.level}: effective sample size ${number(level.ess, 1)} of ${level.particles.length}`),
    table(`Posterior of level ${level.level}`, ["hidden text", "from", "log p(h|x)", "log p(y|h)", "weight"], rows),
  );
}
