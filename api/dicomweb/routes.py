"""QIDO-RS over HTTP (PS3.18 §10.6): studies, series and instances, searched for."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.request import parse_http_list

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from api.dicomweb.answer import OPTIONAL, REQUIRED, Totals, add_up, data_set
from api.dicomweb.request import MAX_LIMIT, MAX_VALUE, UNSUPPORTED, BadQuery, Query, parse
from api.routing import READS, Responses, answers, database_of
from models import A_UID
from storage.search import Level

ROOT = "/dicom-web"
MEDIA_TYPE = "application/dicom+json"
MEDIA_TYPES = (MEDIA_TYPE, "application/json")
NOT_AT_ALL = re.compile(r"q\s*=\s*0(\.0*)?")
TOTALS_OF_STUDY = {"ModalitiesInStudy", "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances"}
NOT_ACCEPTABLE = f"JSON is spoken, and no XML: accept {MEDIA_TYPE}, or application/json"
MORE = "There are additional results that can be requested"


async def studies(request: Request) -> Response:
    """Search for studies by the attributes of patient and study, each as `PatientID=…` or `00100020=…`.

    `*` and `?` are wildcards; dates and times may be ranges, as `StudyDate=20260101-20260131` or `20260101-`; UIDs and
    modalities may be lists with commas. `includefield` names what else to return, by keyword or tag; or it is `all`.
    """
    return await _answer(Level.STUDY, request)


async def series(request: Request) -> Response:
    """Search for series, by their own attributes and those of their study."""
    return await _answer(Level.SERIES, request)


async def instances(request: Request) -> Response:
    """Search for instances, by their own attributes and those of their series and study."""
    return await _answer(Level.INSTANCE, request)


async def _answer(level: Level, request: Request) -> Response:
    """Answer a search for the entities of a level."""
    try:
        query = parse(level, request.query_params.multi_items(), request.path_params)
    except BadQuery as problem:
        return JSONResponse({"detail": str(problem)}, 400)
    media_type = _acceptable(query.accept or ",".join(request.headers.getlist("accept")))
    if media_type is None:
        return JSONResponse({"detail": NOT_ACCEPTABLE}, 406)
    found, more = await _find(query, request)
    response = (
        Response(json.dumps(found, separators=(",", ":")), media_type=media_type)
        if found
        else Response(status_code=204)
    )
    for warning in (*query.warnings, *([MORE] if more else [])):
        response.headers.append("Warning", f"299 {request.base_url}{ROOT[1:]}: {warning}")
    return response


def _acceptable(accept: str) -> str | None:
    """Return the first media type that may be sent: the closest range decides, and 0 is no (RFC 9110 §12.5.1)."""
    allowed = {}
    for part in parse_http_list(accept or "*/*"):
        media_range, *parameters = (text.strip().lower() for text in part.split(";"))
        # A + in a URI that nobody has encoded has become a space.
        allowed[media_range.replace(" ", "+")] = not any(NOT_AT_ALL.fullmatch(parameter) for parameter in parameters)
    for media_type in MEDIA_TYPES:
        closest = [each for each in (media_type, "application/*", "*/*") if each in allowed]
        if closest and allowed[closest[0]]:
            return media_type
    return None


async def _find(query: Query, request: Request) -> tuple[list[dict[str, Any]], bool]:
    """Return what matches, up to the limit, and whether there is more."""
    database = await database_of(request)
    rows = await database.finder.page(query.search)
    page = rows[: query.search.limit]
    wanted = _wanted(query, request.path_params)
    totals: dict[str, Totals] = {}
    if wanted & TOTALS_OF_STUDY and page:
        totals = add_up(await database.finder.totals({row["StudyInstanceUID"] for row in page}))
    url: str | None = getattr(request.app.state, "retrieve_url", None)
    level = query.search.level
    nothing = Totals()
    found = [data_set(row, level, wanted, totals.get(row["StudyInstanceUID"], nothing), url) for row in page]
    return found, len(rows) > len(page)


def _wanted(query: Query, path: Mapping[str, str]) -> set[str]:
    """Return the keywords of what is to be returned: the levels above too, unless the path names their entity."""
    level = query.search.level
    named = Level.SERIES if "series" in path else Level.STUDY if "study" in path else 0
    levels = [each for each in Level if named < each <= level]
    wanted = {keyword for each in levels for keyword in REQUIRED[each]}
    wanted |= {"StudyInstanceUID"} | ({"SeriesInstanceUID"} if level > Level.SERIES else set())
    known = {keyword for each in Level if each <= level for keyword in (*REQUIRED[each], *OPTIONAL[each])}
    every = {keyword for each in levels for keyword in OPTIONAL[each]} if "all" in query.include else set()
    return wanted | every | (query.include & known)


# --- for the API's description ----------------------------------------------------------------------------------


def _parameter(name: str, description: str, **schema: Any) -> dict[str, Any]:
    """Describe one parameter of the query."""
    return {"name": name, "in": "query", "description": description, "schema": schema}


def _path_parameters(path: str) -> Iterable[dict[str, Any]]:
    """Describe the UIDs in a path."""
    uid = {"type": "string", "pattern": f"^{A_UID}$"}
    return ({"name": name, "in": "path", "required": True, "schema": uid} for name in re.findall(r"\{(\w+)\}", path))


TEXT = {"type": "string", "maxLength": MAX_VALUE, "pattern": r"^[^\u0000-\u001f\u007f]*$"}
COUNT = {"type": "integer", "minimum": 0, "maximum": 10**9 - 1}
PARAMETERS = (
    _parameter("PatientID", "Any other attribute is given in the same way.", **TEXT),
    _parameter("PatientName", "Matched without regard to case.", **TEXT),
    _parameter("ModalitiesInStudy", "One, or several with commas.", **TEXT),
    _parameter("limit", f"At most so many results, and never more than {MAX_LIMIT}.", **COUNT),
    _parameter("offset", "Leave out so many.", **COUNT),
    *(_parameter(name, text, type="string", enum=["true", "false"]) for name, text in UNSUPPORTED.items()),
)
PROBLEM = {
    "content": {
        "application/json": {
            "schema": {"type": "object", "properties": {"detail": {"type": "string"}}, "required": ["detail"]}
        }
    }
}
ANSWERS: Responses = {
    200: {
        "description": "What matches, in the DICOM JSON Model; a Warning where there is more.",
        "content": {MEDIA_TYPE: {"schema": {"type": "array", "items": {"type": "object"}}}},
    },
    204: {"description": "Nothing matches."},
    400: PROBLEM | {"description": "A parameter is wrong: which, and the cure."},
    406: PROBLEM | {"description": NOT_ACCEPTABLE},
}
ROUTES = (  # the longest first: a UID that is none of PS3.5 §9.1 may have a slash
    ("/studies/{study}/series/{series}/instances", instances),
    ("/studies/{study}/instances", instances),
    ("/studies/{study}/series", series),
    ("/studies", studies),
    ("/series", series),
    ("/instances", instances),
)
searches = APIRouter(tags=["QIDO-RS"], dependencies=[READS])
"""The search transactions. `app.state` has the database and maybe retrieve_url, where the images are."""
for _path, _search in ROUTES:
    searches.get(
        ROOT + _path.replace("}", ":path}"),
        response_class=Response,
        responses={**ANSWERS, **answers()},
        operation_id="search" + re.sub(r"[/{}]+", "_", _path).rstrip("_"),
        openapi_extra={"parameters": [*_path_parameters(_path), *PARAMETERS]},
    )(_search)
