// Line charts with intervals, drawn by uPlot, each with a table of its values.

import { el, fill, table } from "./dom.js";

const HEIGHT = 230;

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const PALETTE = ["--accent", "--warm", "--good", "--violet", "--teal", "--bad"];

// series: [{name, points: [[x, y, low, high], …], dashed, colour}]
export function chart({ title, x = "step", unit = "", show, series, range, onpick }) {
  const kept = series.filter((one) => one.points.some((point) => Number.isFinite(point[1])));
  const figure = el("figure", { class: "chart" });
  const drawn = el("div", { class: "plot" });
  const values = el("div", {});
  fill(
    figure,
    el("figcaption", {}, title, unit ? el("span", { class: "m" }, unit) : null),
    drawn,
    el("details", {}, el("summary", {}, "Show values"), values),
  );
  let marked = null;
  let plot = null;
  let lines = kept;

  function data() {
    const xs = [...new Set(lines.flatMap((line) => line.points.map((point) => point[0])))].sort((a, b) => a - b);
    const columns = [xs];
    for (const line of lines) {
      const at = new Map(line.points.map((point) => [point[0], point]));
      for (const place of line.banded ? [1, 2, 3] : [1]) columns.push(xs.map((position) => at.get(position)?.[place] ?? null));
    }
    return columns;
  }

  // a value under the cursor, with its interval
  function said(u, value, at, i, banded) {
    if (value === null || i === null) return "—";
    const [low, high] = banded ? [u.data[at + 1][i], u.data[at + 2][i]] : [null, null];
    return low === null || high === null ? show(value) : `${show(value)} (${show(low)} to ${show(high)})`;
  }

  function options(width) {
    const all = [{ label: x, value: (_, value) => (value === null ? "" : Number(value.toPrecision(6)).toLocaleString("en")) }];
    const bands = [];
    lines.forEach((line, number) => {
      const stroke = colour(line.colour ?? PALETTE[number % PALETTE.length]);
      line.banded = line.points.some((point) => Number.isFinite(point[2]) && Number.isFinite(point[3]));
      const points = { show: line.points.length < 80, size: 6, fill: stroke };
      all.push({ label: line.name, stroke, width: 2, dash: line.dashed ? [5, 4] : undefined, spanGaps: true, points, value: (u, value, at, i) => said(u, value, at, i, line.banded) });
      if (line.banded) {
        const first = all.length;
        const bound = { stroke: "transparent", points: { show: false }, spanGaps: true };
        all.push({ label: "", ...bound }, { label: "", ...bound });
        bands.push({ series: [first + 1, first], fill: `color-mix(in srgb, ${stroke} 16%, transparent)` });
      }
    });
    const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 }, font: "12px system-ui" };
    return {
      width,
      height: HEIGHT,
      series: all,
      bands,
      scales: { x: { time: false }, y: { range: range ?? undefined } },
      axes: [
        { ...axis, values: (_, marks) => marks.map((mark) => (x === "step" && !Number.isInteger(mark) ? "" : short(mark))) },
        { ...axis, size: 62, values: (_, marks) => marks.map(show) },
      ],
      cursor: { points: { size: 8 }, drag: { x: false, y: false } },
      hooks: {
        draw: [
          (u) => {
            if (marked === null) return;
            const position = u.valToPos(marked, "x", true);
            u.ctx.save();
            u.ctx.strokeStyle = colour("--ink");
            u.ctx.setLineDash([3, 3]);
            u.ctx.beginPath();
            u.ctx.moveTo(position, u.bbox.top);
            u.ctx.lineTo(position, u.bbox.top + u.bbox.height);
            u.ctx.stroke();
            u.ctx.restore();
          },
        ],
        ready: [
          (u) => u.over.addEventListener("click", () => onpick && u.cursor.idx !== null && onpick(u.data[0][u.cursor.idx])),
        ],
      },
    };
  }

  const short = (mark) => (Math.abs(mark) >= 1e6 ? `${mark / 1e6} M` : Math.abs(mark) >= 1e4 ? `${mark / 1e3} k` : String(mark));

  function draw() {
    plot?.destroy();
    plot = null;
    const width = drawn.clientWidth;
    if (!lines.length) fill(drawn, el("p", { class: "m" }, "No values yet."));
    else if (width) {
      fill(drawn);
      const chosen = options(width);
      plot = new uPlot(chosen, data(), drawn);
    }
    listed();
  }

  function listed() {
    const [xs, ...columns] = data();
    const names = lines.flatMap((line) => (line.banded ? [line.name, "low", "high"] : [line.name]));
    fill(
      values,
      table(`${title}: numbers`, [x, ...names], xs.map((position, i) => el("tr", {}, el("td", {}, String(position)), columns.map((column) => el("td", {}, column[i] === null ? "" : show(column[i]))))), "n"),
    );
  }

  let width = 0;
  new ResizeObserver(() => {
    if (drawn.clientWidth !== width) {
      width = drawn.clientWidth;
      draw();
    }
  }).observe(drawn);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

  return {
    node: figure,
    mark(position) {
      marked = position;
      plot?.redraw(false);
    },
    update(fresh) {
      const before = lines.length;
      lines = fresh.filter((one) => one.points.some((point) => Number.isFinite(point[1])));
      const banded = lines.map((line) => line.points.some((point) => Number.isFinite(point[2]) && Number.isFinite(point[3])));
      const same = plot && before === lines.length && plot.series.length === 1 + banded.reduce((sum, wide) => sum + (wide ? 3 : 1), 0);
      lines.forEach((line, i) => (line.banded = banded[i]));
      if (!same) draw();
      else {
        plot.setData(data());
        listed();
      }
    },
  };
}
