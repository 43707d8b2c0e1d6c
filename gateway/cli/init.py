"""`python client.py init`: ask what the gateway has to know, write `.env`, and say what to enter in the PACS."""

import json
import os
import sys
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from common.settings import GatewaySettings, Peer, is_loopback, key_problem, load
from console.machine import address_towards
from console.questions import Answers, Question, agreed, save

PACS = Question(
    "pacs",
    "PACS that can be asked how many images a series has, AE@HOST:PORT, comma separated",
    "ORTHANC@10.0.0.5:4242",
)
PACS_CA = Question("pacs_ca", "PEM file of the authority of a tls:// PACS's certificate", "/etc/gateway/pacs-ca.pem")
HOST = Question("scp_host", "Address of this machine to receive images on", "10.0.0.7")
PORT = Question("scp_port", "DICOM port", "6667")
AE_TITLE = Question("ae_title", "AE title of this gateway", "STORESCP")
PEERS = Question(
    "allowed_peers", "Who may send: AE titles, addresses, networks, comma separated", "ORTHANC@10.0.0.5,CT1,10.0.0.0/24"
)
SERVER = Question("server_url", "URL of the server", "https://10.0.0.9:8000")
NAME = Question("id", "Name of this gateway", "gateway-1")
KEY = Question("api_key_file", "File with this gateway's key to the server, - for standard input", "/etc/gateway/key")
EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound


def set_up(given: Mapping[str, Any]) -> None:
    """Set the gateway up. Raises click.UsageError or SeriesGatewayError.

    1. Ask for everything that no flag says: PACS, network, server, key.
    2. Show what will change in `.env`, and ask if that is right.
    3. Write `.env`.
    4. Say what to enter in the PACS.
    """
    key_flag = given.get(KEY.setting)
    answers = Answers(
        GatewaySettings, {name: value for name, value in given.items() if name != KEY.setting}, sys.stdin.isatty()
    )
    _ask_network(answers)
    _ask_server(answers, key_flag)
    changes = answers.changes()
    agreed(changes, interactive=answers.interactive)
    save(changes)
    click.echo(for_the_pacs(load(GatewaySettings, {k: v for k, v in answers.wanted.items() if v is not None})))


def _ask_network(answers: Answers) -> None:
    pacs = answers.ask(PACS, meanwhile={PACS_CA.setting: answers.given.get(PACS_CA.setting, "asked later")})
    if "tls://" in pacs.lower() or PACS_CA.setting in answers.given:
        answers.ask(PACS_CA, needed=True)
    else:
        answers.wanted[PACS_CA.setting] = None  # it would have no effect
    peers = _peers(pacs)
    own = address_towards(peers[0].host) if peers else "127.0.0.1"
    host = answers.ask(HOST, own, needed=True, meanwhile={"allow_any_peer": True})
    answers.ask(PORT, "6667")
    answers.ask(AE_TITLE, "STORESCP")
    anyone = answers.given.get(
        "allow_any_peer", answers.present("allow_any_peer").lower() in ("1", "true", "yes", "on")
    )
    if (not anyone or PEERS.setting in answers.given) and answers.ask(
        PEERS, _senders(peers), needed=bool(host) and not is_loopback(host)
    ):
        answers.wanted.setdefault("allow_any_peer", None)  # otherwise the list would have no effect


def _ask_server(answers: Answers, key_flag: str | None) -> None:
    url = answers.ask(SERVER, "http://127.0.0.1:8000" if answers.interactive else "", needed=True)
    answers.ask(NAME, os.uname().nodename[:51])
    elsewhere = bool(url) and not is_loopback(urlsplit(url).hostname or "")
    if key_flag is None and not answers.interactive:
        _keep_key(answers, needed=elsewhere)
    elif key_flag in (None, "-"):
        _take_key(answers, "" if answers.interactive else sys.stdin.readline())
    else:
        answers.wanted |= {"api_key": None, "api_key_file": str(_with_key(Path(str(key_flag)).absolute()))}


