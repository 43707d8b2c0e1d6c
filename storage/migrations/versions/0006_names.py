"""Names are found by each of their groups, whatever pads them; days of ACR-NEMA and long accession numbers, too."""

import json
import re
import unicodedata

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
COLUMNS = ("StudyDate", "AccessionNumber", "FoldedName", "FoldedReferrer")
AT_ONCE = 1000
SURROGATES = re.compile("[\ud800-\udfff]")  # no text, and in JSON of an earlier version


def upgrade() -> None:
    op.add_column("series", sa.Column("FoldedReferrer", KEY))
    _fill()
    op.create_index(
        "studies_by_further_group",
        "series",
        ["FoldedName", "StudyInstanceUID", "SeriesInstanceUID"],
        sqlite_where=sa.text("\"FoldedName\" GLOB '*=*' = 1"),
        postgresql_where=sa.text("\"FoldedName\" LIKE '%=%'"),
    )


def _fill() -> None:
    """The columns of what is stored already, some series at a time; most are as they were."""
    connection = op.get_bind()
    read = ", ".join(f'"{column}"' for column in ("SeriesInstanceUID", "PatientName", "Attributes", *COLUMNS))
    some = sa.text(
        f'SELECT {read} FROM series WHERE "SeriesInstanceUID" > :after '  # noqa: S608 - constants
        f'ORDER BY "SeriesInstanceUID" LIMIT {AT_ONCE}'
    )
    written = ", ".join(f'"{column}" = :{column}' for column in COLUMNS)
    update = sa.text(f'UPDATE series SET {written} WHERE "SeriesInstanceUID" = :uid')  # noqa: S608 - constants
    after = ""
    while rows := connection.execute(some, {"after": after}).all():
        changed = []
        for uid, name, content, *known in rows:
            columns = _searched(name, json.loads(content) if isinstance(content, str) else content)
            if list(columns.values()) != known:
                changed.append(columns | {"uid": uid})
        if changed:
            connection.execute(update, changed)
        after = rows[-1][0]


def _searched(name: str | None, attributes: dict[str, list[str]]) -> dict[str, str | None]:
    first = {
        keyword: SURROGATES.sub("\ufffd", next(iter(attributes.get(keyword, ())), ""))
        for keyword in ("StudyDate", "AccessionNumber", "ReferringPhysicianName")
    }
    return {
        "StudyDate": first["StudyDate"].replace(".", "")[:64] or None,
        "AccessionNumber": first["AccessionNumber"][:512] or None,
        "FoldedName": _folded(name or "")[:512] or None,
        "FoldedReferrer": _folded(first["ReferringPhysicianName"])[:512] or None,
    }


def _folded(name: str) -> str:
    text = unicodedata.normalize("NFC", name)
    text = text.lower() if text.isascii() else "".join(map(_small, text)).replace("i\u0307", "\u0130")
    return "=".join(group.rstrip("^ ") for group in text.split("=")).rstrip("=")


def _small(character: str) -> str:
    return next((each for each in (character.casefold(), character.lower()) if len(each) == 1), character)


def downgrade() -> None:
    op.drop_index("studies_by_further_group", "series")
    op.drop_column("series", "FoldedReferrer")
