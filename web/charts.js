// Two charts of the last ten minutes, drawn by uPlot (web/vendor): images a second, and the time until each row was stored.

import { duration, quantile, seconds } from "./format.js";

const height = (width) => (width < 480 ? 120 : 170);
const LEAST_S = 0.05; // smallest value on the logarithmic scale
const TICKS_S = [0.1, 1, 10, 60, 600, 3600, 6 * 3600, 86400]; // ticks of the logarithmic scale
const EVERY_S = [60, 120, 180, 300]; // possible distances of two times on the axis
const WIDTH = 10; // seconds of room right of the last slot

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const plain = new Intl.NumberFormat(undefined, { maximumFractionDigits: 2 });

/** Return both axes. `values` formats ticks; for a logarithmic axis, `splits` returns where its ticks are, and all are drawn. */
function axes(values, splits) {
  const common = {
    stroke: colour("--muted"),
    grid: { stroke: colour("--line"), width: 1 },
    ticks: { show: false },
    font: "11px system-ui",
  };
  return [
    {
      ...common,
      grid: { show: false },
      space: 48,
      incrs: EVERY_S,
      size: 26,
      values: (_, times) => times.map((s) => clock.format(new Date(s * 1000))),
    },
    { ...common, size: 46, values, ...(splits && { splits, filter: (_, ticks) => ticks }) },
  ];
}

const options = (width, scales, series, values, splits) => ({
  width,
  height: height(width),
  legend: { show: false },
  cursor: { show: false },
  padding: [8, 22, 0, 0], // room for the half of the last time that is right of its tick
  scales,
  series: [{}, series],
  axes: axes(values, splits),
});

class Chart {
  constructor(id, build) {
    this.host = document.getElementById(id);
    this.build = build;
    this.data = [[], []];
    new ResizeObserver(() => this.fit()).observe(this.host);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.begin());
  }

  begin() {
    this.plot?.destroy();
    this.plot = null;
    if (this.host.clientWidth) this.plot = new uPlot(this.build(this.host.clientWidth), this.data, this.host);
  }

  fit() {
    if (!this.plot) this.begin();
    const width = this.host.clientWidth;
    if (this.plot && width && this.plot.width !== width) this.plot.setSize({ width, height: height(width) });
  }

  show(data, words) {
    this.data = data;
    this.host.setAttribute("aria-label", words);
    if (this.plot) this.plot.setData(data);
    else this.begin();
  }
}

let now = 0; // the right edge of both charts, in seconds
const range = () => [now - 600, now + WIDTH];

const throughput = new Chart("throughput", (width) =>
  options(
    width,
    { x: { range }, y: { range: (_, low, high) => [0, Math.max(1, (high ?? 0) * 1.1)] } },
    {
      stroke: colour("--accent"),
      fill: colour("--accent"),
      width: 0,
      paths: uPlot.paths.bars({ size: [0.8, 12, 1], align: 1 }),
      points: { show: false },
    },
    (_, ticks) => ticks.map((n) => plain.format(n)),
  ),
);

const latency = new Chart("latency", (width) =>
  options(
    width,
    { x: { range }, y: { distr: 3, range: (_, low, high) => [Math.min(0.1, low ?? 0.1), Math.max(10, high ?? 10)] } },
    {
      stroke: colour("--accent"),
      paths: () => null,
      points: { show: true, size: 6, width: 1, fill: colour("--accent") },
    },
    (_, ticks) => ticks.map(duration),
    (_, __, low, high) => TICKS_S.filter((s) => s >= low && s <= high),
  ),
);

/** Draw both charts, up to the world's time. */
export function show(world) {
  now = Math.ceil(world.now / 5000) * 5;
  const [times, rates] = world.throughput();
  throughput.show(
    [times, rates],
    `Bar chart of the last ten minutes: at most ${plain.format(Math.max(...rates))} images a second, now ${plain.format(world.rate())}`,
  );
  const points = world.latencies.filter((point) => point.at > now - 600).sort((a, b) => a.at - b.at);
  const values = points.map((point) => Math.max(LEAST_S, point.s));
  const middle = values.length
    ? `half within ${seconds(quantile(values, 0.5))}, nearly all within ${seconds(quantile(values, 0.95))}`
    : "no series stored";
  latency.show([points.map((point) => point.at), values], `One dot a series of the last ten minutes: ${middle}`);
}
