"""`python -m bench.screenshots`: the pictures of docs/images, from a real run with pydicom's test images.

Orthanc and pynetdicom send copies of them, under new UIDs, to two gateways for some minutes; one of them can ask
Orthanc. Chromium then looks at the page: light, dark, as wide as a phone, and at a series' timeline.
"""

import argparse
import itertools
import random
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pydicom
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from bench.demo import by_series, studies
from bench.rig.peers import (
    CHROMIUM,
    CHROMIUM_ARGUMENTS,
    CHROMIUM_MISSING,
    ORTHANC,
    ORTHANC_MISSING,
    Orthanc,
    free_port,
    orthanc,
)
from bench.rig.processes import ROOT, gateway, server
from bench.rig.senders import copies, sending

IMAGES = ROOT / "docs" / "images"
WIDE, PHONE = {"width": 1280, "height": 1240}, {"width": 375, "height": 1180}
COPIES = 6  # of each image: most of the test series are short
TITLES = {"CT": "CT1", "MR": "MR2", "CR": "CR3"}
numbers = itertools.count(1)

Series = list[Path]


def main() -> int:
    """Make the pictures; exit code 1 where a peer is missing."""
    parser = argparse.ArgumentParser(prog="python -m bench.screenshots", description=__doc__)
    parser.add_argument("--minutes", type=float, default=8.0, help="of traffic before the first picture")
    options = parser.parse_args()
    if CHROMIUM is None or ORTHANC is None:
        print(CHROMIUM_MISSING if CHROMIUM is None else ORTHANC_MISSING)
        return 1
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path, dicom_port = Path(folder), free_port()
        for name in ("a", "b", "copies"):
            (path / name).mkdir()
        url = stack.enter_context(server(path))[1]
        asks = {"pacs": f"ORTHANC@127.0.0.1:{dicom_port}", "id": "gateway-1"}
        port_1 = stack.enter_context(gateway(path / "a", url, **asks))[1]
        port_2 = stack.enter_context(gateway(path / "b", url, id="gateway-2", idle_timeout_s=1))[1]
        pacs = stack.enter_context(orthanc(path, port_1, dicom_port=dicom_port))
        browser = stack.enter_context(sync_playwright()).chromium.launch(
            executable_path=CHROMIUM, args=CHROMIUM_ARGUMENTS
        )
        page = browser.new_page(viewport=WIDE, device_scale_factor=2)  # type: ignore[arg-type]
        page.goto(url)
        uid = _traffic(path / "copies", pacs, port_2, 60 * options.minutes)
        _look(browser, page, url, uid, _Slow(path / "copies", pacs, port_2))
        browser.close()
    return 0


# --- what is sent -----------------------------------------------------------------------------------------------


def _traffic(folder: Path, pacs: Orthanc, port: int, seconds: float) -> str:
    """Send now more, now less; the Series Instance UID of the one with a late image, for the timeline."""
    rng = random.Random(7)
    shown = _late(_large(folder), port)
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        for series in _copies(folder, rng.sample(sorted(by_series(studies()).values()), rng.randrange(1, 4))):
            if rng.random() < 0.5:
                pacs.send([pacs.upload_image(path.read_bytes()) for path in series])
            else:
                _store(series, port, rng.uniform(0, 0.03))
        time.sleep(rng.uniform(0.5, 6))
    return shown


def _large(folder: Path) -> Series:
    return _copies(folder, [max(by_series(studies()).values(), key=len)])[0]


def _copies(folder: Path, originals: list[Series]) -> list[Series]:
    """Each series several times as long, in a study of its own."""
    made = []
    for original in originals:
        paths = []
        for ds in copies(original * (COPIES if len(original) < COPIES * 2 else 1)):
            paths.append(folder / f"{next(numbers)}.dcm")
            ds.save_as(paths[-1])
        made.append(paths)
    return made


def _store(paths: Series, port: int, pause_s: float) -> None:
    """C-STORE over one association, a pause after each image."""
    images = [pydicom.dcmread(path) for path in paths]
    for _ in sending(images, port, TITLES.get(images[0].Modality, "PACS")):
        time.sleep(pause_s)


def _late(paths: Series, port: int) -> str:
    """Two associations, and images that come after the verdict."""
    uid = str(pydicom.dcmread(paths[0], stop_before_pixels=True).SeriesInstanceUID)
    _store(paths[:20], port, 0.11)
    _store(paths[20:44], port, 0.05)
    time.sleep(12)
    _store(paths[44:], port, 0.15)
    return uid


class _Slow:
    """Senders that are still at it while the pictures are taken."""

    def __init__(self, folder: Path, pacs: Orthanc, port: int) -> None:
        self._stop = threading.Event()
        large = [_large(folder) for _ in range(5)]
        self._ids = [[pacs.upload_image(path.read_bytes()) for path in series] for series in large[3:]]
        self._pacs, self._port = pacs, port
        self._threads = [threading.Thread(target=self._by_orthanc, args=(ids,)) for ids in self._ids]
        self._threads += [threading.Thread(target=_store, args=(series, port, 0.6)) for series in large[:3]]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()
            time.sleep(1.1)  # not all with the same count

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _by_orthanc(self, ids: list[str]) -> None:
        for one in ids:
            if self._stop.is_set():
                return
            self._pacs.send([one])
            time.sleep(0.4)


# --- what is looked at ------------------------------------------------------------------------------------------


def _look(browser: Browser, page: Page, url: str, uid: str, slow: _Slow) -> None:
    with slow:
        page.locator("#arriving tbody tr").nth(4).wait_for()
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.wait_for_function("document.querySelectorAll('canvas').length === 2")
            _picture(page, f"page-{scheme}.png")
        phone = browser.new_page(viewport=PHONE, device_scale_factor=2, is_mobile=True)  # type: ignore[arg-type]
        phone.goto(url)
        phone.locator("#arriving tbody tr").nth(2).wait_for()
        _picture(phone, "phone.png")
    page.emulate_media(color_scheme="light")
    page.goto(f"{url}/#series/{uid}")
    page.locator("dialog svg .curve").first.wait_for()
    _picture(page, "timeline.png")


def _picture(page: Page, name: str) -> None:
    """Save it with 128 colours: a third of the size, and no difference to be seen."""
    path = IMAGES / name
    page.screenshot(path=path)
    with Image.open(path) as image:
        image.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size // 1000} KB")


if __name__ == "__main__":
    sys.exit(main())
