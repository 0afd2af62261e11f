// The list of runs, read again every two seconds.

import { age, compact, count, el, fill, get, number, percent, pill, say, text, usd } from "./dom.js";

const COLUMNS = ["", "run", "status", "task", "model", "best dev", "test", "tokens", "price", "age"];
const SECONDS = 2;

export async function listPage(main, signal) {
  document.title = "Runs · dln";
  const chosen = new Set();
  const body = el("tbody", {});
  const compare = el("button", { type: "button", disabled: true }, "Compare");
  const search = el("input", { type: "search", "aria-label": "Filter runs", placeholder: "Filter" });
  let rows = [];
  let before = "";

  compare.addEventListener("click", () => (location.hash = `#/compare/${[...chosen].join(",")}`));
  search.addEventListener("input", draw);
  fill(
    main,
    el("h1", {}, "Runs"),
    el("p", { class: "bar-line" }, search, compare, el("span", { class: "m" }, "Tick two or more to compare them.")),
    el(
      "div",
      { class: "scroll", tabindex: 0, role: "region", "aria-label": "Runs" },
      el(
        "table",
        { class: "runs cards" },
        el("thead", {}, el("tr", {}, COLUMNS.map((name) => el("th", { scope: "col" }, name || el("span", { class: "hidden" }, "choose"))))),
        body,
      ),
    ),
  );

  function draw() {
    const wanted = search.value.toLowerCase();
    const left = rows.filter((row) => `${row.name} ${row.task} ${row.models} ${row.state}`.toLowerCase().includes(wanted));
    fill(body, left.map(row));
    if (!left.length) fill(body, el("tr", {}, el("td", { colspan: COLUMNS.length }, rows.length ? "No run matches." : "No runs yet.")));
  }

  function row(run) {
    const cell = (label, ...content) => el("td", { "data-label": label }, ...content);
    if (run.state === "unreadable") {
      return el("tr", {}, cell(""), cell("run", text(run.name)), cell("status", pill(run.state)), el("td", { colspan: 7 }, text(run.reason)));
    }
    const tick = el("input", { type: "checkbox", "aria-label": `Compare ${run.name}`, checked: chosen.has(run.id) });
    tick.addEventListener("change", () => {
      if (tick.checked) chosen.add(run.id);
      else chosen.delete(run.id);
      compare.disabled = chosen.size < 2;
    });
    return el(
      "tr",
      {},
      cell("", tick),
      cell("run", el("a", { href: `#/run/${run.id}` }, run.name)),
      cell("status", pill(run.state), el("span", { class: "m" }, ` ${run.steps_done} of ${run.steps_planned} steps`)),
      cell("task", text(run.task, 60)),
      cell("model", text(run.models.filter(Boolean).join(", ") || "—", 60)),
      cell("best dev", run.select_by === "accuracy" ? percent(run.best_score) : number(run.best_score), run.select_by === "log_likelihood" ? el("span", { class: "m" }, " nats") : null),
      cell("test", run.test ? [percent(run.test.accuracy), el("span", { class: "m" }, ` n=${count(run.test.n)}`)] : "—"),
      cell("tokens", compact(run.tokens)),
      cell("price", usd(run.usd)),
      cell("age", age(run.started)),
    );
  }

  while (!signal.aborted) {
    ({ runs: rows } = await get("/api/runs", signal));
    const now = JSON.stringify(rows);
    // drawn anew only when something changed, so that the keyboard's focus stays
    if (now !== before) draw();
    before = now;
    say("");
    await new Promise((resolve) => setTimeout(resolve, 1000 * SECONDS));
  }
}
