// The curves of a run, from the rows of its overview.

import { compact, number, percent } from "./dom.js";

const DECAY = 0.8;

// the mean that forgets: r ← 0.8 r + 0.2 v, beginning with the first value
export function running(points) {
  let mean = null;
  return points
    .filter(([, value]) => Number.isFinite(value))
    .map(([x, value]) => {
      mean = mean === null ? value : DECAY * mean + (1 - DECAY) * value;
      return [x, mean];
    });
}

// a batch is evaluated before its step, under the prompts of the step before
export function curves(run, over) {
  const place = (row, shift = 0) => (over === "tokens" ? row.tokens : row.step - shift);
  const rows = run.steps.filter((row) => Number.isFinite(place(row)));
  const validations = run.validations.filter((row) => Number.isFinite(place(row)));
  const elbo = rows.map((row) => [place(row), row.elbo]);
  const batch = rows.map((row) => [place(row, run.original ? 0 : 1), row.accuracy]);
  return {
    elbo: [
      { name: "ELBO of the batch", points: elbo },
      { name: "running", points: running(elbo), dashed: true, colour: "--soft" },
    ],
    accuracy: [
      { name: "dev", points: validations.map((row) => [place(row), row.accuracy, row.low, row.high]) },
      { name: "batch", points: batch, dashed: true, colour: "--soft" },
      { name: "running", points: running(batch) },
    ],
    likelihood: [{ name: "log-likelihood, dev", points: validations.map((row) => [place(row), row.log_likelihood]) }],
    tokens: over === "tokens" ? [] : [{ name: "tokens", points: rows.map((row) => [row.step, row.tokens]) }],
  };
}

export const CHARTS = [
  { key: "elbo", title: "ELBO before each step", unit: "nats per example", show: (v) => number(v, 2) },
  { key: "accuracy", title: "Accuracy", unit: "", show: (v) => percent(v, 0), range: (_, low, high) => (low === null ? [0, 1] : [Math.max(0, low - 0.05), Math.min(1, high + 0.05)]) },
  { key: "likelihood", title: "Log-likelihood of the dev set", unit: "nats per example", show: (v) => number(v, 2) },
  { key: "tokens", title: "Tokens", unit: "", show: compact },
];
