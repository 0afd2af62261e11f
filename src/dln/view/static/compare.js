// Several runs together: a table, curves over steps or tokens, prompts side by side, options that differ.

import { compact, count, demonstrations, el, fill, get, interval, number, percent, pill, table, text, usd } from "./dom.js";
import { chart } from "./chart.js";
import { CHARTS, curves } from "./curves.js";

function leaves(options, prefix = "") {
  return Object.entries(options ?? {}).flatMap(([name, value]) =>
    value && typeof value === "object" && !Array.isArray(value) ? leaves(value, `${prefix}${name}.`) : [[prefix + name, JSON.stringify(value)]],
  );
}

export async function comparePage(main, ids, signal) {
  document.title = "Comparison · dln";
  const runs = await Promise.all(ids.slice(0, 12).map((id) => get(`/api/runs/${id}`, signal)));
  const over = el("select", { "aria-label": "Curves over" }, el("option", { value: "step" }, "steps"), el("option", { value: "tokens" }, "tokens"));
  const charts = el("div", { class: "charts" });
  over.addEventListener("change", draw);

  function draw() {
    const all = runs.map((run) => [run, curves(run, over.value)]);
    const shown = CHARTS.map(({ key, ...about }) => {
      const pick = key === "accuracy" ? (lines) => lines.accuracy.find((l) => l.points.length) : (lines) => lines[key][0];
      const series = all.map(([run, lines]) => ({ ...(pick(lines) ?? { points: [] }), name: run.name, dashed: false, colour: undefined }));
      return series.some((one) => one.points.some((p) => Number.isFinite(p[1]))) ? chart({ ...about, x: over.value, series }).node : null;
    });
    fill(charts, shown);
  }

  const rows = runs.map((run) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, el("a", { href: `#/run/${run.id}` }, run.name)),
      el("td", {}, pill(run.state)),
      el("td", {}, `${run.steps_done} of ${run.steps_planned}`),
      el("td", {}, run.select_by === "accuracy" ? percent(run.best_score) : number(run.best_score)),
      el("td", {}, run.test ? `${percent(run.test.accuracy)} (${interval(run.test.low, run.test.high)}, n = ${count(run.test.n)})` : "—"),
      el("td", {}, compact(run.tokens)),
      el("td", {}, usd(run.usd)),
    ),
  );
  const depth = Math.max(...runs.map((run) => run.layers.length));
  const prompt = (run, layer) => {
    const ids = run.final ?? run.at_step.at(-1)[1];
    return ids[layer] === undefined ? null : run.prompts[ids[layer]];
  };
  const flat = runs.map((run) => new Map(leaves(run.options)));
  const names = [...new Set(flat.flatMap((row) => [...row.keys()]))].filter((name) => new Set(flat.map((row) => row.get(name))).size > 1);

  fill(
    main,
    el("p", {}, el("a", { href: "#/" }, "All runs")),
    el("h1", {}, "Comparison"),
    table("Runs", ["run", "status", "steps", "best dev", "test", "tokens", "price"], rows),
    el("h2", {}, "Curves"),
    el("p", {}, el("label", {}, "over ", over)),
    charts,
    el("h2", {}, "Prompts"),
    Array.from({ length: depth }, (_, layer) => [
      el("h3", {}, `Layer ${layer + 1}`),
      el(
        "div",
        { class: "side" },
        runs.map((run) => {
          const found = prompt(run, layer);
          return found ? el("div", { class: "layer" }, el("h4", {}, run.name), el("div", { class: "prompt" }, text(found.instruction, 4000)), demonstrations(found)) : null;
        }),
      ),
    ]),
    el("h2", {}, "Options that differ"),
    names.length
      ? table("Options", ["option", ...runs.map((run) => run.name)], names.map((name) => el("tr", {}, el("th", { scope: "row" }, name), flat.map((row) => el("td", {}, el("code", {}, row.get(name) ?? "—"))))))
      : el("p", { class: "m" }, "None."),
  );
  draw();
}
