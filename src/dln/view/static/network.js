// The network as a graph of its layers, with the prompt of the chosen step on each, and a form to try another one.

import { count, demonstrations, el, fill, post, text } from "./dom.js";

// word-level differences in the browser, for prompts of two steps: longest common subsequence of words
export function wordDifference(old, fresh) {
  const split = (value) => value.match(/\s+|[^\s]+/g) ?? [];
  const [a, b] = [split(old), split(fresh)];
  if (a.length * b.length > 4e6) return [["delete", old], ["insert", fresh]];
  const table = Array.from({ length: a.length + 1 }, () => new Uint32Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) table[i][j] = a[i] === b[j] ? table[i + 1][j + 1] + 1 : Math.max(table[i + 1][j], table[i][j + 1]);
  }
  const found = [];
  const add = (kind, word) => (found.at(-1)?.[0] === kind ? (found.at(-1)[1] += word) : found.push([kind, word]));
  let [i, j] = [0, 0];
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) {
      add("same", a[i]);
      i++, j++;
    } else if (j >= b.length || (i < a.length && table[i + 1][j] >= table[i][j + 1])) add("delete", a[i++]);
    else add("insert", b[j++]);
  }
  return found;
}

export function networkView(run, signal) {
  const node = el("ol", { class: "flow" });
  const drafts = new Map(); // what a person is writing survives every redraw

  function draw(step, live) {
    const at = (wanted) => [...run.at_step].reverse().find(([known]) => known <= wanted)?.[1] ?? run.at_step[0][1];
    const [now, before] = [at(step), step > 0 ? at(step - 1) : null];
    const focused = node.contains(document.activeElement) ? document.activeElement.id : "";
    fill(
      node,
      el("li", { class: "node" }, el("i", {}, "x"), el("span", { class: "m" }, "input")),
      run.layers.map((layer, i) => layerItem(layer, i, run.prompts[now[i]], before && run.prompts[before[i]], live)),
      el("li", { class: "node" }, el("i", {}, "y"), el("span", { class: "m" }, run.labels ? `one of ${run.labels.length} labels` : "free text")),
    );
    if (focused) document.getElementById(focused)?.focus();
  }

  function layerItem(layer, i, prompt, before, live) {
    const changed = before && JSON.stringify(before) !== JSON.stringify(prompt);
    const words = changed && before.instruction !== prompt.instruction ? wordDifference(before.instruction, prompt.instruction) : null;
    return el(
      "li",
      { class: "layer" },
      el("h3", {}, `Layer ${layer.number}`, el("span", { class: "m" }, [layer.kind === "choice" ? "chooses a label" : "writes a text", layer.model, layer.template].filter(Boolean).join(" · ")), changed ? el("b", { class: "pill done" }, "changed in this step") : null),
      el(
        "div",
        { class: "prompt", dir: "auto" },
        words ? words.map(([kind, part]) => (kind === "same" ? part : el(kind === "insert" ? "ins" : "del", {}, part))) : text(prompt.instruction, 2000),
      ),
      demonstrations(prompt),
      layer.evidence?.length ? el("details", {}, el("summary", {}, "Words for and against each label"), el("ul", { class: "demos" }, layer.evidence.map((line) => el("li", {}, text(line, 400))))) : null,
      live ? editor(layer, i, prompt) : null,
    );
  }

  function editor(layer, i, prompt) {
    const open = drafts.has(i);
    const area = el("textarea", { id: `edit-${i}`, rows: 6, "aria-label": `Instruction to try in layer ${layer.number}`, value: drafts.get(i) ?? prompt.instruction });
    const told = el("span", { class: "m", role: "status" });
    const send = el("button", { type: "button", class: "strong" }, "Try it in the next step");
    const close = el("button", { type: "button" }, "Cancel");
    const form = el("div", { class: "edit", hidden: !open }, area, el("p", {}, send, " ", close, " ", told), el("p", { class: "m" }, "It becomes a candidate of the next step and is scored on the same batch as the others. The layer's demonstrations stay."));
    const button = el("button", { type: "button", class: "small", "aria-expanded": String(open) }, "Edit");
    button.addEventListener("click", () => {
      form.hidden = !form.hidden;
      button.setAttribute("aria-expanded", String(!form.hidden));
      if (form.hidden) drafts.delete(i);
      else drafts.set(i, area.value), area.focus();
    });
    close.addEventListener("click", () => button.click());
    area.addEventListener("input", () => drafts.set(i, area.value));
    send.addEventListener("click", async () => {
      try {
        const answer = await post(`/api/runs/${run.id}/control`, { action: "prompt", layer: i, text: area.value });
        told.textContent = `sent as request ${count(answer.request)}`;
        drafts.delete(i);
      } catch (error) {
        told.textContent = error.message;
      }
    });
    return el("div", {}, button, form);
  }

  signal.addEventListener("abort", () => drafts.clear());
  return { node, draw };
}

export function controlBar(run) {
  const told = el("span", { class: "m", role: "status" });
  const button = (name, action) => {
    const made = el("button", { type: "button", "data-action": action }, name);
    made.addEventListener("click", async () => {
      if (action === "stop" && !confirm("End this training after the present step?")) return;
      try {
        await post(`/api/runs/${run.id}/control`, { action });
        told.textContent = action === "resume" ? "asked to go on" : `asked to ${action} after the present step`;
      } catch (error) {
        told.textContent = error.message;
      }
    });
    return made;
  };
  const [pause, resume, stop] = [button("Pause", "pause"), button("Resume", "resume"), button("Stop after this step", "stop")];
  const node = el("p", { class: "bar-line", id: "controls" }, pause, resume, stop, told);
  return {
    node,
    draw(state) {
      node.hidden = !["running", "paused"].includes(state);
      pause.hidden = state === "paused";
      resume.hidden = state !== "paused";
    },
  };
}
