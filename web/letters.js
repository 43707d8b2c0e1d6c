// Settle what was given up, by sending it again or dropping it: dead letters of a gateway, changes of a webhook.

import { asksFirst, does, done, get, open, send } from "./acting.js";
import { el, write } from "./dom.js";
import { count, many, when } from "./format.js";

const LOOK_MS = 1000; // how often the state of orders is asked for
const STATES = {
  waiting: "waits for the gateway's next heartbeat",
  expired: "the gateway did not take the order within a day: give it again",
};
const DONE = { replay: "posted again", discard: "discarded" };
const AGAIN = "refused again since";

/** Open the dialog of a gateway's dead letters. `world` knows the latest of them; orders reach the gateway with its next heartbeat. */
export function settleLetters(world, id) {
  const orders = `gateways/${encodeURIComponent(id)}/orders`;
  const rows = new Map(); // Id: { item, state, place }
  const list = el("ul", { className: "letters" });
  const hint = el("p", { className: "hint" });

  function make(letter) {
    const state = el("span", { className: "order", role: "status", tabIndex: -1 });
    const place = el("span", { className: "places" });
    const give = (Kind) => async () => {
      tell(await send("POST", orders, { Kind, DeadLetter: letter.Id }));
      state.focus(); // the button is gone
    };
    const images = many(letter.Instances, "image", "images");
    place.append(
      does("Replay", give("replay")),
      asksFirst("Discard", `${images} will never be reported. Are you sure?`, give("discard")),
    );
    const what = el("span", {}, `${images}, refused ${when(letter.At)}: ${letter.Answer}`);
    const uid = el("span", { className: "second uid" }, letter.SeriesInstanceUID);
    const without = el("span", { className: "hint" }, "This gateway takes no orders. On its machine: python client.py dead-letters");
    const item = el("li", {}, what, uid, letter.Id ? place : without, state);
    rows.set(letter.Id ?? letter, { item, state, place });
    list.append(item);
  }

  /** Tell if it is still a dead letter, or one again: a heartbeat that came after its order was done names it. */
  function isDead(letter, doneAt) {
    const gateway = world.gateways.get(id);
    const dead = gateway && Date.parse(gateway.seenAt) > Date.parse(doneAt) ? (gateway.state.Dead ?? []) : [];
    return dead.some(({ Id }) => Id === letter);
  }

  function tell({ DeadLetter, Kind, State, Problem, DoneAt }) {
    const row = rows.get(DeadLetter);
    if (!row) return;
    const done = State === "done" && !isDead(DeadLetter, DoneAt);
    const ended = State === "done" ? (done ? DONE[Kind] : AGAIN) : `nothing was done: ${Problem}`;
    write(row.state, STATES[State] ?? ended);
    row.place.hidden = State === "waiting" || done;
  }

  async function look(still) {
    const { orders: told } = await get(orders);
    if (!still()) return;
    for (const letter of world.gateways.get(id)?.state.Dead ?? []) if (!rows.has(letter.Id ?? letter)) make(letter);
    const latest = new Map(told.reverse().map((order) => [order.DeadLetter, order])); // the latest comes first
    for (const order of latest.values()) if (order.DeadLetter) tell(order);
    const more = (world.gateways.get(id)?.state.DeadLetters ?? 0) - (world.gateways.get(id)?.state.Dead.length ?? 0);
    write(hint, more > 0 ? `${count(more)} more; they appear as these are settled.` : "");
  }

  open(`Dead letters of ${id}`, async (still) => {
    await look(still);
    const again = async () => {
      if (!still()) return;
      await look(still).catch(() => {}); // what is shown stays
      setTimeout(again, LOOK_MS);
    };
    setTimeout(again, LOOK_MS);
    const intro =
      "The server refused these reports for good. Once the cause is fixed, Replay posts a report again; Discard gives it up. The order reaches the gateway with its next heartbeat.";
    return [el("p", {}, intro), list, hint];
  });
}

/** Open the dialog of the changes that a webhook did not accept. They are settled together, since changes are sent in order. */
export function settleWebhook(id) {
  const path = `webhooks/${encodeURIComponent(id)}/untold`;
  open(`Webhook ${id}`, async (still) => {
    const { Host, Ended, Problem, Count, changes } = await get(path);
    if (!Count && !Ended) return el("p", { className: "empty" }, "No change was given up.");
    const act = (Do) => async () => {
      const { Did } = await send("POST", path, { Do });
      if (still()) done(`Webhook ${id} (${Host}): ${Did}.`);
    };
    const items = changes.map(({ Number, Problem: why, At, SeriesInstanceUID, StudyInstanceUID }) =>
      el("li", {}, `Change ${Number}, given up ${when(At)}: ${why}`, el("span", { className: "second uid" }, SeriesInstanceUID ?? StudyInstanceUID ?? "purged since")),
    );
    const ended = Ended ? `${Host} answered that it wants no more changes: ${Problem ?? ""}` : "";
    const said = Count ? `${Host} did not accept ${many(Count, "change", "changes")} within a day.` : ended;
    const more = Count > changes.length ? `${count(Count - changes.length)} more` : "";
    const warning = `${many(Count, "change", "changes")} will never be sent. Are you sure?`;
    return [
      el("p", {}, said),
      el("ul", { className: "letters" }, ...items),
      el("p", { className: "hint" }, more),
      does("Send again", act("replay"), "main"),
      Count ? asksFirst("Discard", warning, act("discard")) : null,
      el("p", { className: "hint" }, "All changes after the first of these are sent again, too, so the receiver gets some of them twice."),
    ].filter(Boolean);
  });
}
