// One step: the ranked candidates, why the winner won, and the confusion of its batch.

import { count, demonstrations, difference, el, number, percent, table, text } from "./dom.js";

const FIRST = 12;

export function candidates(page) {
  if (!page.choices.length) return [el("p", { class: "m" }, "No candidates in this step.")];
  return page.choices.map((choice) => {
    const rows = choice.candidates.map((c) => candidate(c));
    const dropped = choice.dropped.map(([reason, n]) => `${count(n)} ${reason}`).join(", ");
    const shown = table(`Candidates of layer ${choice.layer}`, ["rank", "prompt, compared with the incumbent", "from", "objective", "penalty", "score"], rows.slice(0, FIRST), "cands");
    const more = rows.length > FIRST ? el("button", { type: "button", class: "small" }, `Show ${rows.length - FIRST} more`) : null;
    more?.addEventListener("click", () => {
      shown.querySelector("tbody").append(...rows.slice(FIRST));
      more.remove();
    });
    return el(
      "section",
      { class: "choice" },
      el("h3", {}, `Layer ${choice.layer}`, choice.rounds > 1 ? `, round ${choice.round}` : ""),
      el(
        "p",
        {},
        choice.why,
        el(
          "span",
          { class: "m" },
          choice.examples ? ` Mean over ${count(choice.examples)} examples.` : "",
          choice.share < 1 ? ` Early stopping: ${percent(choice.share, 0)} of all pairs were scored.` : "",
          dropped ? ` Dropped: ${dropped}.` : "",
        ),
      ),
      shown,
      more,
    );
  });
}

function candidate(c) {
  const marks = [
    c.winner ? el("b", { class: "pill done" }, "winner") : null,
    c.incumbent ? el("b", { class: "pill" }, "incumbent") : null,
    c.source === "human" ? el("b", { class: "pill human" }, "human") : null,
  ];
  const stopped = c.stopped ? el("span", { class: "m" }, el("br"), `left the race after round ${c.stopped.round}: ${number(c.stopped.score)} over ${count(c.stopped.examples)} examples`) : null;
  const bar = c.bar === null ? null : el("meter", { min: 0, max: 1, value: c.bar, "aria-hidden": "true" });
  return el(
    "tr",
    { class: c.winner ? "win" : "" },
    el("td", { class: "r" }, c.rank === null ? "—" : String(c.rank)),
    el("td", {}, marks, " ", c.incumbent ? text(c.prompt.instruction) : difference(c.difference, c.prompt), demonstrations(c.prompt)),
    el("td", {}, text(c.source, 60), c.detail ? el("span", { class: "m" }, el("br"), text(c.detail, 200)) : null, stopped),
    el("td", { class: "r" }, number(c.objective)),
    el("td", { class: "r" }, number(c.penalty)),
    el("td", { class: "r" }, number(c.score), bar),
  );
}

// counts of (wanted, predicted) of a batch
export function batchConfusion(examples, labels) {
  if (!labels?.length || labels.length > 30) return null;
  const cells = new Map();
  for (const { y, prediction } of examples) {
    const key = JSON.stringify([y, labels.includes(prediction) ? prediction : ""]);
    cells.set(key, (cells.get(key) ?? 0) + 1);
  }
  const other = [...cells.keys()].some((key) => JSON.parse(key)[1] === "");
  const columns = other ? [...labels, ""] : labels;
  const rows = labels
    .map((y) => [y, columns.map((p) => cells.get(JSON.stringify([y, p])) ?? 0)])
    .map(([y, counts]) => [y, counts.map((n, i) => ({ count: n, share: n / Math.max(1, counts.reduce((a, b) => a + b, 0)), diagonal: columns[i] === y }))]);
  return confusionTable({ columns, rows }, "Confusion of the batch");
}

export function confusionTable(found, label) {
  if (!found) return null;
  const cell = (c) => {
    const made = el("td", { class: c.diagonal ? "d" : "" }, c.count ? count(c.count) : el("span", { class: "m" }, "0"));
    made.style.setProperty("--s", c.share);
    return made;
  };
  return table(
    label,
    ["wanted \\ predicted", ...found.columns.map((name) => name || "no label")],
    found.rows.map(([target, cells]) => el("tr", {}, el("th", { scope: "row" }, target), cells.map(cell))),
    "heat",
  );
}
