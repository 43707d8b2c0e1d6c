"""A person's word about a series, and the orders that gateways are given, on both databases."""

import asyncio
import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import time_machine
from fastapi import FastAPI
from structlog.testing import capture_logs

from db import Database
from models import MAX_BECAUSE, MAX_ORDERS, Change, GatewayState, SeriesReport
from storage import orders as storage_orders
from storage.declarations import ANSWERS_WITHIN
from storage.orders import EXPIRE_AFTER, KEPT_FOR
from tests.rig.factories import SERIES, STUDY, arriving, make_report, make_state

BECAUSE = "radiology says that this is all"


def report(*sops: str, verdict: str | None = "idle", **change: Any) -> dict[str, Any]:
    said = make_report(*sops).model_dump(mode="json")
    return said | {"Verdict": verdict, "GatewayID": "g", "Source": "CT1 CT", "IdlePolicy": "adaptive"} | change


def verified(*sops: str, **change: Any) -> dict[str, Any]:
    return report(*sops, verdict="verified", ExpectedInstances=len(sops), ExpectedFrom="pacs", **change)


class Site:
    """A server, as its clients meet it."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def post(self, body: dict[str, Any]) -> dict[str, Any]:
        answer = await self.http.post("/series", json=SeriesReport.model_validate(body).model_dump(mode="json"))
        assert answer.status_code in (200, 201), answer.text
        return dict(answer.json())

    async def beat(self, name: str, *open_series: str, done: Any = (), **change: Any) -> list[dict[str, Any]]:
        """A heartbeat; what its answer orders."""
        told = {
            "Arriving": [arriving(uid, 1, StudyInstanceUID=STUDY) for uid in open_series],
            "OpenSeries": len(open_series),
        }
        done = [{"Number": one, "Problem": None} if isinstance(one, int) else one for one in done]
        state = make_state(name, **told, OrdersDone=done, **change)
        answer = await self.http.put(f"/gateways/{name}", json=state)
        assert answer.status_code == 200, answer.text
        return list(answer.json()["Orders"])

    async def declare(self, word: str = "complete", because: str = BECAUSE, uid: str = SERIES) -> httpx.Response:
        body = {"Declared": word, "Because": because}
        return await self.http.post(f"/series/{uid}/declaration", json=body)

    async def declare_study(self, word: str) -> httpx.Response:
        study = (await self.get())["StudyInstanceUID"]
        return await self.http.post(f"/studies/{study}/declaration", json={"Declared": word, "Because": BECAUSE})

    async def get(self, path: str = "") -> Any:
        return (await self.http.get(f"/series/{SERIES}{path}")).json()

    async def events(self, *names: str) -> list[dict[str, Any]]:
        events = (await self.get("/timeline"))["events"]
        return [event for event in events if event["Event"] in names]

    async def timeline(self) -> list[dict[str, Any]]:
        """What happened to the series itself: its study is decided some time later."""
        return [event for event in (await self.get("/timeline"))["events"] if event["Event"] != "study.told"]

    async def changes(self) -> list[Change]:
        found = (await self.http.get("/changes")).json()["changes"]
        return [Change.model_validate(one) for one in found]

    async def figures(self) -> dict[str, tuple[int, int]]:
        found = (await self.http.get("/completions")).json()["completions"]
        return {one["Verdict"]: (one["Series"], one["False"]) for one in found}


@pytest.fixture
def site(http: httpx.AsyncClient) -> Site:
    return Site(http)


# --- complete ---------------------------------------------------------------------------------------------------


async def test_a_stored_series_that_is_open_nowhere_is_declared_at_once(site: Site) -> None:
    await site.post(report("1", "2"))
    done = (await site.declare()).json()
    assert (done["Changed"], done["Closing"], done["Record"]["Verdict"]) == (True, [], "declared")
    record = await site.get()
    assert record == done["Record"]
    assert record["Basis"] == f"declared complete by this machine: {BECAUSE}"
    (event,) = await site.events("series.declared")
    assert event["Details"] == {"Declared": "complete", "By": "this machine", "Because": BECAUSE}
    assert (event["GatewayID"], event["Revision"]) == (None, 2)
    *_, change = await site.changes()
    assert (change.Kinds, change.Verdict, change.Revision) == (["revised", "declared"], "declared", 2)
    assert await site.figures() == {"idle": (1, 0), "declared": (1, 0)}


async def test_declaring_again_changes_nothing_and_says_so(site: Site) -> None:
    await site.post(report("1"))
    await site.declare()
    before = [await site.get(), await site.timeline(), await site.changes(), await site.figures()]
    again = (await site.declare(because="another reason")).json()
    assert (again["Changed"], again["Did"]) == (False, "nothing to do: it is declared already")
    assert before == [await site.get(), await site.timeline(), await site.changes(), await site.figures()]


async def test_verified_is_stronger_than_a_persons_word(site: Site) -> None:
    await site.post(verified("1"))
    done = (await site.declare()).json()
    assert (done["Changed"], done["Record"]["Verdict"]) == (False, "verified")
    assert "stronger" in done["Did"]
    assert await site.events("series.declared") == []


async def test_a_declared_series_that_is_then_verified_is_that(site: Site) -> None:
    await site.post(report("1"))
    await site.declare()
    assert (await site.post(report("1", Revision=2)))["Verdict"] == "declared"
    assert (await site.post(verified("1", Revision=2)))["Verdict"] == "verified"


async def test_images_after_a_declaration_are_a_false_completion_of_it(site: Site) -> None:
    await site.post(report("1"))
    await site.declare()
    record = await site.post(report("2", Revision=2))
    assert (record["Verdict"], record["FalseCompletions"]) == ("idle", 1)
    assert (await site.changes())[-1].Kinds == ["revised", "contradicted"]
    assert await site.figures() == {"idle": (2, 0), "declared": (1, 1)}


async def test_a_series_that_nobody_knows_is_404(site: Site) -> None:
    await site.beat("g", "1.9")
    for word in ("complete", "incomplete"):
        answer = await site.declare(word)
        assert answer.status_code == 404
        assert SERIES in answer.json()["detail"]
    assert await site.beat("g") == []


async def test_gateways_are_ordered_to_close_it_and_the_row_follows_with_their_report(site: Site) -> None:
    """Even one that no report of has come of: who said so, and why, stands in the timeline that it then has."""
    await site.beat("g", SERIES)
    await site.beat("other")
    await site.beat("ended", Stopped=True)
    done = (await site.declare()).json()
    assert (done["Changed"], done["Closing"], done["Record"]) == (False, ["g"], None)
    (order,) = await site.beat("g", SERIES)
    assert (order["Kind"], order["SeriesInstanceUID"]) == ("declare", SERIES)
    assert [one["Kind"] for one in await site.beat("other")] == ["declare"]
    assert await site.beat("ended") == []
    record = await site.post(report("1", "2", verdict="declared", Basis="a person has declared it complete"))
    assert (record["Verdict"], record["Basis"]) == ("declared", f"declared complete by this machine: {BECAUSE}")
    assert await site.beat("g", done=[order["Number"]]) == []
    for _ in range(2):
        await site.post(report("1", "2", verdict="declared"))
        (event,) = await site.events("series.declared")
        assert event["Details"]["Because"] == BECAUSE
    (change,) = await site.changes()
    assert change.Kinds == ["created", "declared"]
    assert await site.figures() == {"declared": (1, 0)}


async def test_a_row_waits_for_the_gateway_that_has_more_of_it_so_that_nobody_acts_twice(site: Site) -> None:
    await site.post(report("1"))
    await site.beat("g", SERIES)
    done = (await site.declare()).json()
    assert (done["Changed"], done["Closing"], done["Record"]["Verdict"]) == (False, ["g"], "idle")
    (event,) = await site.events("series.declared")
    again = (await site.declare(because="I am in a hurry")).json()
    assert (again["Changed"], again["Closing"]) == (False, ["g"])
    (order,) = await site.beat("g", SERIES)
    await site.post(report("2", verdict="declared", Revision=2))
    await site.beat("g", done=[order["Number"]])
    record = await site.get()
    assert (record["Verdict"], record["NumInstances"], record["Revision"]) == ("declared", 2, 2)
    assert await site.events("series.declared") == [event]


async def test_a_gateway_that_had_reported_it_just_before_changes_nothing_of_what_was_said(site: Site) -> None:
    await site.beat("a", SERIES)
    await site.beat("b", SERIES)
    await site.declare()
    (of_a,), (of_b,) = await site.beat("a", SERIES), await site.beat("b", SERIES)
    await site.post(report("1"))
    problem = "it was not open here"
    await site.beat("a", done=[{"Number": of_a["Number"], "Problem": problem}])
    assert (await site.get())["Verdict"] == "idle"  # b may close it yet
    await site.beat("b", done=[{"Number": of_b["Number"], "Problem": problem}])
    assert (await site.get())["Verdict"] == "declared"
    assert len(await site.events("series.declared")) == 1
    assert (await site.changes())[-1].Kinds == ["revised", "declared"]


async def test_a_gateway_that_did_not_have_it_open_says_nothing_about_the_row(site: Site) -> None:
    await site.post(report("1"))
    await site.beat("g")
    await site.declare()
    (order,) = await site.beat("g")
    await site.post(report("2", Revision=2))
    await site.beat("g", done=[{"Number": order["Number"], "Problem": "it was not open here"}])
    assert (await site.get())["Verdict"] == "idle"


@pytest.mark.parametrize("obeys", [False, True], ids=["gone", "running, and does not obey"])
async def test_a_gateway_that_does_not_close_it_is_not_waited_for_for_ever(site: Site, obeys: bool) -> None:
    await site.post(report("1"))
    await site.beat("g", SERIES)
    now = datetime.now(UTC)
    if obeys:
        assert not (await site.declare()).json()["Changed"]
    with time_machine.travel(now + ANSWERS_WITHIN + timedelta(seconds=5), tick=False):
        if obeys:
            await site.beat("g", SERIES)
        done = (await site.declare()).json()
    assert (done["Changed"], done["Closing"], done["Record"]["Verdict"]) == (True, ["g"], "declared")


# --- incomplete -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [report("1"), verified("1"), report("1", verdict=None)], ids=lambda r: r["Verdict"])
async def test_incomplete_withdraws_the_verdict_and_a_repeated_report_does_not_bring_it_back(
    site: Site, before: dict[str, Any]
) -> None:
    await site.post(before)
    figures = await site.figures()
    done = (await site.declare("incomplete")).json()
    record = await site.get()
    assert done["Record"] == record
    assert (done["Changed"], record["Verdict"], record["Withdrawn"]) == (True, None, before["Verdict"] or "part")
    assert (record["FalseCompletions"], await site.figures()) == (0, figures)
    *_, change = await site.changes()
    assert (change.Kinds, change.Verdict) == (["revised", "declared"], None)
    (event,) = await site.events("series.declared")
    assert (event["Details"]["Declared"], event["Details"]["Withdrawn"]) == ("incomplete", record["Withdrawn"])
    again = (await site.declare("incomplete")).json()
    assert (again["Changed"], again["Did"]) == (False, "nothing to do: it is declared incomplete already")
    assert (await site.post(report("1", Revision=2)))["Verdict"] is None
    assert await site.get() == record


async def test_new_images_end_it_and_are_held_against_the_verdict_that_was_withdrawn(site: Site) -> None:
    await site.post(report("1"))
    await site.declare("incomplete")
    record = await site.post(report("2", Revision=2))
    assert (record["Verdict"], record["Withdrawn"], record["FalseCompletions"]) == ("idle", None, 1)
    assert await site.figures() == {"idle": (2, 1)}
    (wrong,) = await site.events("verdict.contradicted")
    assert wrong["Details"]["Verdict"] == "idle"


async def test_verified_ends_it_without_an_image(site: Site) -> None:
    await site.post(report("1"))
    await site.declare("incomplete")
    record = await site.post(verified("1", Revision=2))
    assert (record["Verdict"], record["Withdrawn"]) == ("verified", None)


async def test_the_latest_word_holds(site: Site) -> None:
    await site.post(report("1"))
    for word, verdict, withdrawn in (
        ("complete", "declared", None),
        ("incomplete", None, "declared"),
        ("complete", "declared", None),
    ):
        record = (await site.declare(word)).json()["Record"]
        assert (record["Verdict"], record["Withdrawn"]) == (verdict, withdrawn)
    assert [event["Details"]["Declared"] for event in await site.events("series.declared")] == [
        "complete",
        "incomplete",
        "complete",
    ]


async def test_incomplete_takes_back_the_order_to_close_it(site: Site) -> None:
    await site.post(report("1"))
    await site.beat("g", SERIES)
    await site.declare("complete")
    await site.declare("incomplete")
    assert await site.beat("g", SERIES) == []
    (order,) = (await site.http.get("/gateways/g/orders")).json()["orders"]
    assert order["State"] == "failed"
    assert "incomplete" in order["Problem"]


async def test_a_report_that_obeys_an_order_which_was_taken_back_brings_images_and_no_verdict(site: Site) -> None:
    """The gateway had closed the series before the second word came."""
    await site.post(report("1"))
    await site.beat("g", SERIES)
    await site.declare("complete")
    (order,) = await site.beat("g", SERIES)
    await site.declare("incomplete")
    for _ in range(2):
        await site.post(report("2", verdict="declared", Revision=2))
    await site.beat("g", done=[order["Number"]])
    record = await site.get()
    assert (record["Verdict"], record["Withdrawn"], record["NumInstances"]) == (None, "idle", 2)
    assert record["Basis"].startswith("declared incomplete by")
    assert (await site.changes())[-1].Verdict is None
    assert (await site.post(report("3", Revision=3)))["Verdict"] == "idle"


@pytest.mark.parametrize("of", ["series", "study"])
async def test_a_report_that_was_filed_before_its_order_was_taken_back_brings_images_and_no_verdict(
    site: Site, of: str
) -> None:
    """The gateway has said that it obeyed, and its report waits for the network."""
    declare = site.declare if of == "series" else site.declare_study
    await site.post(report("1"))
    await site.beat("g", SERIES)
    await declare("complete")
    (order,) = await site.beat("g", SERIES)
    await site.beat("g", done=[order["Number"]])
    await declare("incomplete")
    (listed,) = (await site.http.get("/gateways/g/orders")).json()["orders"]
    assert (listed["State"], "taken back" in listed["Problem"]) == ("done", True)
    for _ in range(2):
        record = await site.post(report("2", verdict="declared", Revision=2))
        assert (record["Verdict"], record["NumInstances"]) == (None, 2)
    assert (await site.changes())[-1].Verdict is None
    assert (await site.post(report("3", Revision=3)))["Verdict"] == "idle"


async def test_a_report_that_was_filed_for_a_series_not_stored_yet_loses_its_verdict_likewise(site: Site) -> None:
    await site.beat("g", SERIES)
    await site.declare("complete")
    (order,) = await site.beat("g", SERIES)
    await site.beat("g", done=[order["Number"]])
    done = await site.declare("incomplete")
    assert (done.status_code, "taken back" in done.json()["Did"]) == (200, True)
    record = await site.post(report("1", verdict="declared"))
    assert (record["Verdict"], record["Withdrawn"]) == (None, "declared")


async def test_a_word_that_was_obeyed_and_taken_back_can_be_said_again(site: Site) -> None:
    await site.beat("g", SERIES)
    await site.declare("complete")
    (order,) = await site.beat("g", SERIES)
    await site.post(report("1", verdict="declared"))
    await site.beat("g", done=[order["Number"]])
    await site.declare("incomplete")
    assert (await site.post(report("1", verdict="declared")))["Verdict"] is None  # a repeat brings it not back
    await site.beat("g", SERIES)
    await site.declare("complete")
    await site.beat("g", SERIES)
    assert (await site.post(report("2", verdict="declared", Revision=2)))["Verdict"] == "declared"


async def test_incomplete_takes_back_the_order_to_close_a_series_that_is_not_stored_yet(site: Site) -> None:
    await site.beat("g", SERIES)
    await site.declare("complete")
    done = await site.declare("incomplete")
    assert (done.status_code, done.json()["Record"], done.json()["Changed"]) == (200, None, False)
    assert "taken back" in done.json()["Did"]
    assert await site.beat("g", SERIES) == []
    assert (await site.declare("incomplete")).status_code == 404  # nothing more to take back
    record = await site.post(report("1", verdict="declared"))
    assert (record["Verdict"], record["Withdrawn"]) == (None, "declared")
    assert (await site.changes())[-1].Kinds == ["created", "declared"]


async def test_a_later_word_is_not_undone_by_a_report_for_one_that_was_taken_back(site: Site) -> None:
    await site.post(report("1"))
    await site.beat("g", SERIES)
    await site.declare("complete")
    await site.declare("incomplete")
    await site.beat("g", Stopped=True)
    assert (await site.declare("complete")).json()["Record"]["Verdict"] == "declared"
    assert (await site.post(report("2", verdict="declared", Revision=2)))["Verdict"] == "declared"


# --- what is taken ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"Because": "x"}, "Declared"),
        ({"Declared": "idle", "Because": "x"}, "Declared"),
        ({"Declared": "complete"}, "Because"),
        ({"Declared": "complete", "Because": "  "}, "Because"),
        ({"Declared": "complete", "Because": "x" * (MAX_BECAUSE + 1)}, "Because"),
        ({"Declared": "complete", "Because": "a\nb"}, "Because"),
        ({"Declared": "complete", "Because": "x", "By": "somebody else"}, "By"),
    ],
)
async def test_a_wrong_declaration_is_422_naming_the_field_and_not_its_text(
    site: Site, body: dict[str, Any], field: str
) -> None:
    await site.post(report("1"))
    answer = await site.http.post(f"/series/{SERIES}/declaration", json=body)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", field]
    assert "xxx" not in answer.text
    assert (await site.get())["Verdict"] == "idle"


async def test_declarations_and_orders_need_the_scope_admin(app: FastAPI, site: Site) -> None:
    await site.post(report("1"))
    await site.beat("g")
    _, reads = await app.state.keys.create("reader", ["series:read", "series:write"])
    key, admin = await app.state.keys.create("boss", ["admin"])
    order = {"Kind": "replay", "DeadLetter": 1}
    for secret, declared, ordered in ((reads, 403, 403), (admin, 200, 201)):
        site.http.headers["Authorization"] = f"Bearer {secret}"
        assert (await site.declare()).status_code == declared
        assert (await site.http.post("/gateways/g/orders", json=order)).status_code == ordered
    (event,) = await site.events("series.declared")
    assert event["Details"]["By"] == f"{key.id} boss"
    assert (await site.http.get("/gateways/g/orders")).json()["orders"][0]["By"] == f"{key.id} boss"


async def test_why_a_person_says_so_is_in_no_log_no_change_and_no_order(site: Site) -> None:
    because = "Jones^Mary called"
    with capture_logs() as logs:
        await site.post(report("1"))
        await site.beat("g", SERIES)
        await site.declare(because=because)
        (order,) = await site.beat("g")
        await site.beat("g", done=[order["Number"]])
        await site.declare("incomplete", because)
        await site.http.post("/gateways/g/orders", json={"Kind": "discard", "DeadLetter": 1, "Because": because})
        orders = await site.beat("g")
    told = [*logs, order, *orders, *(await site.changes()), (await site.http.get("/metrics")).text]
    assert {line["event"] for line in logs} >= {"series.declared", "order.given", "order.ended", "request.audited"}
    assert "Jones" not in str(told)


# --- orders -----------------------------------------------------------------------------------------------------


async def order(site: Site, gateway: str = "g", kind: str = "replay", letter: int = 1) -> httpx.Response:
    return await site.http.post(f"/gateways/{gateway}/orders", json={"Kind": kind, "DeadLetter": letter})


async def test_an_order_is_given_with_every_answer_until_it_is_said_to_be_done(site: Site) -> None:
    await site.beat("g")
    made = (await order(site)).json()
    assert (made["State"], made["DoneAt"]) == ("waiting", None)
    for _ in range(3):
        (given,) = await site.beat("g")
        assert (given["Number"], given["Kind"], given["DeadLetter"]) == (made["Number"], "replay", 1)
        assert await site.beat("h") == []
    await site.beat("h", done=[given["Number"]])  # it is not that one's
    assert len(await site.beat("g")) == 1
    assert await site.beat("g", done=[given["Number"]]) == []
    (told,) = (await site.http.get("/gateways/g/orders")).json()["orders"]
    assert (told["State"], told["Problem"]) == ("done", None)
    await site.beat("g", done=[{"Number": given["Number"], "Problem": "late"}])
    assert (await site.http.get("/gateways/g/orders")).json()["orders"] == [told]


async def test_the_same_order_while_it_waits_is_one(site: Site) -> None:
    await site.beat("g")
    first = (await order(site)).json()["Number"]
    assert (await order(site)).json()["Number"] == first
    assert (await order(site, kind="discard")).json()["Number"] != first
    await site.beat("g", done=[first])
    assert (await order(site)).json()["Number"] > first


async def test_as_many_orders_as_an_answer_holds_are_given_the_first_first(site: Site) -> None:
    await site.beat("g")
    numbers = [(await order(site, letter=n)).json()["Number"] for n in range(1, MAX_ORDERS + 3)]
    assert numbers == sorted(numbers)
    assert [one["Number"] for one in await site.beat("g")] == numbers[:MAX_ORDERS]
    assert [one["Number"] for one in await site.beat("g", done=numbers[:MAX_ORDERS])] == numbers[MAX_ORDERS:]


async def test_an_order_that_is_not_taken_expires_and_is_forgotten(site: Site) -> None:
    await site.beat("g")
    await order(site)
    now = datetime.now(UTC)
    with time_machine.travel(now + EXPIRE_AFTER + timedelta(minutes=1), tick=False):
        assert await site.beat("g") == []
        (told,) = (await site.http.get("/gateways/g/orders")).json()["orders"]
        assert told["State"] == "expired"
    with time_machine.travel(now + KEPT_FOR + timedelta(minutes=1), tick=False):
        await site.beat("g")
        made = (await order(site, letter=2)).json()["Number"]
        assert [one["Number"] for one in (await site.http.get("/gateways/g/orders")).json()["orders"]] == [made]
        assert made > told["Number"]


async def test_a_gateway_that_takes_no_orders_bounds_how_many_wait(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_orders, "MAX_WAITING", 2)
    await site.beat("g")
    await site.post(report("1"))
    assert [(await order(site, letter=n)).status_code for n in (1, 2, 3)] == [201, 201, 409]
    done = (await site.declare()).json()
    assert (done["Changed"], done["Closing"]) == (True, [])
    assert "g is not told" in done["Did"]


async def test_how_old_an_order_is_is_said_by_the_servers_clock_alone(site: Site) -> None:
    await site.beat("g")
    await order(site)
    with time_machine.travel(datetime.now(UTC) + timedelta(hours=1), tick=False):
        (given,) = await site.beat("g")
    assert abs(given["AgeS"] - 3600) < 60


@pytest.mark.parametrize(
    ("gateway", "body", "status"),
    [
        ("nobody", {"Kind": "replay", "DeadLetter": 1}, 404),
        ("g", {"Kind": "declare", "DeadLetter": 1}, 422),
        ("g", {"Kind": "replay"}, 422),
        ("g", {"Kind": "replay", "DeadLetter": 0}, 422),
        ("g", {"Kind": "replay", "DeadLetter": 2**63}, 422),
        ("g", {"Kind": "discard", "DeadLetter": 1, "Because": ""}, 422),
    ],
)
async def test_a_wrong_order_is_not_given(site: Site, gateway: str, body: dict[str, Any], status: int) -> None:
    await site.beat("g")
    assert (await site.http.post(f"/gateways/{gateway}/orders", json=body)).status_code == status
    assert await site.beat("g") == []


async def test_a_full_answer_is_within_what_a_gateway_reads(site: Site) -> None:
    from gateway.heartbeat import MAX_ANSWER_BYTES

    await site.beat("g")
    uids = ["9" * 124 + f".{n:03}" for n in range(MAX_ORDERS)]
    for uid in uids:
        await site.post(report("1", SeriesInstanceUID=uid))
        await site.declare(uid=uid, because="\U0001f980" * MAX_BECAUSE)
    state = make_state("g")
    answer = await site.http.put("/gateways/g", json=state)
    assert [one["SeriesInstanceUID"] for one in answer.json()["Orders"]] == uids
    assert len(answer.content) < MAX_ANSWER_BYTES / 2


async def test_words_at_the_same_time_for_a_series_that_is_not_stored_are_one_order(database: Database) -> None:
    state = make_state("g", Arriving=[arriving(SERIES, 1)], OpenSeries=1)
    await database.heard(GatewayState.model_validate(state))
    said = [database.declare(SERIES, "complete", "somebody", "because") for _ in range(8)]
    assert [done.closing for done in await asyncio.gather(*said) if done] == [["g"]] * 8
    assert len(await database.orders.listed("g", 100)) == 1


async def test_declarations_beside_reports_leave_one_of_both_and_no_deadlock(database: Database) -> None:
    """Any order will do; what is declared and what is stored is both there."""
    said = itertools.cycle(["complete", "incomplete"])
    await asyncio.gather(
        *(database.store(make_report(str(n)).model_copy(update={"Revision": n + 1})) for n in range(10)),
        *(database.declare(SERIES, next(said), "somebody", "because") for _ in range(10)),  # type: ignore[arg-type]
    )
    record = await database.get(SERIES)
    assert record is not None
    assert record.NumInstances == 10
    declared = await database.declare(SERIES, "complete", "somebody", "because")
    assert declared is not None
    assert declared.record is not None
    assert declared.record.Verdict == "declared"
