"""A viewer's page in a real Chromium: its list from this server, of another origin, its pixels from a real Orthanc."""

from pathlib import Path
from typing import Any

import httpx
import pydicom
import pytest
from playwright.async_api import async_playwright

from bench.demo import studies
from bench.rig.nginx import nginx_process, passed
from bench.rig.peers import (
    CHROMIUM,
    CHROMIUM_ARGUMENTS,
    ORTHANC_DICOMWEB,
    free_port,
    orthanc_process,
    wait_for_port,
)
from bench.rig.processes import running
from tests.rig.factories import make_report
from tests.rig.serving import serving

TIMEOUT_S = 60
PAGE = "        location / { default_type text/html; return 200 '<!doctype html><title>viewer</title>'; }\n"

# As the JavaScript dicomweb-client asks: Accept and Authorization, each answer as JSON.
VIEW = """
async ([root, key, uids]) => {
  const headers = { Accept: 'application/dicom+json', Authorization: `Bearer ${key}` };
  const ask = async (path) => {
    const answer = await fetch(root + path, { headers });
    return answer.status === 200 ? answer.json() : answer.status;
  };
  const listed = await ask('/studies?limit=101&offset=0&fuzzymatching=false&includefield=00081030,00080060&_=1');
  const searched = await ask(`/studies?PatientName=${encodeURIComponent(uids.name.slice(0, 3))}*`);
  const series = await ask(`/studies/${uids.study}/series`);
  const instances = await ask(`/studies/${uids.study}/series/${uids.series}/instances`);
  const nothing = await ask('/studies?PatientID=nobody');
  const warned = await fetch(root + '/studies?orderby=x', { headers });
  const wrong = await fetch(root + '/studies', { headers: { Authorization: 'Bearer wrong' } });
  const where = instances[0]['00081190'].Value[0];
  const pixels = await fetch(`${where}/frames/1`, {
    headers: { Accept: 'multipart/related; type="application/octet-stream"; transfer-syntax=*' },
  });
  return {
    counts: [listed, searched, series, instances].map((found) => found.length),
    nothing, wrong: wrong.status, warned: warned.headers.get('Warning'), where,
    pixels: pixels.status, bytes: (await pixels.arrayBuffer()).byteLength,
  };
}
"""
REFUSED = "async (root) => { try { await fetch(root + '/studies'); return 'read'; } catch { return 'refused'; } }"


@pytest.mark.slow
@pytest.mark.peer("chromium")
@pytest.mark.peer("nginx")
@pytest.mark.peer("orthanc")
@pytest.mark.peer("orthanc-dicomweb")
async def test_a_page_of_another_origin_lists_searches_and_finds_the_pixels(tmp_path: Path) -> None:
    image = studies()[0]
    ds = pydicom.dcmread(image, stop_before_pixels=True)
    uids = {"study": ds.StudyInstanceUID, "series": ds.SeriesInstanceUID, "name": str(ds.PatientName)}
    orthanc_port, page_port = free_port(), free_port()
    origin = f"http://127.0.0.1:{page_port}"
    locations = PAGE + passed("/orthanc/", f"http://127.0.0.1:{orthanc_port}/")
    plugins = {"Plugins": [str(ORTHANC_DICOMWEB)], "DicomWeb": {"Enable": True, "Root": "/dicom-web/"}}
    with (
        orthanc_process(tmp_path, free_port(), orthanc_port, {}, plugins),
        running(nginx_process(tmp_path, page_port, locations)),
        serving(tmp_path, allowed_origins=origin, retrieve_url=f"{origin}/orthanc/dicom-web") as server,
    ):
        wait_for_port(page_port)
        post(f"http://127.0.0.1:{orthanc_port}/instances", content=image.read_bytes())
        post(f"{server.url}/series", json=report(ds))
        key, root = server.new_key("series:read"), f"{server.url}/dicom-web"
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGUMENTS)
            page = await browser.new_page()
            await page.goto(origin)
            seen = await page.evaluate(VIEW, [root, key, uids])
            await page.goto(f"http://localhost:{page_port}")  # another origin, which nobody allowed
            refused = await page.evaluate(REFUSED, root)
            await browser.close()
    assert seen["counts"] == [1, 1, 1, 1]
    assert (seen["nothing"], seen["wrong"]) == (204, 401)
    assert "orderby" in seen["warned"]
    assert seen["where"].startswith(f"{origin}/orthanc/dicom-web/studies/{uids['study']}/series/")
    assert (seen["pixels"], seen["bytes"] > 1000) == (200, True)
    assert refused == "refused"


def report(ds: pydicom.Dataset) -> dict[str, Any]:
    """What a gateway reports of one image."""
    made = make_report("1", series=ds.SeriesInstanceUID, study=ds.StudyInstanceUID).model_dump(mode="json")
    return made | {"PatientName": str(ds.PatientName), "SOPInstanceUIDs": [ds.SOPInstanceUID], "InstanceAttributes": {}}


def post(url: str, **content: Any) -> None:
    httpx.post(url, timeout=TIMEOUT_S, trust_env=False, **content).raise_for_status()
