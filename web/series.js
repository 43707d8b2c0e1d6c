// The dialog of one series, linked to as #series/UID: its record, and its timeline as a picture and as a list.

import { opens } from "./acting.js";
import { settle } from "./conflicts.js";
import { declare } from "./declare.js";
import { badge, byId, el } from "./dom.js";
import { VERDICTS, count, date, images, many, patient, precisely, seconds, utc, when } from "./format.js";
import { draw } from "./picture.js";
import { ask } from "./stream.js";

const PHASES = {
  aborted: "its last association aborted",
  open: "its association still open",
  each: "an association for each image, and the last one ended",
  moved: "its association busy with another series",
  next: "an association for each image, and the next series begun",
  released: "its associations released",
  counted: "as many images there as a tag says",
};
const FEW = 4;
const MANY = {
  "association.joined": (d, group) =>
    `${d.CallingAETitle} began to send, over ${count(group.length)} associations until ${precisely(group.at(-1).At)}`,
  "images.counted": (_, group) =>
    `${count(group.length)} associations had brought ${many(
      group.reduce((sum, { Details }) => sum + Details.Images, 0),
      "image",
      "images",
    )}`,
};
let shown = null; // UID
let opener = null;
let viewerUrl = null; // with placeholders
let acts = null; // the buttons of the series that is shown
let redraw = null; // the picture, once it has another width

const dialog = byId("series");

/** Say an event of the timeline in words. */
export function words({ Event, Details: d }) {
  switch (Event) {
    case "association.joined":
      return `${d.CallingAETitle} began to send over association ${d.Association}, from ${d.PeerAddress}`;
    case "images.arrived":
      return `The last image arrived: ${many(Number(String(d.Arrivals ?? "").split(":").pop()), "image", "images")} so far`;
    case "images.counted":
      return `Association ${d.Association} had brought ${many(d.Images, "image", "images")} and was ${d.Released ? "released" : "still open"}`;
    case "series.idle":
      return `No image for ${d.IdleTimeoutS} s, ${Object.hasOwn(PHASES, d.Phase) ? PHASES[d.Phase] : d.Phase}: idle (policy ${d.Policy}, learnt from ${d.LearntFrom} series)`;
    case "pacs.answered":
      return answered(d);
    case "series.reopened":
      return `More images came, ${seconds(d.LateByS)} after it had been reported as ${d.Verdict}`;
    case "series.reported":
      return `Reported as ${d.Verdict}: ${many(d.Images, "image", "images")}`;
    case "report.stored":
      return `Row stored: ${many(d.Known, "image", "images")}, ${count(d.Added)} of them new`;
    case "verdict.contradicted":
      return `The verdict ${d.Verdict} was too early: ${many(d.Added, "image", "images")} came after it`;
    case "series.parted":
      return `Reported as a part, ${many(d.Images, "image", "images")}: the PACS has more`;
    case "series.purged":
      return `Purged with ${many(d.Images, "image", "images")}; it was sent again later`;
    case "timeline.shortened":
      return `${many(d.Dropped, "older event was", "older events were")} removed here`;
    case "series.declared":
      return `${d.By} declared it ${d.Declared}: ${d.Because}`;
    case "series.gapped":
      return `Images seem to be missing in between: InstanceNumber ${String(d.Numbers).replace(/ missing\?$/, "")}`;
    case "study.told":
      return studied(d);
    case "conflict.resolved":
      return `A conflict was settled: ${d.Decision}`;
    default:
      return `${Event} ${Object.entries(d)
        .map(([name, value]) => `${name} ${value}`)
        .join(", ")}`;
  }
}

function studied({ Verdict, Withdrawn, Basis }) {
  const was = Withdrawn === "part" ? "" : ` (it was ${Withdrawn})`;
  const now = Verdict ?? (Withdrawn ? `declared incomplete${was}` : "open again");
  return `Its study is ${now}${Basis ? `: ${Basis}` : ""}`;
}

function answered(d) {
  if (d.Problem && d.Count == null) return `${d.PACS} was asked and gave no answer: ${d.Problem}`;
  const missing = d.Missing ? `, ${count(d.Missing)} missing` : "";
  const fetched = d.Fetched ? `, ${count(d.Fetched)} fetched` : "";
  return `${d.PACS} was asked: it has ${many(d.Count, "image", "images")}, of which ${count(d.Known)} are here${missing}${fetched}${ofStudy(d)}${d.Problem ? ` (${d.Problem})` : ""}`;
}

