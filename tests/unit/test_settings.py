"""A wrong or unknown setting stops the start and says what to do."""

import re
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.kinds import http_url
from common.settings import (
    GatewaySettings,
    Peer,
    ServerSettings,
    Settings,
    SettingsError,
    load,
    variable,
    without_password,
)

KEY = "k3y-n0b0dy-may-see"


@pytest.fixture(autouse=True)
def no_dotenv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / ".env"


def test_defaults_are_the_contract() -> None:
    gateway = load(GatewaySettings)
    assert (gateway.ae_title, gateway.scp_host, gateway.scp_port) == ("STORESCP", "127.0.0.1", 6667)
    assert (gateway.idle_timeout_s, gateway.max_open_s) == (2.0, 3600.0)
    assert load(ServerSettings).database_url == "sqlite+aiosqlite:///series.db"


def test_flag_wins_over_environment_wins_over_dotenv(no_dotenv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_dotenv.write_text("GATEWAY_INBOX_SIZE=1\nGATEWAY_SCP_PORT=1\nGATEWAY_AE_TITLE=ONE\n")
    monkeypatch.setenv("GATEWAY_SCP_PORT", "2")
    monkeypatch.setenv("GATEWAY_AE_TITLE", "TWO")
    settings = load(GatewaySettings, {"ae_title": "THREE"})
    assert (settings.inbox_size, settings.scp_port, settings.ae_title) == (1, 2, "THREE")


@pytest.mark.parametrize(
    ("name", "value", "cure"),
    [
        ("GATEWAY_SCP_PORT", "abc", "DICOM port"),
        ("GATEWAY_SCP_PORT", "70000", "65535"),
        ("GATEWAY_AE_TITLE", "SEVENTEEN_LETTERS", "1 to 16 ASCII characters"),
        ("GATEWAY_AE_TITLE", "BACK\\SLASH", "without backslash"),
        ("GATEWAY_AE_TITLE", "   ", "1 to 16"),
        ("GATEWAY_IDLE_TIMEOUT_S", "0", "greater than 0"),
        ("GATEWAY_IDLE_TIMEOUT_S", "inf", "finite"),
        ("GATEWAY_SERVER_URL", "server:8000", "URL"),
    ],
)
def test_wrong_value_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch, name: str, value: str, cure: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as error:
        load(GatewaySettings)
    assert name in str(error.value)
    assert cure in str(error.value)


WRONG = {"URL": "server:8000", "FILE": "", "TEXT": "\udc80", "HOST": "\udc80"}  # of each unit; words and numbers: "x/"
CLASSES = (GatewaySettings, ServerSettings)
EVERY = [(cls, name) for cls in CLASSES for name in cls.model_fields]


def said(cls: type[Settings], flags: dict[str, str] | None = None) -> str:
    with pytest.raises(SettingsError) as error:
        load(cls, flags)
    return str(error.value)


@pytest.mark.parametrize(("cls", "name"), EVERY)
def test_a_wrong_value_is_named_as_it_was_typed_in_words(
    monkeypatch: pytest.MonkeyPatch, cls: type[Settings], name: str
) -> None:
    unit, known = cls.model_fields[name].unit, variable(cls, name)
    wrong = WRONG.get(unit, "x/")
    flag = said(cls, {name: wrong})
    monkeypatch.setenv(known, wrong)
    of_environment = said(cls)
    assert known in of_environment
    named = flag.partition(": ")[0].partition("=")[0]
    assert named == (known if cls.model_fields[name].is_secret else f"--{name.replace('_', '-')}")  # no flag: a secret
    for text in (flag, of_environment):
        assert not re.search(r"[\[(\\^$*+?]{2}|\\x|\{\d", text), text  # no regular expression
        assert "such as" in text or "must be" in text or "is empty" in text or "UTF-8" in text


@pytest.mark.parametrize("name", [name for cls, name in EVERY if cls.model_fields[name].unit not in ("TEXT", "HOST")])
def test_what_is_not_just_text_is_refused_where_it_is_empty(name: str) -> None:
    cls = next(cls for cls in CLASSES if name in cls.model_fields)
    assert name.replace("_", "-") in said(cls, {name: ""})


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (
            {"pacs": "PACS"},
            "--pacs entry 'PACS' is not of the form AE@HOST:PORT or AE@tls://HOST:PORT, such as ORTHANC@",
        ),
        (
            {"allowed_peers": "a@b"},
            "--allowed-peers entry 'a@b' is not of the form AE@address or AE@network, such as CT1@",
        ),
        ({"ae_title": "\\"}, "--ae-title='\\\\': must be 1 to 16 ASCII characters without backslash, such as STORESCP"),
        ({"scp_host": "0.0.0.0"}, "--scp-host=0.0.0.0 can be reached from other machines"),  # noqa: S104
        ({"fetch_missing": "get"}, "--fetch-missing=get needs GATEWAY_PACS to fetch from"),
        ({"metrics_port": "65535", "workers": "2"}, "--metrics-port=65535 leaves no ports for 2 workers"),
        ({"server_url": "ftp://x"}, "must be an http or https URL, such as http://10.0.0.5:8000"),
    ],
)
def test_what_contradicts_is_named_as_it_was_typed_with_an_example(flags: dict[str, str], told: str) -> None:
    assert told in said(GatewaySettings, flags)


