"""QIDO-RS on both databases: through real HTTP with a real client, and through the application."""

import asyncio
import re
import socket
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from dicomweb_client.api import DICOMwebClient
from fastapi import FastAPI
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage
from sqlalchemy import text
from sqlalchemy.dialects import sqlite

from api.dicomweb.request import MAX_LIMIT
from api.dicomweb.routes import MEDIA_TYPE, searches
from common.settings import ServerSettings
from db import Database
from models import SeriesReport
from storage.matching import Like, Match, OneOf, Range
from storage.search import Level, Search, select_page
from tests.rig.qido import is_like, is_named

OHIF = {"limit": "101", "offset": "0", "fuzzymatching": "false", "includefield": "00081030,00080060"}


@pytest.fixture
def app(database: Database) -> FastAPI:
    app = FastAPI()
    app.state.database = database
    app.include_router(searches)
    return app


@pytest.fixture
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server/dicom-web") as client:
        yield client


@asynccontextmanager
async def serving(app: FastAPI) -> AsyncIterator[str]:
    """A real uvicorn; the URL of its DICOMweb service."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, ws="none"))
        task = asyncio.create_task(server.serve([listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/dicom-web"
        finally:
            server.should_exit = True
            await task


async def store(
    database: Database,
    study: str,
    series: str,
    instances: int = 1,
    attributes: Mapping[str, str | list[str]] = {},
    *,
    patient: str | None = "P1",
    name: str | None = "Doe^Peter",
    of_instances: Mapping[str, list[str]] = {},
) -> None:
    """Store a series as a gateway reports it; its instances are 1, 2, … below its UID."""
    report = SeriesReport.model_validate(
        {
            "SeriesInstanceUID": series,
            "StudyInstanceUID": study,
            "PatientID": patient,
            "PatientName": name,
            "NumInstances": instances,
            "SOPInstanceUIDs": [f"{series}.{n}" for n in range(1, instances + 1)],
            "InstanceAttributes": of_instances,
            "Attributes": {k: [value] if isinstance(value, str) else value for k, value in attributes.items()},
        }
    )
    await database.store(report)


def data_sets(response: httpx.Response) -> list[Dataset]:
    """What was found, read by pydicom; empty for 204."""
    if response.status_code == 204:
        assert response.content == b""
        return []
    assert (response.status_code, response.headers["Content-Type"]) == (200, MEDIA_TYPE)
    found = response.json()
    assert found
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says which values are not valid
        return [Dataset.from_json(each) for each in found]


async def studies(http: httpx.AsyncClient, **keys: str) -> list[str]:
    return [str(ds.StudyInstanceUID) for ds in data_sets(await http.get("/studies", params=keys))]


async def series(http: httpx.AsyncClient, path: str = "/series", **keys: str) -> list[str]:
    return [str(ds.SeriesInstanceUID) for ds in data_sets(await http.get(path, params=keys))]


async def instances(http: httpx.AsyncClient, path: str = "/instances", **keys: str) -> list[str]:
    return [str(ds.SOPInstanceUID) for ds in data_sets(await http.get(path, params=keys))]


async def keywords(http: httpx.AsyncClient, path: str, **keys: str) -> set[str]:
    """Of the attributes of the first that is found."""
    return {keyword_for_tag(int(tag, 16)) for tag in (await http.get(path, params=keys)).json()[0]}


# --- a real client ----------------------------------------------------------------------------------------------


async def test_real_client_goes_from_a_patient_to_the_instances(app: FastAPI, database: Database) -> None:
    study = {"StudyDate": "20260131", "StudyTime": "0930", "AccessionNumber": "A1", "StudyDescription": "Brain"}
    numbers = {"SOPClassUID": [str(CTImageStorage)], "InstanceNumber": ["2", "1"], "Rows": ["512"]}
    await store(database, "1.1", "1.1.2", 2, study | {"Modality": "CT"}, of_instances=numbers)
    await store(database, "1.1", "1.1.1", 3, study | {"Modality": "SR"})
    await store(database, "1.2", "1.2.1", 1, {"Modality": "MR"}, patient="P2", name="Müller^Änne")
    async with serving(app) as url:
        client = DICOMwebClient(url)

        async def ask(method: Callable[..., list[dict[str, dict[str, Any]]]], *args: Any, **options: Any) -> Any:
            return [Dataset.from_json(found) for found in await asyncio.to_thread(method, *args, **options)]

        (found,) = await ask(client.search_for_studies, search_filters={"PatientID": "P1"}, fields=["StudyDescription"])
        assert (found.StudyInstanceUID, found.StudyDescription, found.AccessionNumber) == ("1.1", "Brain", "A1")
        assert (found.NumberOfStudyRelatedSeries, found.NumberOfStudyRelatedInstances) == (2, 5)
        assert list(found.ModalitiesInStudy) == ["CT", "SR"]
        both = await ask(client.search_for_series, found.StudyInstanceUID)
        assert [(ds.SeriesInstanceUID, ds.Modality, ds.NumberOfSeriesRelatedInstances) for ds in both] == [
            ("1.1.1", "SR", 3),
            ("1.1.2", "CT", 2),
        ]
        images = await ask(client.search_for_instances, "1.1", "1.1.2")
        assert [(ds.SOPInstanceUID, ds.InstanceNumber, ds.Rows) for ds in images] == [
            ("1.1.2.1", 2, 512),
            ("1.1.2.2", 1, 512),
        ]
        assert {ds.SOPClassUID for ds in images} == {CTImageStorage}
        (name,) = await ask(client.search_for_studies, search_filters={"PatientName": "MÜLLER*"}, fuzzymatching=True)
        assert name.PatientName.family_name == "Müller"
        assert len(await ask(client.search_for_instances, limit=2, get_remaining=True)) == 6
        assert len(await ask(client.search_for_studies, limit=1, offset=1)) == 1
        assert await ask(client.search_for_studies, search_filters={"PatientID": "nobody"}) == []


async def test_ohifs_study_list_gets_what_it_shows(http: httpx.AsyncClient, database: Database) -> None:
    await store(database, "1.1", "1.1.1", 4, {"Modality": "CT", "StudyDescription": "Chest", "StudyDate": "20260131"})
    (ds,) = data_sets(await http.get("/studies", params=OHIF))
    shown = ("PatientName", "PatientID", "StudyDate", "StudyDescription", "ModalitiesInStudy", "AccessionNumber")
    assert [str(ds[keyword].value) for keyword in shown] == ["Doe^Peter", "P1", "20260131", "Chest", "CT", ""]
    assert ds.NumberOfStudyRelatedInstances == 4
    assert "Modality" not in ds  # of series


# --- what is returned -------------------------------------------------------------------------------------------

STUDY = {
    *("SpecificCharacterSet", "StudyDate", "StudyTime", "AccessionNumber", "InstanceAvailability"),
    *("ModalitiesInStudy", "ReferringPhysicianName", "PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyInstanceUID", "StudyID", "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances"),
}
SERIES = {
    *("SpecificCharacterSet", "InstanceAvailability", "Modality", "SeriesInstanceUID", "SeriesNumber"),
    "NumberOfSeriesRelatedInstances",
}
INSTANCE = {"SpecificCharacterSet", "InstanceAvailability", "SOPClassUID", "SOPInstanceUID", "InstanceNumber"}


async def test_required_attributes_are_always_returned(http: httpx.AsyncClient, database: Database) -> None:
    await store(database, "1.1", "1.1.1")
    for path, expected in (
        ("/studies", STUDY),
        ("/series", STUDY | SERIES),
        ("/studies/1.1/series", SERIES | {"StudyInstanceUID"}),
        ("/instances", STUDY | SERIES | INSTANCE),
        ("/studies/1.1/instances", SERIES | INSTANCE | {"StudyInstanceUID"}),
        ("/studies/1.1/series/1.1.1/instances", INSTANCE | {"StudyInstanceUID", "SeriesInstanceUID"}),
    ):
        assert await keywords(http, path) == expected, path


async def test_known_attributes_are_returned_beside_the_required(http: httpx.AsyncClient, database: Database) -> None:
    numbers = {k: ["16"] for k in ("Rows", "Columns", "BitsAllocated", "NumberOfFrames")}
    known = {
        "SeriesDescription": "T2",
        "PerformedProcedureStepStartDate": "20260131",
        "PerformedProcedureStepStartTime": "0930",
        "TimezoneOffsetFromUTC": "+0100",
    }
    await store(database, "1.1", "1.1.1", 1, known | {"ScheduledProcedureStepID": "S1"}, of_instances=numbers)
    expected = STUDY | SERIES | INSTANCE | {*numbers, *known, "RequestAttributesSequence"}
    assert await keywords(http, "/instances") == expected


async def test_included_fields_of_this_level_and_above_are_returned_too(
    http: httpx.AsyncClient, database: Database
) -> None:
    await store(database, "1.1", "1.1.1")
    more: set[str]
    for path, include, more in (
        ("/studies", "StudyDescription", {"StudyDescription"}),
        ("/studies", "all", {"StudyDescription"}),
        ("/studies", "SeriesNumber,SOPInstanceUID,BodyPartExamined,00091001", set()),
        ("/studies/1.1/series", "all", set()),
        ("/studies/1.1/series", "00100010,ModalitiesInStudy", {"PatientName", "ModalitiesInStudy"}),
        ("/studies/1.1/series/1.1.1/instances", "00080060", {"Modality"}),
        ("/series", "all", {"StudyDescription"}),
    ):
        plain = await keywords(http, path)
        assert await keywords(http, path, includefield=include) - plain == more, (path, include)


async def test_matched_attributes_are_returned(http: httpx.AsyncClient, database: Database) -> None:
    await store(database, "1.1", "1.1.1", 1, {"StudyDescription": "Brain"})
    assert "StudyDescription" in await keywords(http, "/studies", StudyDescription="Br*")
    assert "StudyDescription" in await keywords(http, "/studies", StudyDescription="")
    assert "PatientID" in await keywords(http, "/studies/1.1/series", PatientID="P1")


async def test_images_are_online_where_the_setting_says_where(
    app: FastAPI, http: httpx.AsyncClient, database: Database
) -> None:
    await store(database, "1.1", "1.1.1")
    assert data_sets(await http.get("/studies"))[0].InstanceAvailability == "UNAVAILABLE"
    app.state.retrieve_url = "https://pacs.example/rs"
    (ds,) = data_sets(await http.get("/studies/1.1/series/1.1.1/instances"))
    assert ds.InstanceAvailability == "ONLINE"
    assert ds.RetrieveURL == "https://pacs.example/rs/studies/1.1/series/1.1.1/instances/1.1.1.1"


async def test_any_stored_text_is_answered(http: httpx.AsyncClient, database: Database) -> None:
    texts = ["not a date", "\\", "=", "===", "\x1b$B\x7f", "\u2028\U0001f600", "x" * 2000, "-", "4.5", "9" * 30, "'\""]
    attributes = ("StudyDate", "StudyTime", "Modality", "SeriesNumber", "ReferringPhysicianName", "StudyID")
    for n, value in enumerate(texts):
        every = dict.fromkeys((*attributes, "ScheduledProcedureStepID", "RetrieveURL", "NoSuchKeyword"), value)
        numbers = {"InstanceNumber": [value[:64]], "SOPClassUID": [value[:64]]}
        await store(
            database, f"1.{n}", f"1.{n}.1", 1, every, patient=value[:200], name=value[:1000], of_instances=numbers
        )
    found = data_sets(await http.get("/instances"))
    assert len(found) == len(texts)
    assert [ds.SeriesNumber for ds in found] == [None] * len(texts)
    assert all("RetrieveURL" not in ds for ds in found)
    assert len(data_sets(await http.get("/studies"))) == len(texts)


# --- what matches -----------------------------------------------------------------------------------------------

TEXTS = [
    *("Doe^Peter", "doe^peter", "DOE^JANE", "Doe", "Doerr^Max", "D_e", "D%e", "D\\e", "[D]oe", "]", "[", "100%", "~"),
    *("Müller^Änne", "MÜLLER^änne", "Yamada^Tarou=山田^太郎=やまだ^たろう", "\U0001f600z", "Straße", "a.b", "x" * 60),
    *("Long^" + "y" * 55 + "^tail", "O'Hara", "zz\uffff", "Doe^Peter^^Dr", "Doe-Smith", "Doe2"),
]
PATTERNS = [
    *("Doe^Peter", "doe^peter", "Doe", "Doe*", "doe*", "D?e", "D?e*", "*e*", "*oe", "?oe", "??", "Doe^*", "*^*", "*r"),
    *(
        "[D]oe",
        "[D]*",
        "[[]D]oe",
        "[a-z]*",
        "]",
        "[*",
        "%",
        "*%*",
        "%%",
        "100%",
        "D_e",
        "D%e",
        "D\\e",
        "D\\?",
        "_*",
        "\\*",
    ),
    *("*ü*", "MÜLLER*", "müller^änne", "STRASSE", "straße", "\U0001f600*", "?z", "~", "~*", "a.b", "a?b", "nobody"),
    *(
        "Yamada^Tarou",
        "yamada^tarou=山田^太郎",
        "Yamada^Tarou=*",
        "*山田*",
        "Yamada^T?rou",
        "Yamada",
        "O'Hara",
        "'*",
        "x*",
    ),
    *(
        "x" * 60,
        "Long^" + "y" * 55 + "^tail",
        "Long^" + "y" * 55 + "*",
        "long^y*",
        "*tail",
        "zz*",
        "zz\uffff*",
        "Doe^Peter*",
    ),
]


async def test_text_matches_as_dicom_says(http: httpx.AsyncClient, database: Database) -> None:
    for n, value in enumerate(TEXTS):
        texts = {"StudyDescription": value, "AccessionNumber": value, "ReferringPhysicianName": value}
        await store(database, f"1.{n}", f"1.{n}.1", 1, texts, patient=value, name=value)
    for pattern in PATTERNS:
        expected = {
            "StudyDescription": [is_like(pattern, value) for value in TEXTS],
            "PatientID": [is_like(pattern, value) for value in TEXTS],
            "AccessionNumber": [is_like(pattern, value) for value in TEXTS],
            "PatientName": [is_named(pattern, value) for value in TEXTS],
            "ReferringPhysicianName": [is_named(pattern, value) for value in TEXTS],
        }
        for keyword, matches in expected.items():
            found = {f"1.{n}" for n, is_found in enumerate(matches) if is_found}
            assert set(await studies(http, **{keyword: pattern})) == found, (keyword, pattern)


RANGES = (
    ("StudyDate", "20260102", "2"),
    ("StudyDate", "20260102-", "234"),
    ("StudyDate", "-20260102", "12"),
    ("StudyDate", "20260102-20260103", "23"),
    ("StudyDate", "20250101-20251231", ""),
    ("PerformedProcedureStepStartDate", "20260102-20260103", "23"),
    ("PerformedProcedureStepStartDate", "20260104", "4"),
    ("PatientBirthDate", "-20260103", "123"),
    ("StudyTime", "0930", "12"),
    ("StudyTime", "093000", "12"),
    ("StudyTime", "09", "12"),
    ("StudyTime", "093000-", "1234"),
    ("StudyTime", "-093000", "12"),
    ("StudyTime", "093000.1-", "234"),
    ("StudyTime", "1000-1100", "3"),
    ("StudyTime", "10-11", "34"),
    ("PerformedProcedureStepStartTime", "09-10", "123"),
)


async def test_days_and_times_match_in_ranges(http: httpx.AsyncClient, database: Database) -> None:
    for n, time in enumerate(("0930", "093000.5", "10", "113000"), 1):
        days = dict.fromkeys(("StudyDate", "PerformedProcedureStepStartDate", "PatientBirthDate"), f"2026010{n}")
        times = dict.fromkeys(("StudyTime", "PerformedProcedureStepStartTime"), time)
        await store(database, f"1.{n}", f"1.{n}.1", 1, days | times)
    await store(database, "1.5", "1.5.1")
    for keyword, value, expected in RANGES:
        assert await series(http, **{keyword: value}) == [f"1.{n}.1" for n in expected], (keyword, value)


async def test_days_and_times_of_acr_nemas_form_match_like_others(http: httpx.AsyncClient, database: Database) -> None:
    days = ("StudyDate", "PerformedProcedureStepStartDate", "PatientBirthDate")
    times = ("StudyTime", "PerformedProcedureStepStartTime")
    await store(database, "1.1", "1.1.1", 1, dict.fromkeys(days, "1999.12.31") | dict.fromkeys(times, "09:30:00.5"))
    await store(database, "1.2", "1.2.1", 1, dict.fromkeys(days, "19991231") | dict.fromkeys(times, "093000"))
    await store(database, "1.3", "1.3.1", 1, dict.fromkeys(days, "2000.01.01") | dict.fromkeys(times, "10:30"))
    for keyword in days:
        for asked in ("19991231", "1999.12.31", "19990101-19991231", "1999.12.01-1999.12.31"):
            assert await series(http, **{keyword: asked}) == ["1.1.1", "1.2.1"], (keyword, asked)
    for keyword in times:
        for asked in ("0930", "09:30", "09-0930", "09:30:00-09:59"):
            assert await series(http, **{keyword: asked}) == ["1.1.1", "1.2.1"], (keyword, asked)


DAYS_AND_TIMES = (
    ("20260101-20260103", "18-10", ["1.2", "2.1", "2.2", "2.3", "3.1"]),
    ("20260101-20260103", "18-", ["1.2", "2.1", "2.2", "2.3", "3.1", "3.2"]),
    ("20260101-", "18-", ["1.2", "2.1", "2.2", "2.3", "3.1", "3.2"]),
    ("20260101-20260103", "-10", ["1.1", "1.2", "1.3", "2.1", "2.2", "2.3", "3.1"]),
    ("20260101-20260101", "08-10", ["1.1"]),
    ("20260101-20260103", "20", ["1.2", "2.2", "3.2"]),  # no range: the same on each day
    ("20260101", "18-", ["1.2"]),
)


async def test_days_and_times_are_one_range(http: httpx.AsyncClient, database: Database) -> None:
    for day in (1, 2, 3):
        await store(database, f"{day}.1", f"{day}.1.1", 1, {"StudyDate": f"2026010{day}", "StudyTime": "0930"})
        await store(database, f"{day}.2", f"{day}.2.1", 1, {"StudyDate": f"2026010{day}", "StudyTime": "20"})
    for day in (1, 2):  # without a time: not known to be late enough on the first day
        await store(database, f"{day}.3", f"{day}.3.1", 1, {"StudyDate": f"2026010{day}"})
    for days, times, expected in DAYS_AND_TIMES:
        assert sorted(await studies(http, StudyDate=days, StudyTime=times)) == expected, (days, times)


async def test_any_series_modality_finds_the_whole_study(http: httpx.AsyncClient, database: Database) -> None:
    await store(database, "1.1", "1.1.1", 2, {"Modality": "CT"})
    await store(database, "1.1", "1.1.2", 3, {"Modality": "SR"})
    await store(database, "1.2", "1.2.1", 1, {"Modality": "MR"})
    await store(database, "1.3", "1.3.1")
    for modality in ("SR", "CT", "S?", "CT,SR", "CT\\SR"):
        (ds,) = data_sets(await http.get("/studies", params={"ModalitiesInStudy": modality}))
        assert (ds.StudyInstanceUID, list(ds.ModalitiesInStudy)) == ("1.1", ["CT", "SR"])
        assert (ds.NumberOfStudyRelatedSeries, ds.NumberOfStudyRelatedInstances) == (2, 5)
    assert await studies(http, ModalitiesInStudy="MR,SR") == ["1.1", "1.2"]
    assert await studies(http, Modality="CT", ModalitiesInStudy="SR") == ["1.1"]
    assert await studies(http, Modality="CT", ModalitiesInStudy="MR") == []
    assert await series(http, ModalitiesInStudy="SR") == ["1.1.1", "1.1.2"]
    assert await series(http, ModalitiesInStudy="SR", Modality="CT") == ["1.1.1"]
    assert await instances(http, ModalitiesInStudy="MR") == ["1.2.1.1"]
    assert await series(http, ModalitiesInStudy="ct") == []


async def test_study_is_found_once_by_any_of_its_series(http: httpx.AsyncClient, database: Database) -> None:
    await store(database, "1.1", "1.1.1", 1, {"StudyDate": "20260101"})
    await store(database, "1.1", "1.1.2", 1, {"StudyDate": "20260102", "AccessionNumber": "A1"})
    await store(database, "1.1", "1.1.3", 1, {"StudyDate": "20260102", "AccessionNumber": "A1"})
    assert await studies(http) == ["1.1"]
    (ds,) = data_sets(await http.get("/studies", params={"AccessionNumber": "A1"}))
    assert (ds.StudyInstanceUID, ds.AccessionNumber, ds.NumberOfStudyRelatedSeries) == ("1.1", "A1", 3)
    assert await studies(http, StudyDate="20260101-20260102") == ["1.1"]
    assert await studies(http, AccessionNumber="A*", StudyDate="20260101") == []


async def test_pages_have_everything_once_in_one_order(http: httpx.AsyncClient, database: Database) -> None:
    for n in range(7):
        for k in (1, 2):
            attributes = {"StudyDate": f"2026010{9 - n % 3}", "Modality": "CT"}
            await store(database, f"1.{n}", f"1.{n}.{k}", 1, attributes, name=f"Doe^{n % 2}")
    keys: dict[str, str]
    for keys in ({}, {"StudyDate": "20260101-"}, {"PatientName": "d*"}, {"ModalitiesInStudy": "CT"}):
        everything = await studies(http, **keys)
        assert sorted(everything) == [f"1.{n}" for n in range(7)]
        pages = [await studies(http, limit="2", offset=str(offset), **keys) for offset in range(0, 8, 2)]
        assert [uid for page in pages for uid in page] == everything
        every_series = await series(http, **keys)
        assert len(every_series) == 14
        assert await series(http, limit="3", offset="5", **keys) == every_series[5:8]
        assert await instances(http, limit="3", offset="5", **keys) == [f"{uid}.1" for uid in every_series[5:8]]


async def test_instances_come_in_order_of_their_series_and_uid(http: httpx.AsyncClient, database: Database) -> None:
    await store(database, "1.1", "1.1.2", 2)
    await store(database, "1.1", "1.1.1", 11)
    found = await instances(http, "/studies/1.1/instances")
    assert found == [*sorted(f"1.1.1.{n}" for n in range(1, 12)), "1.1.2.1", "1.1.2.2"]
    assert await instances(http, "/studies/1.1/series/1.1.2/instances") == ["1.1.2.1", "1.1.2.2"]
    assert await instances(http, SOPInstanceUID="1.1.2.2,1.1.1.9,1.9") == ["1.1.1.9", "1.1.2.2"]


async def test_paths_hold_what_is_below_them_only(http: httpx.AsyncClient, database: Database) -> None:
    await store(database, "1.1", "1.1.1", 1, {"Modality": "CT"})
    await store(database, "1.2", "1.2.1", 1, {"Modality": "CT"})
    assert await series(http, "/studies/1.2/series", Modality="CT") == ["1.2.1"]
    assert await series(http, "/studies/1.2/series", StudyInstanceUID="1.1") == []
    assert await series(http, "/studies/1.9/series") == []
    assert await instances(http, "/studies/1.1/series/1.2.1/instances") == []


async def test_request_is_matched_within_one_item(http: httpx.AsyncClient, database: Database) -> None:
    items: dict[str, str | list[str]] = {
        "ScheduledProcedureStepID": ["S1", "S2", ""],
        "RequestedProcedureID": ["R1", "R2", "R3"],
    }
    await store(database, "1.1", "1.1.1", 1, items)
    await store(database, "1.2", "1.2.1")
    step, procedure = "RequestAttributesSequence.ScheduledProcedureStepID", "00400275.00401001"
    for keys in ({step: "S1"}, {step: "S2", procedure: "R2"}, {procedure: "R3"}, {step: "S?", procedure: "*1"}):
        assert await series(http, **keys) == ["1.1.1"], keys
    for keys in ({step: "S3"}, {step: "S1", procedure: "R2"}):
        assert await series(http, **keys) == [], keys


async def test_numbers_match_however_they_are_written(http: httpx.AsyncClient, database: Database) -> None:
    numbers = {"InstanceNumber": ["007", "-3"], "Rows": ["512"]}
    await store(database, "1.1", "1.1.1", 2, {"SeriesNumber": "04"}, of_instances=numbers)
    await store(database, "1.2", "1.2.1", 1, {"SeriesNumber": "40"})
    await store(database, "1.3", "1.3.1", 1, {"SeriesNumber": "none"})
    await store(database, "1.4", "1.4.1", 1, {"SeriesNumber": "-01"})
    for number in ("4", "04", "+4"):
        assert await series(http, SeriesNumber=number) == ["1.1.1"]
    for number in ("-1", "-01", "-001"):
        assert await series(http, SeriesNumber=number) == ["1.4.1"]
    assert await series(http, SeriesNumber="1") == []
    assert await instances(http, InstanceNumber="7", Rows="0512") == ["1.1.1.1"]
    assert await instances(http, InstanceNumber="-3") == ["1.1.1.2"]
    assert await instances(http, InstanceNumber="999999999999") == []


# --- HTTP -------------------------------------------------------------------------------------------------------


async def test_more_than_the_limit_is_told(http: httpx.AsyncClient, database: Database) -> None:
    await store(database, "1.1", "1.1.1", MAX_LIMIT)
    warning = "299 http://server/dicom-web: There are additional results that can be requested"
    response = await http.get("/instances")
    assert (len(response.json()), "Warning" in response.headers) == (MAX_LIMIT, False)
    await store(database, "1.1", "1.1.2")
    for limit in ({}, {"limit": "5000"}):
        response = await http.get("/instances", params=limit)
        assert (len(response.json()), response.headers["Warning"]) == (MAX_LIMIT, warning)
    assert (await http.get("/instances", params={"limit": "2"})).headers["Warning"] == warning
    rest = await http.get("/instances", params={"offset": str(MAX_LIMIT)})
    assert (len(rest.json()), "Warning" in rest.headers) == (1, False)
    none = await http.get("/instances", params={"limit": "0"})
    assert (none.status_code, none.headers["Warning"]) == (204, warning)
    assert await instances(http, offset="999999999") == []


async def test_each_warning_has_a_header_of_its_own(http: httpx.AsyncClient, database: Database) -> None:
    await store(database, "1.1", "1.1.1")
    response = await http.get("/studies", params={"fuzzymatching": "true", "BodyPartExamined": "CHEST"})
    assert response.headers.get_list("Warning") == [
        "299 http://server/dicom-web: The fuzzymatching parameter is not supported. "
        "Only literal matching has been performed.",
        "299 http://server/dicom-web: The following attributes cannot be matched here and were ignored: "
        "BodyPartExamined",
    ]
    assert len(data_sets(response)) == 1


ACCEPTS = (
    (MEDIA_TYPE, "", MEDIA_TYPE),
    ("application/json", "", "application/json"),
    ("*/*", "", MEDIA_TYPE),
    ("text/html, Application/DICOM+JSON ; q=0.9", "", MEDIA_TYPE),
    ("", "", MEDIA_TYPE),
    ("*/*;q=0.1, text/html", "", MEDIA_TYPE),
    ("application/dicom+json;q=0, application/json;q=0.0", "", None),
    ("application/*;q=0, application/json", "", "application/json"),
    ("application/dicom+json;q=0, */*", "", "application/json"),
    ("application/json, application/dicom+json;q=0.5", "", MEDIA_TYPE),
    ("*/*, application/*;q=0", "", None),
    ('multipart/related; type="application/dicom+xml"', "", None),
    ('multipart/related; type="application/dicom+xml, */*"', "", None),
    ("text/html", "?accept=application/dicom+json", MEDIA_TYPE),
    ("text/html", "?accept=application/dicom%2Bjson", MEDIA_TYPE),
    ("text/html", "", None),
    ("*/*", "?accept=application/dicom%2Bxml", None),
    ("*/*", "?accept=application/dicom%2Bjson&charset=UTF-8", MEDIA_TYPE),
)


async def test_answer_is_json_or_not_acceptable(http: httpx.AsyncClient, database: Database) -> None:
    await store(database, "1.1", "1.1.1")
    for accept, query, media_type in ACCEPTS:
        response = await http.get(f"/studies{query}", headers={"Accept": accept})
        assert response.status_code == (200 if media_type else 406), (accept, query)
        if media_type is None:
            assert MEDIA_TYPE in response.json()["detail"]
        else:
            assert response.headers["Content-Type"] == media_type, accept


async def test_several_accept_lines_are_one_list(http: httpx.AsyncClient, database: Database) -> None:
    await store(database, "1.1", "1.1.1")
    request = http.build_request("GET", "/studies", headers=[("Accept", "text/html"), ("Accept", MEDIA_TYPE)])
    assert (await http.send(request)).status_code == 200


async def test_what_is_not_known_is_ignored_and_told(http: httpx.AsyncClient, database: Database) -> None:
    await store(database, "1.1", "1.1.1")
    unknown = {"_": "1", "orderby": "-StudyDate", "access_token": "Secret", "Secret^Name": "1", "includedefaults": "no"}
    response = await http.get("/studies", params=unknown | {"00100099": "x", "includefield": "Secret^Name"})
    assert len(data_sets(response)) == 1
    assert response.headers["Warning"] == (
        "299 http://server/dicom-web: The following parameters are not known and were ignored: _, orderby, "
        "access_token, a parameter, includedefaults, 00100099, includefield"
    )
    many = await http.get("/studies", params={f"{'x' * 60}{n}": "" for n in range(64)})
    assert len(many.headers["Warning"]) < 1000
    assert (await http.get("/studies", params={f"x{n}": "" for n in range(65)})).status_code == 400


async def test_a_key_that_is_repeated_finds_all_that_one_of_them_finds(
    http: httpx.AsyncClient, database: Database
) -> None:
    for n, patient in enumerate(("A", "B", "C", "D")):
        of_study = {"StudyDate": f"2026010{n + 1}", "Modality": "CT" if n else "MR"}
        await store(database, f"1.{n}", f"1.{n}.1", 1, of_study, patient=patient, name=f"{patient}^X")
    for query, expected in (
        ("PatientID=A&00100020=C", "02"),
        ("PatientID=A&PatientID=B*", "01"),
        ("PatientName=a^x&PatientName=D*", "03"),
        ("StudyDate=20260101&StudyDate=20260103-", "023"),
        ("ModalitiesInStudy=MR&ModalitiesInStudy=C?", "0123"),
        ("StudyInstanceUID=1.1&StudyInstanceUID=1.3,1.9", "13"),
        ("PatientID=A&PatientID=", "0123"),
    ):
        found = data_sets(await http.get(f"/studies?{query}"))
        assert sorted(str(ds.StudyInstanceUID) for ds in found) == [f"1.{n}" for n in expected], query
    again = "&".join(f"PatientID={n}*" for n in range(17))
    assert (await http.get(f"/studies?{again}")).status_code == 400


async def test_wrong_request_is_400_without_the_value(http: httpx.AsyncClient) -> None:
    for path in ("/studies?StudyDate=Secret", "/studies/Secret%5C1/series", "/series?limit=Secret"):
        response = await http.get(path)
        assert response.status_code == 400
        assert re.match(r"\w+( in the path)?: is not a", response.json()["detail"])
        assert "Secret" not in response.text


HOSTILE = (
    "PatientName=%00",
    "PatientName=%ED%A0%80*",  # half a surrogate pair
    "PatientName=%F4%8F%BF%BF*",  # the last character there is
    "PatientName=%F4%8F%BF%BF%F4%8F%BF%BF",
    "PatientID=%ED%9F%BF*",  # the last one before the surrogates
    "PatientID='%3B+DROP+TABLE+series%3B--",
    "StudyDescription=" + "*a" * 500,
    "PatientName=" + "*a" * 500 + "b",
    "PatientName=" + "%EF%B7%BA" * 300,
    "StudyID=" + "%25" * 1024,
    "StudyInstanceUID=" + ",".join(f"1.{n}" for n in range(5000)),
    "InstanceNumber=-999999999999&Rows=999999999999&SeriesNumber=000000000000",
    "StudyDate=00010101-99991231&StudyTime=00-235960.999999",
    "offset=999999999&limit=999999999",
    "&&&=&PatientID",
    "%FF%FE=%FF",
    "includefield=,,&includefield=",
)


async def test_no_request_breaks_the_server(http: httpx.AsyncClient, database: Database) -> None:
    await store(database, "1.1", "1.1.1", 1, {"StudyDescription": "a" * 1000}, name="a" * 60, patient="a" * 60)
    for query in HOSTILE:
        for path in ("/studies", "/instances"):
            async with asyncio.timeout(60):
                response = await http.get(f"{path}?{query}")
            assert response.status_code in (200, 204, 400), query


async def test_any_host_header_is_answered(http: httpx.AsyncClient, database: Database) -> None:
    await store(database, "1.1", "1.1.1", 2)
    for host in (b"", b"[", b"a b", b"\xff", b"x:y:z"):
        response = await http.get("/instances?limit=1", headers={b"Host": host})
        assert response.status_code == 200, host


def test_api_describes_its_six_resources_and_answers(app: FastAPI) -> None:
    paths = app.openapi()["paths"]
    assert len(paths) == 6
    names = set()
    for path, methods in paths.items():
        operation = methods["get"]
        names.add(operation["operationId"])
        assert {"200", "204", "400", "406"} <= operation["responses"].keys()
        in_path = {each["name"] for each in operation["parameters"] if each["in"] == "path"}
        assert in_path == set(re.findall(r"\{(\w+)\}", path))
    assert len(names) == 6


# --- the way to the rows ----------------------------------------------------------------------------------------


def typical() -> Iterator[tuple[str, Level, dict[str, Match], list[str]]]:
    """A search, and the indexes by which its keys are found."""
    earlier = "series_by_study"
    yield "list", Level.STUDY, {}, ["series_by_study", earlier]
    yield "patient", Level.STUDY, {"PatientID": OneOf(("P1",))}, ["studies_by_patient", earlier]
    further = ["studies_by_further_group", earlier]
    yield "name", Level.STUDY, {"PatientName": OneOf(("Doe^P",))}, ["studies_by_name", earlier, *further]
    yield "name prefix", Level.STUDY, {"PatientName": Like("Doe*")}, ["studies_by_name", earlier, *further]
    yield "part of a name", Level.STUDY, {"PatientName": Like("*Doe*")}, ["studies_by_name", earlier]
    yield "dates", Level.STUDY, {"StudyDate": Range("20260101", None)}, ["studies_by_date", earlier]
    yield "accession", Level.STUDY, {"AccessionNumber": OneOf(("A",))}, ["studies_by_accession", earlier]
    yield "modality", Level.STUDY, {"ModalitiesInStudy": OneOf(("CT",))}, ["studies_by_modality", earlier]
    yield "modalities", Level.STUDY, {"ModalitiesInStudy": OneOf(("CT", "MR"))}, ["series_by_study", earlier]
    yield "studies", Level.STUDY, {"StudyInstanceUID": OneOf(("1", "2"))}, ["series_by_study", earlier]
    yield "series of a study", Level.SERIES, {"StudyInstanceUID": OneOf(("1",))}, ["series_by_study"]
    yield "series of a modality", Level.SERIES, {"Modality": OneOf(("CT",))}, ["studies_by_modality"]
    yield "instances", Level.INSTANCE, {}, ["series_by_study", "PRIMARY KEY"]
    of_study: dict[str, Match] = {"StudyInstanceUID": OneOf(("1",))}
    yield "instances of a study", Level.INSTANCE, of_study, ["series_by_study", "PRIMARY KEY"]
    of_series: dict[str, Match] = {"SeriesInstanceUID": OneOf(("2",))}
    by_uid = "sqlite_autoindex_series_1"
    yield "instances of a series", Level.INSTANCE, of_study | of_series, [by_uid, "PRIMARY KEY"]
    yield "instance", Level.INSTANCE, {"SOPInstanceUID": OneOf(("1",))}, ["instances_by_uid", by_uid]


FEW = {"name", "name prefix", "instance"}  # sorted whole: they are few, or those of two pages that are put together


@pytest.mark.parametrize(("name", "level", "keys", "indexes"), [pytest.param(*each, id=each[0]) for each in typical()])
async def test_typical_search_streams_along_an_index(
    tmp_path: Path, name: str, level: Level, keys: dict[str, Match], indexes: list[str]
) -> None:
    named = sqlite.dialect(paramstyle="named")
    query = select_page(Search(level, keys, 100)).compile(dialect=named, compile_kwargs={"render_postcompile": True})
    explained = text(f"EXPLAIN QUERY PLAN {query}").bindparams(**query.params)
    async with Database.open(ServerSettings(database_url=f"sqlite+aiosqlite:///{tmp_path / 's.db'}")) as database:
        plan = await database.engine.read(explained)
    within = {row["id"] for row in plan if row["detail"].startswith(("MATERIALIZE", "CO-ROUTINE"))}
    steps = []
    for row in plan:
        if row["parent"] in within:
            within.add(row["id"])
            steps.append(row["detail"])
    found = [by[1] for step in steps if (by := re.search(r"USING (?!TEMP)(?:COVERING )?(?:INDEX )?(\w+( KEY)?)", step))]
    assert found == indexes
    assert ("USE TEMP B-TREE FOR ORDER BY" in steps) == (name in FEW)
