// Settle conflicts: show both identities side by side, what each decision would change, and take the decision.

import { choices, does, done, get, open, send } from "./acting.js";
import { el } from "./dom.js";
import { count, date, many, patient, when } from "./format.js";

const MOST = 50;
const DECISIONS = [
  ["dismiss", "Dismiss the report", "Its images do not belong to this series. The same report is not shown again."],
  ["merge", "Merge its images", "They belong to this series. The stored patient and study stay as they are."],
  ["correct", "Correct patient and study", "Its images belong to this series, and the stored patient or study is wrong."],
];
const NAMES = {
  NumInstances: "Images",
  PatientName: "Patient",
  StudyInstanceUID: "Study UID",
  ExpectedInstances: "Images expected",
  LastReceivedAt: "Last image",
  FirstReceivedAt: "First image",
};

const path = (digest) => `conflicts/${encodeURIComponent(digest)}`;

/** Open the dialog for an open conflict: of one series, or any if `uid` is missing. */
export function settle(uid) {
  open("Settle a conflict", async (still) => {
    const query = new URLSearchParams({ limit: MOST, ...(uid ? { SeriesInstanceUID: uid } : {}) });
    const { conflicts, next } = await get(`conflicts?${query}`);
    if (!conflicts.length) return el("p", { className: "empty" }, "No conflict is open.");
    if (conflicts.length === 1) return beside(conflicts[0].Digest, still);
    return list(conflicts, next);
  });
}

function list(conflicts, next) {
  const items = conflicts.map(({ Digest, Report, ReceivedAt }) => {
    const button = el("button", { type: "button", className: "quiet" }, `${patient(Report.PatientName)}, ${Report.PatientID ?? "no PatientID"}`);
    button.addEventListener("click", () => open("Settle a conflict", (still) => beside(Digest, still)));
    const more = `${many(Report.NumInstances, "image", "images")} of series ${Report.SeriesInstanceUID}, ${when(ReceivedAt)}`;
    return el("li", {}, button, el("span", { className: "second uid" }, more));
  });
  const intro = `${next ? "The first " : ""}${count(conflicts.length)} reports that name another patient or study than the stored series. Choose one:`;
  return [el("p", {}, intro), el("ul", { className: "picks" }, ...items)];
}

function identity(of, receivedAt) {
  const attribute = (keyword) => of.Attributes[keyword]?.join(", ");
  return {
    Patient: patient(of.PatientName),
    PatientID: of.PatientID ?? "none",
    Born: of.Attributes.PatientBirthDate?.map(date).join(", "),
    Sex: attribute("PatientSex"),
    Study: attribute("StudyDescription"),
    "Study date": of.Attributes.StudyDate?.map(date).join(", "),
    "Accession no.": attribute("AccessionNumber"),
    "Study UID": of.StudyInstanceUID,
    Series: attribute("SeriesDescription"),
    Images: count(of.NumInstances),
    Sender: of.Source,
    Received: receivedAt && when(receivedAt),
  };
}

async function beside(digest, still) {
  const { Conflict, Record, Would } = await get(path(digest));
  const stored = identity(Record, Record.UpdatedAt);
  const kept = identity(Conflict.Report, Conflict.ReceivedAt);
  const rows = Object.keys(stored)
    .filter((name) => stored[name] || kept[name])
    .map((name) => compared(name, stored[name] ?? "–", kept[name] ?? "–"));
  const head = ["Attribute", "Stored", "The report kept aside"].map((words) => el("th", { role: "columnheader", scope: "col" }, words));
  const table = el(
    "table",
    { className: "beside", role: "table" },
    el("caption", { className: "unseen" }, "Both identities of this series"),
    el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, ...head)),
    el("tbody", { role: "rowgroup" }, ...rows),
  );
  const outlook = el("div", { className: "outlook", role: "status" });
  const legend = `Series ${Conflict.SeriesInstanceUID}: which is right?`;
  const chosen = (decision) => outlook.replaceChildren(...confirm(digest, decision, Would[decision], Conflict, still));
  return [table, choices(legend, "decision", DECISIONS, chosen), outlook];
}

function compared(name, stored, kept) {
  const differs = stored !== kept && !["Images", "Received", "Sender"].includes(name);
  const mark = differs ? el("span", { className: "badge warn" }, "differs") : null;
  const head = el("th", { role: "rowheader", scope: "row" }, name, mark);
  const cells = [stored, kept].map((value) => el("td", { role: "cell", className: differs ? "differs" : "" }, value));
  return el("tr", { role: "row" }, head, ...cells);
}

/** Return the list of what a decision would change, and the button that takes it. */
function confirm(digest, decision, changes, { SeriesInstanceUID }, still) {
  const items = changes.map(({ What, Before, After }) =>
    el("li", {}, `${Object.hasOwn(NAMES, What) ? NAMES[What] : What}: `, el("del", {}, said(What, Before)), " → ", el("ins", {}, said(What, After))),
  );
  const nothing = decision === "dismiss" ? "Nothing." : "Nothing: its images are already known.";
  const [, words] = DECISIONS.find(([value]) => value === decision);
  const act = async () => {
    const record = await send("POST", path(digest), { Resolution: decision });
    if (still())
      done(
        `Settled (${decision}): series ${SeriesInstanceUID} is ${patient(record.PatientName)}, ${record.PatientID ?? "no PatientID"}, with ${many(record.NumInstances, "image", "images")}.`,
      );
  };
  return [
    el("h3", {}, "What would change"),
    items.length ? el("ul", { className: "changes" }, ...items) : el("p", {}, nothing),
    does(words, act, "main"),
  ];
}

function said(what, value) {
  if (value === null) return "none";
  return what === "PatientName" ? patient(value) : value;
}