def test_a_flag_wins_also_where_the_environment_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_SCP_PORT", "wrong")
    assert load(GatewaySettings, {"scp_port": "1"}).scp_port == 1


@pytest.mark.parametrize(
    "url", ["http://h", "https://h:1/a/b", "http://[::1]:8000", "http://bücher.example", "http://a_b"]
)
def test_urls_that_are_asked(url: str) -> None:
    server = GatewaySettings(server_url=url).server_url
    assert httpx.URL(server).host == httpx.URL(url).host
    assert server.scheme == url.partition(":")[0]


@pytest.mark.parametrize(
    "url", ["", "h", "http://", "http:///x", "http://h:0", "http://h:99999", "http://[::1", "http://a b", "http://h\n"]
)
def test_urls_that_nobody_could_ask_are_refused(url: str) -> None:
    assert "such as http" in said(GatewaySettings, {"server_url": f"{url}\0" if url == "http://h\n" else url})


@given(st.text() | st.from_regex(r"[a-zé.@:/?#\[\]%0-9-]{1,12}", fullmatch=True))
def test_any_url_that_is_taken_can_be_asked(text: str) -> None:
    try:
        url = http_url(f"http://{text}")
    except ValueError:
        return
    assert httpx.URL(url).host


def test_unknown_name_is_refused_with_the_likely_one(no_dotenv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_IDEL_TIMEOUT_S", "3")
    no_dotenv.write_text("GATEWAY_NO_SUCH_THING=1\n")
    with pytest.raises(SettingsError, match=r"GATEWAY_IDEL_TIMEOUT_S: unknown setting; did you mean GATEWAY_IDLE") as e:
        load(GatewaySettings)
    assert "GATEWAY_NO_SUCH_THING" in str(e.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GATEWAY_PORT", "tcp://10.0.0.1:80"),
        ("GATEWAY_SERVICE_HOST", "10.0.0.1"),
        ("GATEWAY_SERVICE_PORT", "80"),
        ("GATEWAY_SERVICE_PORT_DICOM", "104"),
        ("GATEWAY_PORT_104_TCP", "tcp://10.0.0.1:104"),
        ("GATEWAY_PORT_104_TCP_ADDR", "10.0.0.1"),
        ("GATEWAY_SCP_PORT", "tcp://10.0.0.1:104"),  # of a service named gateway-scp
    ],
)
def test_what_kubernetes_puts_there_for_a_service_is_named_with_the_cure(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"{name}.*enableServiceLinks: false"):
        load(GatewaySettings)


def test_a_mistyped_port_is_not_taken_for_kubernetes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_SPC_PORT", "6667")
    with pytest.raises(SettingsError, match=r"did you mean GATEWAY_SCP_PORT\?") as error:
        load(GatewaySettings)
    assert "enableServiceLinks" not in str(error.value)


def test_the_servers_settings_do_not_disturb_the_gateway(no_dotenv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_dotenv.write_text("SERVER_MAX_BODY_BYTES=2048\nDATABASE_URL=sqlite+aiosqlite:///x.db\nOTHER=1\n")
    load(GatewaySettings)
    server = load(ServerSettings)
    assert (server.max_body_bytes, server.database_url) == (2048, "sqlite+aiosqlite:///x.db")


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({"API_KEY": "k", "API_KEY_FILE": "f"}, "GATEWAY_API_KEY and GATEWAY_API_KEY_FILE are both given: remove one"),
        ({"API_KEY": ""}, "GATEWAY_API_KEY is empty: give the key"),
        ({"API_KEY": KEY + "\n"}, "GATEWAY_API_KEY holds a space, a line break or a character that is not ASCII"),
        ({"API_KEY": KEY + "é"}, "GATEWAY_API_KEY holds a space, a line break or a character that is not ASCII"),
        ({"SERVER_CA": "ca.pem"}, "GATEWAY_SERVER_CA .* https"),
    ],
)
def test_key_or_authority_that_cannot_be_used_is_named_with_the_cure(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], problem: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(f"GATEWAY_{name}", value)
    with pytest.raises(SettingsError, match=problem) as error:
        load(GatewaySettings)
    assert KEY not in str(error.value)


@pytest.mark.parametrize(
    ("entry", "peer"),
    [
        ("PACS@10.0.0.5:104", Peer("PACS", "10.0.0.5", 104)),
        ("PACS@[::1]:104", Peer("PACS", "::1", 104)),
        ("PACS@tls://pacs.example:2762", Peer("PACS", "pacs.example", 2762, tls=True)),
        (" PACS @TLS://[::1]:2762", Peer("PACS", "::1", 2762, tls=True)),
    ],
)
def test_who_is_asked_and_whether_over_tls(entry: str, peer: Peer) -> None:
    ca = {"pacs_ca": "ca.pem"} if peer.tls else {}
    asked = load(GatewaySettings, {"pacs": f"OTHER@10.0.0.6:104,{entry}"} | ca).pacs_by_ae_title
    assert asked == {"OTHER": Peer("OTHER", "10.0.0.6", 104), "PACS": peer}


