// A person's word: a series is complete, or it is not; a gateway is gone.

import { choices, does, done, open, send } from "./acting.js";
import { el } from "./dom.js";

const WORDS = [
  ["complete", "It is complete", "Gateways that have it open report it now; the row says declared."],
  ["incomplete", "It is not complete", "The row loses its verdict until images come, or its PACS has just these."],
];

/** Declare a series, which need not be stored yet. */
export function declare(uid, name) {
  open(`Declare ${name}`, (still) => {
    let declared = null;
    const because = el("input", { id: "because", type: "text", required: true, maxLength: 256, autocomplete: "off" });
    because.setAttribute("aria-describedby", "because-hint");
    const act = async () => {
      if (!declared) throw new Error("say first whether it is complete");
      if (!because.value.trim()) throw new Error("say why: whoever reads the series later asks");
      const wanted = { Declared: declared, Because: because.value };
      const { Did } = await send("POST", `series/${encodeURIComponent(uid)}/declaration`, wanted);
      if (still()) done(`${name}: ${Did}.`);
    };
    return [
      el("p", { className: "second uid" }, uid),
      choices("What is right?", "declared", WORDS, (value) => {
        declared = value;
      }),
      el("label", { htmlFor: "because", className: "field" }, "Reason"),
      because,
      el("p", { className: "hint", id: "because-hint" }, "It stands in the timeline, for all who may read: no patient's name here."),
      does("Declare", act, "main"),
    ];
  });
}

/** Forget a gateway that is gone. */
export function dismiss(id) {
  open(`Dismiss ${id}`, (still) => {
    const act = async () => {
      await send("DELETE", `gateways/${encodeURIComponent(id)}`);
      if (still()) done(`${id} is dismissed: it is named no longer, unless it says something again.`);
    };
    const intro = `For a gateway that is gone for good. What it said last is forgotten here; what it holds stays in its journal. Should it say something again, it is back.`;
    return [el("p", {}, intro), does(`Dismiss ${id}`, act, "main")];
  });
}
