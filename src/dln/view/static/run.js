// One run. The chosen step moves everything on the page; a live run moves the step while the page follows it.

import { age, compact, copyButton, count, demonstrations, download, duration, el, fill, get, interval, number, percent, pill, say, stream, table, text, usd } from "./dom.js";
import { chart } from "./chart.js";
import { CHARTS, curves } from "./curves.js";
import { controlBar, networkView } from "./network.js";
import { batchConfusion, candidates, confusionTable } from "./step.js";
import { examplesView } from "./examples.js";

const FILES = ["report.html", "network.json", "prompts.txt", "steps.csv", "predictions.csv", "events.jsonl"];
const WAIT = 120;

export async function runPage(main, id, wanted, signal) {
  const run = await get(`/api/runs/${id}`, signal);
  document.title = `${run.name} · dln`;
  const last = () => run.at_step.at(-1)[0];
  let step = /^\d+$/.test(wanted) ? Math.min(Number(wanted), last()) : last();
  let follow = !/^\d+$/.test(wanted);
  const known = new Map();
  let drawn = ""; // the step whose candidates are on the page, and in which state of the run

  // --- parts ---
  const head = el("div", {});
  const controls = controlBar(run);
  const network = networkView(run, signal);
  const slider = el("input", { type: "range", min: 0, max: last(), value: step, step: 1, "aria-label": "Step" });
  const shownStep = el("output", { class: "at" });
  const facts = el("span", { class: "m" });
  const following = el("input", { type: "checkbox", checked: follow });
  const move = (by) => {
    const made = el("button", { type: "button", "aria-label": by < 0 ? "Previous step" : "Next step" }, by < 0 ? "◀" : "▶");
    made.addEventListener("click", () => choose(step + by));
    return made;
  };
  const bar = el("div", { class: "steps-bar", role: "group", "aria-label": "Step" }, move(-1), slider, move(1), shownStep, el("label", { class: "m" }, following, " follow"), facts);
  const over = el("select", { "aria-label": "Curves over" }, el("option", { value: "step" }, "steps"), el("option", { value: "tokens" }, "tokens"));
  const charts = el("div", { class: "charts" });
  const choices = el("div", {});
  const batch = examplesView("batch");
  const batchTable = el("div", {});
  const tested = examplesView("test");
  const evaluation = el("div", {});
  const cost = el("div", {});
  let plots = [];

  fill(
    main,
    el("p", {}, el("a", { href: "#/" }, "All runs"), run.original || !run.labels ? null : [" · ", el("a", { href: `#/label/${id}` }, "Label inputs")]),
    head,
    controls.node,
    bar,
    section("network", "Network", network.node),
    section("curves", "Curves", el("p", {}, el("label", {}, "over ", over)), charts),
    section("candidates", "Candidates of the step", choices),
    section("batch", run.original ? "Examples after the step" : "Batch of the step", el("p", { class: "m" }, run.original ? "Outputs of the network after this step; fixed and broken compare with the step before." : "Outputs before the step; fixed and broken compare with the last time that the example was drawn."), batch.node, batchTable),
    evaluation,
    section("cost", "Cost", cost),
    section("files", "Reproduce and export", files(run)),
  );

  // --- the chosen step ---
  function choose(fresh, moved = true) {
    step = Math.max(0, Math.min(fresh, last()));
    if (moved) {
      follow = step === last();
      following.checked = follow;
      history.replaceState(null, "", follow ? `#/run/${id}` : `#/run/${id}/${step}`);
    }
    drawStep();
  }

  function drawStep() {
    slider.max = last();
    slider.value = step;
    slider.setAttribute("aria-valuetext", step ? `step ${step}` : "initial network");
    shownStep.textContent = step ? `step ${step} of ${Math.max(run.steps_planned, last())}` : "initial network";
    const row = run.steps.find((one) => one.step === step);
    const dev = run.validations.find((one) => one.step === step);
    facts.textContent = [
      row && Number.isFinite(row.elbo) && `ELBO ${number(row.elbo, 2)}`,
      row && Number.isFinite(row.accuracy) && `batch ${percent(row.accuracy, 0)}`,
      dev && `dev ${percent(dev.accuracy)}${dev.best ? " ★" : ""}`,
      row?.changed.length ? `changed: layer ${row.changed.join(", ")} (${row.sources.join(", ")})` : row && "kept",
    ].filter(Boolean).join(" · ");
    network.draw(step, ["running", "paused"].includes(run.state));
    for (const plot of plots) plot.mark(over.value === "step" ? step : (row?.tokens ?? null));
    clearTimeout(drawStep.timer);
    drawStep.timer = setTimeout(loadStep, known.has(step) ? 0 : WAIT);
  }

  async function loadStep() {
    const at = step;
    if (at === 0 && !run.original) {
      drawn = "";
      fill(choices, el("p", { class: "m" }, "The initial network: nothing was proposed yet."));
      fill(batchTable);
      batch.set([]);
      return;
    }
    try {
      if (!known.has(at)) known.set(at, await get(`/api/runs/${id}/steps/${at}`, signal));
    } catch (error) {
      if (!signal.aborted) fill(choices, el("p", { class: "note problem" }, error.message));
      return;
    }
    if (known.size > 50) known.delete(known.keys().next().value);
    if (at !== step) return;
    const page = known.get(at) ?? (await get(`/api/runs/${id}/steps/${at}`, signal));
    const now = JSON.stringify([at, run.state, run.turns.length]);
    if (now === drawn) return; // a redraw would take the cursor out of a comment
    drawn = now;
    fill(choices, candidates(page, run));
    batch.set(page.examples.map((e) => ({ ...e, turn: turn(e.before, e.correct), was: e.before && `${e.before.prediction} (step ${e.before.step})` })));
    fill(batchTable, el("h3", {}, "Confusion"), batchConfusion(page.examples, run.labels) ?? el("p", { class: "m" }, "Only for up to 30 labels."));
  }

  const turn = (before, correct) => (!before || before.correct === correct ? "" : correct ? "fixed" : "broken");

  // --- the whole run ---
  function drawHead() {
    const e = run.evaluation;
    fill(
      head,
      el("h1", {}, run.task || run.name),
      el("p", { class: "state" }, pill(run.state), el("span", {}, run.name), el("span", {}, `${run.steps_done} of ${run.steps_planned} steps`), run.models.some(Boolean) ? el("span", {}, run.models.join(", ")) : null, run.tokens ? el("span", {}, `${compact(run.tokens)} tokens`) : null, Number.isFinite(run.usd) ? el("span", {}, usd(run.usd)) : null, run.started ? el("span", {}, `started ${age(run.started)}`) : null, left()),
      e ? el("p", { class: "verdict" }, e.verdict) : null,
      e ? el("div", { class: "figures" }, figure("Initial", e.before), figure("Calibrated", e.fitted), figure("Trained", e.after, "after")) : null,
      run.turns.length ? el("ul", { class: "turns" }, run.turns.slice(-12).map(turnLine)) : null,
      run.lost.map((line) => el("p", { class: "note" }, text(line))),
    );
  }

  function left() {
    if (run.state !== "running") return null;
    const seconds = run.steps.slice(-10).map((row) => row.seconds).filter(Number.isFinite);
    if (!seconds.length) return null;
    const mean = seconds.reduce((a, b) => a + b, 0) / seconds.length;
    return el("span", {}, `about ${duration(mean * Math.max(0, run.steps_planned - run.steps_done))} left`);
  }

  function turnLine(line) {
    if (!line.human) return el("li", {}, text(line.text, 400));
    const did = line.refused ? `refused: ${line.refused}` : line.action === "prompt" ? `a person proposed for layer ${line.layer}: ` : line.layer ? `a person ${line.action}s for layer ${line.layer}: ` : `a person: ${line.action}`;
    return el("li", { class: "human" }, `after step ${line.step}, ${did}`, line.layer ? text(line.text, 200) : null, line.comment ? [" (", text(line.comment, 200), ")"] : null);
  }

  const figure = (name, result, kind = "") =>
    result
      ? el("div", { class: `figure ${kind}` }, el("span", { class: "what" }, name), el("span", { class: "value" }, percent(result.accuracy)), el("span", { class: "m" }, interval(result.low, result.high)), el("span", { class: "m" }, `n = ${count(result.n)}`))
      : null;

  function drawCharts() {
    const lines = curves(run, over.value);
    plots = [];
    fill(
      charts,
      CHARTS.map(({ key, ...about }) => {
        if (!lines[key].some((line) => line.points.some((p) => Number.isFinite(p[1])))) return null;
        const made = chart({ ...about, x: over.value, series: lines[key], onpick: (x) => over.value === "step" && choose(x) });
        plots.push(Object.assign(made, { key }));
        return made.node;
      }),
    );
  }

  function updateCharts() {
    const lines = curves(run, over.value);
    const missing = CHARTS.some(({ key }) => !plots.some((p) => p.key === key) && lines[key].some((l) => l.points.some((p) => Number.isFinite(p[1]))));
    if (missing) drawCharts();
    else for (const plot of plots) plot.update(lines[plot.key]);
  }

  async function drawEvaluation() {
    const e = run.evaluation;
    if (!e) return fill(evaluation);
    const recall = (r) => (r ? [el("td", { class: "r" }, `${count(r.correct)} of ${count(r.n)}`), el("td", { class: "r" }, percent(r.recall), el("span", { class: "m" }, ` ${interval(r.low, r.high)}`))] : [el("td", {}), el("td", {})]);
    fill(
      evaluation,
      section("test", `Examples of ${e.split}`, tested.node),
      section(
        "classes",
        "Classes",
        e.classes.length ? table("Classes", ["class", "before", "recall", "after", "recall"], e.classes.map((c) => el("tr", {}, el("th", { scope: "row" }, c.label), recall(c.before), recall(c.after)))) : el("p", { class: "m" }, "Free text: no classes."),
        el("div", { class: "side" }, e.confusion_before ? el("div", {}, el("h3", {}, "Before"), confusionTable(e.confusion_before, "Confusion before training")) : null, e.confusion_after ? el("div", {}, el("h3", {}, "After"), confusionTable(e.confusion_after, "Confusion after training")) : null),
      ),
    );
    const { examples } = await get(`/api/runs/${id}/examples`, signal);
    tested.set(examples.map((row) => ({ ...row, prediction: row.after, correct: row.after_correct, was: row.before })));
  }

  function drawCost() {
    const c = run.cost;
    const names = ["calls", "tokens read", "tokens written", "model seconds", "USD"];
    const line = (row, kind = "") => el("tr", { class: kind }, el("th", { scope: "row" }, row.name), row.used.map((v, i) => el("td", { class: "r" }, i === 4 ? usd(v) : i === 3 ? duration(v) : count(v))), el("td", { class: "r" }, duration(row.wall)));
    const calls = run.steps.at(-1)?.calls;
    const cached = run.steps.at(-1)?.cached;
    const wall = c.total.wall;
    fill(
      cost,
      table("Cost", ["", ...names, "wall time"], [line(c.total, "win"), ...c.expected.map((row) => line(row))], "n"),
      el("p", { class: "m" }, [run.tokens && wall && `${compact(run.tokens / wall)} tokens per second`, Number.isFinite(cached) && calls && `${compact(cached)} tokens from the cache`].filter(Boolean).join(" · ")),
      c.rows.length ? el("details", {}, el("summary", {}, "By step"), table("Cost by step", ["", ...names, "wall time"], c.rows.map((row) => line(row)), "n")) : null,
    );
  }

  function drawAll() {
    drawHead();
    controls.draw(run.state);
    drawCharts();
    drawStep();
    drawCost();
    return drawEvaluation();
  }

  slider.addEventListener("input", () => choose(Number(slider.value)));
  following.addEventListener("change", () => {
    follow = following.checked;
    if (follow) choose(last());
  });
  over.addEventListener("change", () => {
    drawCharts();
    drawStep();
  });
  addEventListener(
    "keydown",
    (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey || event.target.closest("input, textarea, select, .scroll, [contenteditable]")) return;
      if (event.key === "ArrowLeft") choose(step - 1);
      else if (event.key === "ArrowRight") choose(step + 1);
    },
    { signal },
  );
  await drawAll();
  if (!run.original) listen();
  return (step) => choose(/^\d+$/.test(step) ? Number(step) : last());

  // --- live ---
  async function listen() {
    while (!signal.aborted) {
      try {
        for await (const { event, data } of stream(`/api/runs/${id}/events?after=${run.count}`, signal)) {
          say("");
          if (event === "again") await again();
          else if (event === "rows") grow(data);
        }
      } catch (error) {
        if (signal.aborted) return;
      }
      if (signal.aborted) return;
      say("connection lost, trying again");
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }

  async function again() {
    Object.assign(run, await get(`/api/runs/${id}`, signal));
    known.clear();
    if (follow) step = last();
    step = Math.min(step, last());
    await drawAll();
  }

  function grow(data) {
    const ended = data.state !== run.state;
    run.state = data.state;
    run.count = data.count;
    for (const [at, prompts] of data.at_step ?? []) {
      run.at_step.push([at, prompts.map((prompt) => run.prompts.push(prompt) - 1)]);
      run.steps_done = at;
    }
    run.steps.push(...(data.steps ?? []));
    run.validations.push(...(data.validations ?? []));
    const used = [...(data.steps ?? []), ...(data.validations ?? [])].map((row) => row.tokens).filter(Number.isFinite);
    if (used.length) run.tokens = Math.max(...used);
    drawHead();
    if (ended) controls.draw(run.state);
    if (!data.steps?.length && !data.validations?.length) return ended ? drawStep() : undefined;
    updateCharts();
    if (follow) step = last();
    drawStep();
  }
}

function section(id, title, ...content) {
  return el("section", { id, "aria-labelledby": `${id}-h` }, el("h2", { id: `${id}-h` }, title), ...content);
}

function files(run) {
  const told = el("span", { class: "m", role: "status" });
  const buttons = FILES.filter((name) => !run.original || !["network.json", "events.jsonl", "predictions.csv"].includes(name)).map((name) => {
    const made = el("button", { type: "button" }, name);
    made.addEventListener("click", async () => {
      try {
        await download(`/api/runs/${run.id}/files/${name}`, name);
        told.textContent = "";
      } catch (error) {
        told.textContent = error.message;
      }
    });
    return made;
  });
  return [
    run.command ? el("div", {}, el("p", {}, "The command that reproduces the run ", copyButton(run.command)), el("pre", {}, run.command)) : null,
    el("p", { class: "bar-line" }, buttons, told),
    el("details", {}, el("summary", {}, "Options and versions"), el("pre", {}, JSON.stringify({ options: run.options, versions: run.versions, data_hash: run.data_hash }, null, 2))),
  ];
}