const ofStudy = ({ StudySeries: series, StudyInstances: all }) =>
  series ? `; of the study ${count(series)} series with ${many(all, "image", "images")}` : "";

/** Return links to the study and this series in the API, and to the viewer if the server names one. */
function links({ StudyInstanceUID, SeriesInstanceUID }) {
  const uids = { StudyInstanceUID, SeriesInstanceUID };
  const study = `series?${new URLSearchParams({ StudyInstanceUID })}`;
  const all = { "Series of this study": study, JSON: `series/${encodeURIComponent(SeriesInstanceUID)}` };
  if (viewerUrl) all.Viewer = viewerUrl.replace(/\{(\w+)\}/g, (_, name) => encodeURIComponent(uids[name] ?? ""));
  const made = Object.entries(all).map(([name, href]) =>
    el("a", { href, target: "_blank", rel: "noopener noreferrer" }, name),
  );
  return el("span", { className: "links" }, ...made);
}

/** Return the buttons to declare or settle; nothing if the user may only read. They stay the same elements while the series is shown. */
function actions(record) {
  const uid = record.SeriesInstanceUID;
  const name = [record.Modality, record.Attributes.SeriesDescription?.[0]].filter(Boolean).join(" · ") || "series";
  if (acts?.uid !== uid)
    acts = {
      uid,
      declares: opens("Declare complete or incomplete …", () => declare(uid, name)),
      settles: opens("Settle its conflict …", () => settle(uid)),
    };
  if (!acts.declares) return "";
  return el("p", { className: "acts" }, acts.declares, record.Conflicts ? acts.settles : null);
}

const meaning = ({ Verdict, Withdrawn }) =>
  Withdrawn ? `a person declared it incomplete; its verdict was ${Withdrawn}` : (VERDICTS[Verdict ?? "none"] ?? "");

function facts(record) {
  const attribute = (keyword) => record.Attributes[keyword]?.join(", ");
  const dated = (keyword) => record.Attributes[keyword]?.map(date).join(", ");
  const time = (iso) => iso && el("time", { dateTime: iso, title: utc(iso) }, when(iso));
  const verdict = record.Verdict ?? "none";
  const all = [
    ["Patient", patient(record.PatientName)],
    ["PatientID", record.PatientID ?? "none"],
    ["Born", dated("PatientBirthDate")],
    ["Series", attribute("SeriesDescription")],
    ["Modality", record.Modality],
    ["Body part", attribute("BodyPartExamined")],
    ["Study", attribute("StudyDescription")],
    ["Study date", dated("StudyDate")],
    ["Accession no.", attribute("AccessionNumber")],
    ["Sender", record.Source],
    ["Called AE", record.CalledAETitle],
    ["First image", time(record.FirstReceivedAt)],
    ["Last image", time(record.LastReceivedAt)],
    ["Stored", time(record.UpdatedAt)],
    [
      "Images",
      `${images(record.NumInstances, record.ExpectedInstances)}${record.ExpectedFrom ? ` (${record.ExpectedFrom === "pacs" ? "the PACS" : "a tag"} says so)` : ""}${record.Missing ? `, ${count(record.Missing)} missing` : ""}`,
    ],
    [
      "Verdict",
      el("span", {}, badge(record.Verdict ?? "no verdict", verdict), ` ${meaning(record)}`),
    ],
    ["Reason", record.Basis],
    [
      "Revision",
      `${count(record.Revision)}${record.FalseCompletions ? `; a verdict was too early ${many(record.FalseCompletions, "time", "times")}` : ""}`,
    ],
    ["Doubtful", record.Doubtful.join("; ")],
    [
      "Conflicts",
      record.Conflicts
        ? `${many(record.Conflicts, "report names", "reports name")} another patient or study and is kept aside: GET /conflicts`
        : "",
    ],
    ["Series UID", el("code", {}, record.SeriesInstanceUID)],
    ["Study UID", el("code", {}, record.StudyInstanceUID)],
    ["Links", links(record)],
  ];
  const given = all.filter(([, value]) => value);
  return el(
    "dl",
    { className: "facts" },
    ...given.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
  );
}