def _keep_key(answers: Answers, *, needed: bool) -> None:
    """Keep the key that the environment or `.env` has; note it as missing if there is none and it is needed."""
    for name in ("api_key", "api_key_file"):
        if value := answers.present(name):
            answers.wanted[name] = value
            return
    if needed:
        answers.missing.append(KEY)


def _take_key(answers: Answers, line: str) -> None:
    """Take a key from standard input, or ask for it without showing it."""
    if not answers.interactive:
        if problem := key_problem(line.strip()):
            raise click.UsageError(f"{KEY.flag} -: the key on standard input {problem}")
        answers.wanted |= {"api_key": line.strip(), "api_key_file": None}
        return
    kept = next((name for name in ("api_key", "api_key_file") if answers.present(name)), None)
    text = f"Key from `python server.py init`, not shown ({'Enter: keep the present one' if kept else 'Enter: none'})"
    while key := str(click.prompt(text, default="", show_default=False, hide_input=True)).strip():
        if (problem := key_problem(key)) is None:
            answers.wanted |= {"api_key": key, "api_key_file": None}
            return
        click.echo(f"  it {problem}", err=True)
    if kept:
        answers.wanted[kept] = answers.present(kept)


def _with_key(path: Path) -> Path:
    """Check that a key can be read from a file; return its path. Raises click.UsageError."""
    try:
        problem = key_problem(path.read_text().strip())
    except (OSError, UnicodeDecodeError) as error:
        problem = f"cannot be read: {getattr(error, 'strerror', 'it is not a text')}"
    if problem:
        raise click.UsageError(f"{KEY.flag} {path} {problem}. For example: {KEY.flag} {KEY.example}")
    return path


def _peers(pacs: str) -> list[Peer]:
    """Parse an answer for GATEWAY_PACS, whatever else is wrong; return nothing if the answer is wrong."""
    try:
        return list(GatewaySettings().model_copy(update={"pacs": pacs}).pacs_by_ae_title.values())
    except ValueError:
        return []


def _senders(peers: list[Peer]) -> str:
    """Return the PACS as entries of GATEWAY_ALLOWED_PEERS, with their address if they are not known by name only."""
    return ",".join(f"{peer.ae_title}@{peer.host}" if _is_address(peer.host) else peer.ae_title for peer in peers)


def _is_address(host: str) -> bool:
    try:
        return bool(ip_address(host))
    except ValueError:
        return False


def for_the_pacs(settings: GatewaySettings) -> str:
    """Say what to enter in the PACS, so that it sends to this gateway and answers its questions."""
    peers = list(settings.pacs_by_ae_title.values())
    towards = peers[0].host if peers else settings.server_url.host
    host = address_towards(towards) if settings.scp_host in EVERYWHERE else settings.scp_host
    title, port = settings.ae_title, settings.scp_port
    modality: Any = [title, host, port]
    if settings.tls_cert is not None:
        modality = {"AET": title, "Host": host, "Port": port, "UseDicomTls": True}
    lines = [
        "",
        "Enter this in the PACS, as a destination to send to:",
        f"  AE title {title}    host {host}    port {port}{'    TLS' if settings.tls_cert else ''}",
        "Orthanc, in its configuration:",
        f"  {json.dumps({'DicomModalities': {'GATEWAY': modality}})}",
        f"DCMTK's dcmqrscp, in its HostTable: gateway = ({title}, {host}, {port})",
        f"dcm4chee: a device with the AE title {title} and the connection {host}:{port}, and an export rule for it.",
    ]
    if peers:
        lines.append(f"It also has to answer C-FIND from {title}: Orthanc does, once it knows the modality.")
    return "\n".join([*lines, *_not_let_in(settings, peers), ""])


def _not_let_in(settings: GatewaySettings, peers: list[Peer]) -> list[str]:
    return [
        f"warning: {peer.ae_title} at {peer.host} is asked, but may not send: add it to GATEWAY_ALLOWED_PEERS"
        for peer in peers
        if _is_address(peer.host) and not settings.may_associate(peer.ae_title, peer.host)
    ]
