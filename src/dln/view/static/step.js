// One step: the ranked candidates, why the winner won, and the confusion of its batch.

import { count, demonstrations, difference, el, number, percent, post, table, text } from "./dom.js";

const FIRST = 12;
const comments = new Map(); // what a person is writing survives every redraw

export function candidates(page, run) {
  if (!page.choices.length) return [el("p", { class: "m" }, "No candidates in this step.")];
  return page.choices.map((choice) => {
    const rows = choice.candidates.map((c) => candidate(c, choice.layer, run));
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

// a person's opinion on an instruction, which all proposals from the next step on are shown
function opinion(c, layer, run) {
  const held = run.turns.findLast((t) => t.human && !t.refused && ["like", "dislike"].includes(t.action) && t.layer === layer && t.text === c.prompt.instruction);
  const shown = held ? el("span", { class: "m" }, held.action === "like" ? "liked" : "disliked", held.comment ? ": " : "", held.comment ? text(held.comment, 200) : null) : null;
  if (!["running", "paused"].includes(run.state) || !c.prompt.instruction) return shown && el("p", {}, shown);
  const key = JSON.stringify([run.id, layer, c.prompt.instruction]);
  const why = el("input", { type: "text", class: "why", placeholder: "why (optional)", maxlength: 2000, "aria-label": "Why it is liked or disliked", value: comments.get(key) ?? "" });
  why.addEventListener("input", () => comments.set(key, why.value));
  const told = el("span", { class: "m", role: "status" });
  const button = (name, action) => {
    const made = el("button", { type: "button", class: "small", "data-action": action, "aria-pressed": String(held?.action === action) }, name);
    made.addEventListener("click", async () => {
      try {
        await post(`/api/runs/${run.id}/control`, { action, layer: layer - 1, text: c.prompt.instruction, comment: why.value });
        told.textContent = "sent: the next proposals see it";
        comments.delete(key);
      } catch (error) {
        told.textContent = error.message;
      }
    });
    return made;
  };
  return el("p", { class: "opinion" }, button("Like", "like"), " ", button("Dislike", "dislike"), " ", why, " ", told, shown);
}

function candidate(c, layer, run) {
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
    el("td", {}, marks, " ", c.incumbent ? text(c.prompt.instruction) : difference(c.difference, c.prompt), demonstrations(c.prompt), opinion(c, layer, run)),
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
