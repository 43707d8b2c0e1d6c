// Draw a series' timeline: how images arrived, what was asked and decided, and what was stored.

import { el, svg } from "./dom.js";
import { count, seconds, when } from "./format.js";

const LEFT = 96;
const RIGHT = 34;
const APART = 15; // least distance of two marks in px
const BREAK = 54; // width in px of a gap that is cut
const SHORTEST_GAP_S = 20; // a gap is cut if it is longer than this …
const FACTOR = 3; // … and this many times longer than everything that is drawn to scale
const LANE = 30;
const CURVE = 84;
const BARS = 6; // most associations that get a bar each
const LATEST_S = 8.64e12; // the largest time that a Date can hold
const STEPS_S = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200];
const MOST_TICKS = 200;
const MARKS = {
  "pacs.answered": ["Questions", "circle", "the PACS was asked"],
  "series.idle": ["Decisions", "diamond", "taken for idle"],
  "series.reported": ["Decisions", "flag", "reported"],
  "series.reopened": ["Decisions", "cross", "more images after all"],
  "report.stored": ["Rows stored", "square", "row stored"],
  "verdict.contradicted": ["Rows stored", "cross", "the verdict before was too early"],
  "conflict.resolved": ["Rows stored", "diamond", "a conflict was settled"],
};
const SHAPES = {
  diamond: "M0-7L7 0L0 7L-7 0Z",
  circle: "M-6 0a6 6 0 1 0 12 0a6 6 0 1 0-12 0Z",
  square: "M-6-6H6V6H-6Z",
  flag: "M-5 7V-7L7-3L-5 1",
  cross: "M-6-6L6 6M-6 6L6-6",
};

/** Draw the events, which are in order of time, as wide as the host. `words` says an event in words. */
export function draw(host, all, words) {
  for (const event of all) event.at = Date.parse(event.At) / 1000;
  const events = all.filter((event) => isTime(event.at) && !event.Event.startsWith("study.")); // of the series alone
  if (!events.length) return host.replaceChildren();
  const stories = told(events);
  const times = [
    ...events.map((event) => event.at),
    ...stories.flatMap((s) => [...s.points.map(([at]) => at), ...s.bars.flatMap((bar) => [bar.from, bar.to])]),
  ];
  const width = Math.max(320, host.clientWidth);
  const scale = scaled(times, width - LEFT - RIGHT);
  const picture = svg("svg", { width, role: "img", "aria-label": "The same as the list below, to scale in time" });
  let y = 8;
  for (const story of stories) y = drawStory(picture, story, scale, y, width);
  for (const lane of ["Questions", "Decisions", "Rows stored"]) {
    const marks = events.filter((event) => MARKS[event.Event]?.[0] === lane);
    if (marks.length) y = drawMarks(picture, lane, marks, scale, y, width, words);
  }
  drawTime(picture, scale, y, width);
  picture.setAttribute("height", y + 34);
  return host.replaceChildren(picture, legend(events));
}

const isTime = (s) => Math.abs(s) <= LATEST_S; // false for NaN

/** Return a legend of the marks that are drawn. */
function legend(events) {
  const kinds = new Map(events.filter((event) => MARKS[event.Event]).map((event) => [event.Event, kindOf(event)]));
  const items = [...kinds].map(([event, kind]) => {
    const shape = svg("path", { d: SHAPES[MARKS[event][1]], transform: "translate(9 9)", class: `mark ${kind}` });
    return el("li", {}, svg("svg", { width: 18, height: 18, "aria-hidden": "true" }, shape), MARKS[event][2]);
  });
  return el("ul", { className: "legend hint" }, ...items);
}

const kindOf = ({ Event, Details }) =>
  Event === "verdict.contradicted" || Details.Problem ? "bad" : Event.replace(".", "-");

/** Return for each gateway and revision its images as points of a curve, and its associations as bars. */
function told(events) {
  const stories = new Map();
  for (const event of events.filter((e) => e.GatewayID)) {
    const key = `${event.Revision} ${event.GatewayID}`;
    if (!stories.has(key))
      stories.set(key, { revision: event.Revision, points: [], bars: [], began: event.at, ended: event.at });
    const story = stories.get(key);
    story.ended = event.at;
    const d = event.Details;
    if (event.Event === "association.joined")
      story.bars.push({ number: d.Association, name: d.CallingAETitle, from: event.at, to: null });
    if (event.Event === "images.arrived") story.points = arrivals(event);
    if (event.Event === "images.counted")
      Object.assign(story.bars.find((bar) => bar.number === d.Association) ?? {}, {
        images: d.Images,
        ...(d.Released && { to: event.at }),
      });
  }
  for (const story of stories.values()) {
    const last = story.points.at(-1)?.[0] ?? story.ended;
    for (const bar of story.bars) bar.to ??= Math.max(bar.from, last);
  }
  return [...stories.values()].filter((story) => story.bars.length || story.points.length);
}

/** Parse `0:1 0.31:12`: seconds after the first image, and how many had arrived. The event's time is that of the last image. */
function arrivals({ at, Details }) {
  const marks = String(Details.Arrivals ?? "")
    .split(" ")
    .map((mark) => mark.split(":").map(Number));
  const last = marks.at(-1)[0];
  if (!marks.every(([s, n]) => isTime(s) && isTime(at - last + s) && Number.isFinite(n))) return [];
  return marks.map(([s, n]) => [at - last + s, n]);
}

