"""pacs.py over TLS, against stock pynetdicom that speaks it, speaks it badly, or not at all."""

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from pynetdicom import AE
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from common.settings import GatewaySettings
from dicom.query_retrieve import probe
from dicom.scu import Line, PacsUnavailable
from dicom.tls import BadCertificate
from gateway.cli.reach import dicom
from gateway.questions import Answer
from tests.rig.foreign_pacs import UIDS, about, accepting, asking, counts, foreign_pacs, held


class Files:
    """Two authorities and what they signed, as files: the PACS's, and ours."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.theirs, self.ours = trustme.CA(), trustme.CA()
        self.pacs_ca, self.our_cert = folder / "pacs-ca.pem", folder / "ours.pem"
        self.theirs.cert_pem.write_to_path(str(self.pacs_ca))
        self.ours.issue_cert("gateway").private_key_and_cert_chain_pem.write_to_path(str(self.our_cert))

    def pacs(self, *, wants_ours: bool = False, maximum: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        """The PACS's side; its certificate names another host, as DICOM's do."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        leaf = self.theirs.issue_cert("pacs.example")
        leaf.cert_chain_pems[0].write_to_path(str(self._folder / "leaf.pem"))
        leaf.configure_cert(context)
        if wants_ours:
            context.verify_mode = ssl.CERT_REQUIRED
            self.ours.configure_trust(context)
        if maximum is not None:
            context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, maximum
        return context


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def over_tls(port: int, **settings: Any) -> dict[str, Any]:
    return {"pacs": f"PACS1@tls://127.0.0.1:{port}"} | settings


async def ask(port: int, *, fetch: bool = False, **options: Any) -> Answer:
    async with asking(port, **over_tls(port, **options)) as (pacs, _):
        return await pacs.ask(about(UIDS[:1], fetch=fetch) if fetch else about())


async def test_a_pacs_is_asked_over_tls_whatever_host_its_certificate_names(files: Files) -> None:
    with foreign_pacs(counts(3), tls=files.pacs()) as port:
        answer = await ask(port, pacs_ca=files.pacs_ca)
    assert (answer.count, answer.confirmed, answer.problem) == (3, True, None)


async def test_what_is_missing_is_fetched_over_tls(files: Files) -> None:
    with foreign_pacs(counts(3), get=[held(2), held(3)], tls=files.pacs()) as port:
        answer = await ask(port, fetch=True, pacs_ca=files.pacs_ca, fetch_missing="get")
    assert (answer.fetched, answer.problem) == (2, None)


async def test_the_certificate_of_one_pacs_can_be_named_instead_of_its_issuers(files: Files, tmp_path: Path) -> None:
    with foreign_pacs(counts(3), tls=files.pacs()) as port:
        answer = await ask(port, pacs_ca=tmp_path / "leaf.pem")
    assert answer.confirmed


async def test_a_pacs_that_wants_a_certificate_is_shown_ours(files: Files) -> None:
    with foreign_pacs(counts(3), tls=files.pacs(wants_ours=True)) as port:
        answer = await ask(port, pacs_ca=files.pacs_ca, tls_cert=files.our_cert)
    assert answer.confirmed


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
async def test_a_pacs_that_wants_a_certificate_and_is_shown_none_is_said(files: Files, version: ssl.TLSVersion) -> None:
    with foreign_pacs(counts(3), tls=files.pacs(wants_ours=True, maximum=version)) as port:
        answer = await ask(port, pacs_ca=files.pacs_ca)
    assert answer.count is None
    assert str(answer.problem).startswith("TLS: ")
    assert "(GATEWAY_TLS_CERT)" in str(answer.problem)


