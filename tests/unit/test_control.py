"""What a command is told when the process that it asked ends, or answers nonsense."""

import asyncio
from pathlib import Path

import pytest

from common.control import EndedMeanwhile, RequestFailed, request


async def asked(path: Path, answer: bytes) -> object:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(answer)
        writer.close()

    async with await asyncio.start_unix_server(serve, f"{path}.sock"):
        return await asyncio.to_thread(request, path, 10.0, "drain")


@pytest.mark.parametrize("sent", [b"", b'{"do', b'{"reported": 1}'])
async def test_who_ends_before_his_answer_is_whole_may_have_done_it(tmp_path: Path, sent: bytes) -> None:
    with pytest.raises(EndedMeanwhile, match=r"ended before it answered `drain`.* start it, look"):
        await asked(tmp_path / "journal.db", sent)


@pytest.mark.parametrize("sent", [b"\n", b"nonsense\n"])
async def test_an_answer_that_is_none_is_said(tmp_path: Path, sent: bytes) -> None:
    with pytest.raises(RequestFailed, match="did not answer `drain`") as raised:
        await asked(tmp_path / "journal.db", sent)
    assert not isinstance(raised.value, EndedMeanwhile)


async def test_a_whole_answer_is_returned(tmp_path: Path) -> None:
    assert await asked(tmp_path / "journal.db", b'{"reported": 1}\n') == {"reported": 1}
