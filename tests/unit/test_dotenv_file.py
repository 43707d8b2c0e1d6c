"""`.env` is changed where it has to be, and nowhere else."""

import io
import os
from pathlib import Path

import pytest
from dotenv.parser import parse_stream
from hypothesis import example, given, settings
from hypothesis import strategies as st

from console.dotenv_file import DotenvUnusable, merged, read, values, write

NAMES = ["GATEWAY_SCP_PORT", "GATEWAY_API_KEY", "GATEWAY_PACS"]
name = st.sampled_from([*NAMES, "gateway_pacs", "OTHER", "COMPOSE_PROFILES", "_x"])
free = st.text(st.characters(codec="utf-8"), max_size=12)
written = st.one_of(
    st.from_regex(r"[A-Za-z0-9@:,./ -]{0,12}", fullmatch=True),
    free.map(lambda s: "'" + s.replace("\\", "\\\\").replace("'", "\\'") + "'"),
    free.map(lambda s: '"' + s.replace("\\", "\\\\").replace('"', '\\"') + '"'),
    free,
)
line = st.one_of(
    st.builds(
        lambda indent, export, name, equal, value, comment: f"{indent}{export}{name}{equal}{value}{comment}",
        st.sampled_from(["", "  ", "\t"]),
        st.sampled_from(["", "export "]),
        name,
        st.sampled_from(["=", " = ", "= ", ""]),
        written,
        st.sampled_from(["", "  # why", "# why", " #"]),
    ),
    free.map(lambda s: f"# {s}"),
    st.sampled_from(["", "   ", "not a line of this kind", "X='open", "'"]),
    free,
)
texts = st.builds(
    lambda mark, lines, end, last: mark + end.join(lines) + last,
    st.sampled_from(["", "\ufeff"]),
    st.lists(line, max_size=6),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["", "\n", "\n\n"]),
)
changed = st.dictionaries(
    st.sampled_from(NAMES), st.none() | st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=12)
)


def statements(text: str) -> list[str]:
    """What stands there of other settings than those that change: as written, blank lines before it left out."""
    found = [b for b in parse_stream(io.StringIO(text)) if (b.key or "").upper() not in NAMES]
    return [b.original.string.strip() for b in found if b.original.string.strip()]


@settings(max_examples=60, deadline=None)
@given(texts, changed)
@example("A=1\n\n# c\nGATEWAY_PACS=x # why\nB='two\nlines'\n", {"GATEWAY_PACS": "it's"})
@example("A=1\r\nGATEWAY_PACS=x\r\n", {"GATEWAY_PACS": "y", "GATEWAY_SCP_PORT": "1"})
@example("GATEWAY_PACS=1\nX=2\nexport gateway_pacs=3", {"GATEWAY_PACS": "4"})
@example("X='open\n", {"GATEWAY_PACS": "it's"})
@example("\n\nGATEWAY_PACS='x'# why", {"GATEWAY_PACS": "y"})
@example("GATEWAY_PACS=a#b", {"GATEWAY_PACS": "c"})
def test_what_is_not_changed_survives_and_what_is_stands_there_once(text: str, changes: dict[str, str | None]) -> None:
    try:
        after = merged(text, changes)
    except DotenvUnusable:
        return  # and nothing was written
    assert statements(after)[: len(statements(text))] == statements(text)
    found = [(b.key or "").upper() for b in parse_stream(io.StringIO(after))]
    for each, value in changes.items():
        assert values(after).get(each) == value
        assert found.count(each) == (value is not None)
    assert merged(after, changes) == after
    assert after.startswith("\ufeff") == text.startswith("\ufeff")


@settings(max_examples=60, deadline=None)
@given(texts)
def test_no_change_changes_nothing(text: str) -> None:
    assert merged(text, {}) == text
    present = {name: value for name, value in values(text).items() if name in NAMES}
    once = [
        name for name in present if sum((b.key or "").upper() == name for b in parse_stream(io.StringIO(text))) == 1
    ]
    assert merged(text, {name: present[name] for name in once}) == text


def test_comments_blank_lines_quotes_and_order_stay() -> None:
    before = "# ours\n\nA='x y'\n\n# the port\nexport GATEWAY_SCP_PORT = 104   # of the old PACS\nB=${A}\n"
    after = merged(before, {"GATEWAY_SCP_PORT": "6667", "GATEWAY_PACS": "P@h:1"})
    assert after == (
        "# ours\n\nA='x y'\n\n# the port\nexport GATEWAY_SCP_PORT=6667  # of the old PACS\nB=${A}\nGATEWAY_PACS=P@h:1\n"
    )


def test_an_old_key_does_not_stay_behind() -> None:
    before = "GATEWAY_API_KEY=sgk_old#er\ngateway_api_key='sgk_older'\nGATEWAY_API_KEY=sgk_old # secret\n"
    assert merged(before, {"GATEWAY_API_KEY": "new"}) == "GATEWAY_API_KEY=new  # secret\n"
    assert merged(before, {"GATEWAY_API_KEY": None}) == ""


@pytest.mark.parametrize("value", ["two\nlines", "${HOME}", "a\0b"])
def test_what_the_file_cannot_hold_is_refused(value: str) -> None:
    with pytest.raises(DotenvUnusable, match="GATEWAY_PACS"):
        merged("", {"GATEWAY_PACS": value})


def test_an_open_quote_that_would_swallow_lines_is_named_and_nothing_is_changed() -> None:
    with pytest.raises(DotenvUnusable, match="line 2"):
        merged("A=1\nB='open\n", {"GATEWAY_PACS": "it's"})


def test_the_file_is_for_its_owner_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("A=1\n")
    path.chmod(0o644)
    write(path, "A=2\r\n")
    assert path.read_bytes() == b"A=2\r\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_one_and_its_file_is_changed(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    real, link = tmp_path / "etc" / "gateway.env", tmp_path / ".env"
    link.symlink_to(real)
    write(link, "A=2\n")
    assert (link.is_symlink(), read(link), real.read_text()) == (True, "A=2\n", "A=2\n")


def test_what_cannot_be_written_or_read_is_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.mkdir()
    with pytest.raises(DotenvUnusable, match="cannot be written"):
        write(path, "A=1\n")
    assert os.listdir(tmp_path) == [".env"]
    (path / "latin").write_bytes(b"A=\xe4\n")
    with pytest.raises(DotenvUnusable, match="UTF-8"):
        read(path / "latin")


def test_a_file_of_another_owner_stays_his(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make such a file")
    path = tmp_path / ".env"
    path.touch()
    os.chown(path, 12345, 12346)
    write(path, "A=1\n")
    assert (path.stat().st_uid, path.stat().st_gid, path.stat().st_mode & 0o777) == (12345, 12346, 0o600)