async def test_a_pacs_that_somebody_else_certified_is_not_asked(files: Files, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    levels: list[str] = []
    with foreign_pacs(counts(3), called=levels, tls=files.pacs()) as port:
        answer = await ask(port, pacs_ca=other)
    assert answer.problem == (
        "TLS: its certificate is not valid: unable to get local issuer certificate: is its issuer in GATEWAY_PACS_CA?"
    )
    assert levels == []


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
async def test_tls_below_1_2_is_not_spoken(files: Files) -> None:
    with foreign_pacs(counts(3), tls=files.pacs(maximum=ssl.TLSVersion.TLSv1_1)) as port:
        answer = await ask(port, pacs_ca=files.pacs_ca)
    assert "does not speak TLS 1.2 or later" in str(answer.problem)


async def test_a_pacs_without_tls_is_said(files: Files) -> None:
    with foreign_pacs(counts(3)) as port:
        answer = await ask(port, pacs_ca=files.pacs_ca)
    assert "does it speak TLS 1.2 or later on this port?" in str(answer.problem)


async def test_a_pacs_with_tls_that_is_asked_without_is_said_in_time(files: Files) -> None:
    with foreign_pacs(counts(3), tls=files.pacs()) as port:
        async with asking(port, timeout_s=2) as (pacs, _):
            answer = await pacs.ask(about())
    assert answer.problem == "cannot be reached"


@contextmanager
def talking(*say: bytes, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """A peer that takes connections, says that to each, and then nothing."""
    open_: list[socket.socket] = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                sock = tls.wrap_socket(sock, server_side=True) if tls is not None else sock
                open_.append(sock)
                for data in say:
                    sock.sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving_ = threading.Thread(target=serve, daemon=True)
        serving_.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        serving_.join(10)
    for sock in open_:
        sock.close()


async def test_a_silent_pacs_is_given_up_in_time(files: Files) -> None:
    with talking() as port:
        answer = await ask(port, pacs_ca=files.pacs_ca, timeout_s=0.3)
    assert answer.problem == "TLS: no answer in time: does it speak TLS 1.2 or later on this port?"


HALF_A_PDU = b"\x02\x00\x00\x00"


@pytest.mark.parametrize("over", ["TLS", "TCP"])
async def test_a_pacs_that_stops_in_the_middle_of_a_pdu_holds_no_thread(files: Files, over: str) -> None:
    before = set(threading.enumerate())
    with talking(HALF_A_PDU, tls=files.pacs() if over == "TLS" else None) as port:
        options = over_tls(port, pacs_ca=files.pacs_ca) if over == "TLS" else {}
        async with asking(port, timeout_s=0.3, **options) as (pacs, _):
            answer = await pacs.ask(about())
        left = [t for t in set(threading.enumerate()) - before if "pacs" in t.name or "Requestor" in t.name]
        for thread in left:
            thread.join(10)
        assert [thread.name for thread in left if thread.is_alive()] == []
    assert answer.count is None
    assert "did not end in time" not in str(answer.problem)


async def test_files_that_cannot_be_used_stop_the_start_with_the_cure(files: Files, tmp_path: Path) -> None:
    for missing in ({"pacs_ca": tmp_path / "none"}, {"pacs_ca": files.pacs_ca, "tls_cert": tmp_path / "none"}):
        with pytest.raises(BadCertificate, match="Give readable PEM files"):
            async with asking(1, **over_tls(1, **missing)):
                pass


async def test_a_renewed_file_is_read_without_a_new_start(files: Files) -> None:
    good = files.pacs_ca.read_bytes()
    with foreign_pacs(counts(3), tls=files.pacs()) as port:
        async with asking(port, **over_tls(port, pacs_ca=files.pacs_ca)) as (pacs, _):
            files.pacs_ca.write_bytes(b"")
            without = await pacs.ask(about())
            files.pacs_ca.write_bytes(good)
            again = await pacs.ask(about())
    assert "GATEWAY_PACS_CA" in str(without.problem)
    assert again.confirmed


# --- check -----------------------------------------------------------------------------------------------------------


def settings_of(port: int, files: Files, **more: Any) -> GatewaySettings:
    return GatewaySettings(**over_tls(port, pacs_ca=files.pacs_ca, pacs_timeout_s=20, **more))


def test_a_pacs_is_probed_over_tls(files: Files) -> None:
    ae = AE("PACS1")
    ae.add_supported_context(Verification)
    with accepting(ae, [], files.pacs()) as port:
        settings = settings_of(port, files)
        line = Line.to(settings.pacs_by_ae_title["PACS1"], settings)
        assert probe(line) == "does not offer Study Root C-FIND"
        with pytest.raises(PacsUnavailable):
            probe(Line(line.peer, line.ae_title, 0.5))


@pytest.mark.parametrize(
    ("wrong", "problem", "cure"),
    [
        ("ours", "(GATEWAY_TLS_CERT)", "Let the PACS trust the certificate in GATEWAY_TLS_CERT"),
        ("theirs", "its certificate is not valid", "GATEWAY_PACS_CA"),
        ("no TLS", "does it speak TLS", "write PACS1@127.0.0.1:"),
        ("TLS", "cannot be reached", "write PACS1@tls://127.0.0.1:"),
    ],
)
def test_check_says_what_is_wrong_with_tls_and_the_cure(files: Files, wrong: str, problem: str, cure: str) -> None:
    if wrong == "theirs":
        trustme.CA().cert_pem.write_to_path(str(files.pacs_ca))
    tls = None if wrong == "no TLS" else files.pacs(wants_ours=wrong == "ours")
    with foreign_pacs(counts(3), tls=tls) as port:
        settings = settings_of(port, files)
        if wrong == "TLS":
            settings = GatewaySettings(pacs=f"PACS1@127.0.0.1:{port}", pacs_timeout_s=2)
        began = time.monotonic()
        (finding,) = dicom("PACS", settings, settings.pacs_by_ae_title["PACS1"])
    assert (finding.state, problem in finding.detail, cure in finding.cure) == ("failed", True, True), finding
    assert time.monotonic() - began < 60


def test_check_names_a_file_that_cannot_be_read(files: Files, tmp_path: Path) -> None:
    with foreign_pacs(counts(3), tls=files.pacs()) as port:
        settings = GatewaySettings(**over_tls(port, pacs_ca=tmp_path / "none"))
        (finding,) = dicom("PACS", settings, settings.pacs_by_ae_title["PACS1"])
    assert "No such file" in finding.detail
    assert finding.cure.startswith("Give readable PEM files")
