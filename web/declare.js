// What a person can say here: a series is complete, or it is not; a gateway is gone.

import { choices, does, done, open, send } from "./acting.js";
import { el } from "./dom.js";

const WORDS = [
  ["complete", "It is complete", "Gateways that still have it open report it now, with the verdict declared."],
  ["incomplete", "It is not complete", "It has no verdict until more images come, or its PACS confirms that these are all."],
];

/** Open the dialog to declare a series. The series need not be stored yet. */
export function declare(uid, name) {
  open(`Declare ${name}`, (still) => {
    let declared = null;
    const because = el("input", { id: "because", type: "text", required: true, maxLength: 256, autocomplete: "off" });
    because.setAttribute("aria-describedby", "because-hint");
    const act = async () => {
      if (!declared) throw new Error("say first whether it is complete");
      if (!because.value.trim()) throw new Error("give a reason: it is shown with the series");
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
      el("p", { className: "hint", id: "because-hint" }, "It is shown in the timeline, to everyone who may read series. Write no patient's name."),
      does("Declare", act, "main"),
    ];
  });
}

/** Open the dialog to dismiss a gateway that is gone. */
export function dismiss(id) {
  open(`Dismiss ${id}`, (still) => {
    const act = async () => {
      await send("DELETE", `gateways/${encodeURIComponent(id)}`);
      if (still()) done(`${id} is dismissed. It is shown again only if it is heard from again.`);
    };
    const intro = "Dismiss a gateway that is gone for good, and this page no longer shows it. Nothing is deleted from its journal. If it is heard from again, it is shown again.";
    return [el("p", {}, intro), does(`Dismiss ${id}`, act, "main")];
  });
}