@pytest.mark.parametrize(
    "entry",
    [
        *("PACS", "PACS@10.0.0.5", "PACS@:104", "@10.0.0.5:104", "PACS@10.0.0.5:0", "PACS@10.0.0.5:99999", "PACS@h:1²"),
        *(
            "PACS@http://h:104",
            "PACS@tls:/h:104",
            "PACS@://h:104",
            "PACS@tls://:104",
            "PACS@tls://h",
            "PACS@a://tls://h:1",
        ),
    ],
)
def test_who_is_asked_has_a_form(entry: str) -> None:
    with pytest.raises(SettingsError, match="is not of the form AE@HOST:PORT or AE@tls://HOST:PORT"):
        load(GatewaySettings, {"pacs": entry, "pacs_ca": "ca.pem"})


def test_a_pacs_over_tls_needs_who_certified_it_and_who_certified_it_a_pacs_over_tls() -> None:
    with pytest.raises(SettingsError, match=r"GATEWAY_PACS asks B over TLS.* GATEWAY_PACS_CA"):
        GatewaySettings(pacs="A@h:104,B@tls://h:2762")
    with pytest.raises(SettingsError, match=r"GATEWAY_PACS_CA .* AE@tls://HOST:PORT"):
        GatewaySettings(pacs="A@h:104", pacs_ca="ca.pem")


def test_key_is_shown_nowhere(no_dotenv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_dotenv.write_text(f"GATEWAY_API_KEY={KEY}\n")
    settings = load(GatewaySettings)
    assert settings.api_key is not None
    assert settings.api_key.get_secret_value() == KEY
    assert KEY not in f"{settings} {settings!r} {vars(settings)}"
    monkeypatch.setenv("GATEWAY_SCP_PORT", "wrong")
    monkeypatch.setenv("GATEWAY_API_KEYS", KEY)
    with pytest.raises(SettingsError, match=r"GATEWAY_SCP_PORT=") as error:
        load(GatewaySettings)
    assert KEY not in str(error.value)


@pytest.mark.parametrize(
    ("flags", "exposed"),
    [
        ({"server_url": "http://10.0.0.1:8000"}, True),
        ({"server_url": "http://server:8000"}, True),
        ({"server_url": "https://server"}, False),
        ({"server_url": "http://127.0.0.1:8000"}, False),
        ({"server_url": "http://[::1]:8000"}, False),
        ({"server_url": "http://localhost:8000"}, False),
    ],
)
@pytest.mark.parametrize("given", [{"api_key": KEY}, {"api_key_file": "key"}, {}], ids=["key", "file", "none"])
def test_key_is_exposed_by_http_to_another_machine(flags: dict[str, str], exposed: bool, given: dict[str, str]) -> None:
    assert load(GatewaySettings, flags | given).exposes_key == (exposed and bool(given))


@pytest.mark.parametrize("url", ["mysql://x", "sqlite:///x.db", "sqlite+aiosqlite://", "sqlite+aiosqlite:///:memory:"])
def test_database_that_is_no_sqlite_file_is_refused(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    with pytest.raises(SettingsError, match=r"DATABASE_URL=.*sqlite\+aiosqlite:///FILE"):
        load(ServerSettings)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+asyncpg://u:secret@host/db",
        "postgresql+asyncpg://u:se/cret@host/db",
        "postgresql+asyncpg://u:s@secret@host/db",
        "postgresql+asyncpg://u@host/db?password=secret",
    ],
)
def test_no_form_of_a_password_is_shown(url: str) -> None:
    assert not {"secret", "cret", "se/"} & set(re.split(r"[@:?=]", without_password(url)))
    assert "secret" not in without_password(url)
    assert "host/db" in without_password(url)


def test_each_worker_has_a_name_files_and_a_metrics_port_of_its_own() -> None:
    settings = GatewaySettings(workers=3, id="g" * 64, metrics_port=9464)
    each = [settings.of_worker(n) for n in (1, 2, 3)]
    assert [one.metrics_port for one in each] == [9464, 9465, 9466]
    assert len({one.id for one in each}) == len({one.journal_path for one in each}) == 3
    assert max(len(one.id) for one in each) <= 64
    assert GatewaySettings(workers=2, metrics_port=0).of_worker(2).metrics_port == 0
    assert GatewaySettings(workers=2).of_worker(2).metrics_port is None


def test_workers_that_have_no_metrics_port_stop_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_METRICS_PORT", "65535")
    monkeypatch.setenv("GATEWAY_WORKERS", "2")
    with pytest.raises(SettingsError, match="GATEWAY_METRICS_PORT=65535"):
        load(GatewaySettings)