/** Return the scale of time. Gaps that are much longer than everything else are cut. */
function scaled(times, width) {
  const sorted = [...new Set(times)].sort((a, b) => a - b);
  const gaps = sorted.slice(1).map((at, i) => ({ from: sorted[i], to: at, s: at - sorted[i] }));
  let sum = 0;
  for (const gap of [...gaps].sort((a, b) => a.s - b.s)) {
    gap.cut = gap.s > Math.max(SHORTEST_GAP_S, FACTOR * sum);
    if (!gap.cut) sum += gap.s;
  }
  const cuts = gaps.filter((gap) => gap.cut);
  const wide = Math.min(BREAK, width / 2 / Math.max(1, cuts.length));
  const perS = (width - cuts.length * wide) / Math.max(sum, 0.001);
  const x = (at) => {
    const before = cuts.filter((gap) => gap.to <= at);
    const within = before.reduce((total, gap) => total + gap.s, 0);
    return LEFT + (at - sorted[0] - within) * perS + before.length * wide;
  };
  return { x, cuts, wide, perS, first: sorted[0], last: sorted.at(-1), spanS: sum };
}

const label = (picture, y, text) => picture.append(svg("text", { x: 0, y, class: "lane" }, text));

function drawStory(picture, { revision, points, bars }, { x }, y, width) {
  label(picture, y + 14, revision > 1 ? `Images, rev. ${revision}` : "Images");
  const bottom = y + CURVE;
  picture.append(svg("line", { x1: LEFT, x2: width - RIGHT, y1: bottom, y2: bottom, class: "ground" }));
  if (points.length) drawCurve(picture, points, x, y + 12, bottom, width);
  y = bottom + 8;
  if (!bars.length) return y + 6;
  label(picture, y + 12, "Associations");
  const few = bars.length <= BARS;
  for (const bar of bars) {
    const length = Math.max(3, x(bar.to) - x(bar.from));
    const name = `Association ${bar.number}, ${bar.name}${bar.images ? `: ${count(bar.images)} images` : ""}`;
    picture.append(
      svg(
        "rect",
        { x: x(bar.from), y: y + 3, width: few ? length : 2, height: 12, rx: few ? 3 : 0, class: "association" },
        svg("title", {}, name),
      ),
    );
    if (few && length > 90)
      picture.append(
        svg(
          "text",
          { x: x(bar.from) + 6, y: y + 13, class: "on" },
          `${bar.name}${bar.images ? ` · ${count(bar.images)}` : ""}`,
        ),
      );
    if (few) y += 18;
  }
  return y + (few ? 8 : 26);
}

/** Draw the curve in steps, since it is not known when images arrived between two points. */
function drawCurve(picture, points, x, top, bottom, width) {
  const most = Math.max(...points.map(([, n]) => n));
  const height = (n) => (n > 0 ? bottom - (bottom - top) * (n / most) : bottom);
  const line = points.map(([at, n], i) => (i ? `H${x(at)}V${height(n)}` : `M${x(at)} ${bottom}V${height(n)}`)).join("");
  const right = x(points.at(-1)[0]);
  picture.append(svg("path", { d: `${line}V${bottom}Z`, class: "area" }), svg("path", { d: line, class: "curve" }));
  for (const [at, n] of points)
    picture.append(
      svg("circle", { cx: x(at), cy: height(n), r: 2.5, class: "dot" }, svg("title", {}, `${count(n)} images`)),
    );
  const inside = right + 70 < width;
  picture.append(
    svg(
      "text",
      { x: inside ? right + 6 : right - 6, y: top + 4, class: "value", "text-anchor": inside ? "start" : "end" },
      `${count(most)} ${most === 1 ? "image" : "images"}`,
    ),
  );
}

function drawMarks(picture, lane, marks, { x }, y, width, words) {
  label(picture, y + LANE / 2 + 4, lane);
  picture.append(svg("line", { x1: LEFT, x2: width - RIGHT, y1: y + LANE / 2, y2: y + LANE / 2, class: "ground" }));
  let last = -Infinity;
  for (const event of marks) {
    last = Math.max(x(event.at), last + APART);
    const shape = svg("path", {
      d: SHAPES[MARKS[event.Event][1]],
      transform: `translate(${last} ${y + LANE / 2})`,
      class: `mark ${kindOf(event)}`,
    });
    shape.append(svg("title", {}, `${when(event.At)} ${words(event)}`));
    picture.append(shape);
  }
  return y + LANE + 4;
}

function drawTime(picture, { x, cuts, wide, perS, first, last, spanS }, y, width) {
  const right = width - RIGHT;
  picture.append(svg("line", { x1: LEFT, x2: right, y1: y + 6, y2: y + 6, class: "axis" }));
  label(picture, y + 24, "Seconds");
  const step = STEPS_S.find((s) => s * perS >= 44) ?? 10 ** Math.ceil(Math.log10(44 / perS));
  const end = cuts.length ? cuts[0].from : last;
  for (let i = 0; i < MOST_TICKS && i * step <= end - first + step / 1000; i += 1) {
    const s = i * step;
    const at = x(first + s);
    picture.append(
      svg("line", { x1: at, x2: at, y1: y + 3, y2: y + 9, class: "axis" }),
      svg("text", { x: at, y: y + 24, class: "tick" }, s ? `+${Number(s.toFixed(1))}` : spanS ? "0" : ""),
    );
  }
  for (const cut of cuts) {
    const middle = (x(cut.from) + x(cut.to)) / 2;
    picture.append(
      svg("rect", { x: middle - 0.4 * wide, y: 0, width: 0.8 * wide, height: y + 10, class: "cut" }),
    );
    if (wide === BREAK) picture.append(svg("text", { x: middle, y: y + 24, class: "tick" }, seconds(cut.s)));
  }
  picture.append(...picture.querySelectorAll(".value, .on")); // texts above the cut gaps
  if (!spanS)
    picture.append(svg("text", { x: LEFT, y: y + 24, class: "tick" }, when(new Date(first * 1000).toISOString())));
}