/** Yield the events; many of one kind, such as one association for each image, become one line. */
function* condensed(events) {
  const groups = Map.groupBy(events, ({ Event, GatewayID, Revision }) => `${Event} ${GatewayID} ${Revision}`);
  for (const event of events) {
    const { Event, GatewayID, Revision, Details } = event;
    const group = groups.get(`${Event} ${GatewayID} ${Revision}`);
    if (!MANY[Event] || group.length <= FEW) yield [event, words(event)];
    else if (event === group[0]) yield [event, MANY[Event](Details, group)];
  }
}

function listed(events) {
  const items = [...condensed(events)].map(([event, text]) =>
    el(
      "li",
      { className: event.Event === "verdict.contradicted" ? "bad" : "" },
      el("time", { dateTime: event.At, title: utc(event.At) }, precisely(event.At)),
      el("span", {}, text),
      el("span", { className: "hint" }, event.GatewayID ?? "server"),
    ),
  );
  return el("ol", { className: "events" }, ...items);
}

async function load() {
  const uid = shown;
  const path = `series/${encodeURIComponent(uid)}`;
  const [[status, record], [, timeline]] = await Promise.all([ask(path), ask(`${path}/timeline`)]);
  if (shown !== uid) return;
  if (status !== 200 || !timeline) {
    byId("series-body").replaceChildren(
      el(
        "p",
        { className: "problem" },
        status === 404 ? "This series is not stored." : "The server does not answer; close this and try again.",
      ),
    );
    return;
  }
  const { events } = timeline;
  const picture = el("div", {
    className: "picture",
    tabIndex: 0,
    role: "region",
    "aria-label": "Timeline as a picture",
  });
  byId("series-title").textContent = [
    record.Modality,
    record.Attributes.SeriesDescription?.[0],
    patient(record.PatientName),
  ]
    .filter(Boolean)
    .join(" · ");
  const list = el("div", {}, events.length ? null : el("p", { className: "empty" }, "Its reports do not say how it arrived."));
  const focused = document.activeElement;
  byId("series-body").replaceChildren(facts(record), actions(record), el("h3", {}, "Timeline"), picture, list);
  if (acts.declares === focused || acts.settles === focused) focused.focus({ preventScroll: true });
  if (!events.length) return;
  try {
    list.replaceChildren(listed(events));
    draw(picture, events, words);
    follow(picture, events);
  } catch (error) {
    list.prepend(el("p", { className: "problem" }, `Not all of it can be shown: ${error.message}`));
  }
}

/** Draw the picture again whenever its width changes. */
function follow(picture, events) {
  let width = picture.clientWidth;
  redraw?.disconnect();
  redraw = new ResizeObserver(() => {
    if (!picture.clientWidth || picture.clientWidth === width) return;
    width = picture.clientWidth;
    draw(picture, events, words);
  });
  redraw.observe(picture);
}

/** Set the URL of the viewer, with its placeholders; null if there is none. */
export function viewer(url) {
  viewerUrl = url;
}

/** Return the UID in an address; undefined if it is not well formed. */
function decoded(given) {
  try {
    return decodeURIComponent(given);
  } catch {
    return undefined;
  }
}

/** Open or close the dialog as the address says. */
export function route() {
  const [, given] = /^#series\/(.{1,400})$/.exec(location.hash) ?? [];
  const uid = given && decoded(given);
  if (!uid || byId("page").hidden) return close();
  shown = uid;
  byId("series-title").textContent = "Series";
  byId("series-body").replaceChildren(el("p", { className: "empty" }, "Loading …"));
  if (!dialog.open) {
    opener = document.activeElement;
    dialog.showModal();
  }
  load();
}

function close() {
  shown = null;
  if (location.hash.startsWith("#series/") && !byId("page").hidden)
    history.replaceState(null, "", location.pathname + location.search);
  if (dialog.open) dialog.close();
}

/** Load the series again if the frame says that it was stored. */
export function show(_, frame) {
  if (shown && frame.Stored.some((series) => series.SeriesInstanceUID === shown)) load();
}

byId("close-series").addEventListener("click", close);
dialog.addEventListener("click", (event) => event.target === dialog && close());
dialog.addEventListener("close", () => {
  if (dialog.open) return; // another series was opened in the meantime
  close(); // by Escape
  byId("series-body").replaceChildren();
  byId("series-title").textContent = "";
  acts = null;
  opener?.focus();
});
addEventListener("hashchange", route);
