"""Rounds and tables of `make bench`: paired, in turn, and one peer's failure is a cell."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from bench.receive import PARTS, QUICK, Cell, measure_row, worst_ratio
from bench.rig.load import Measured, Row, SendFailed
from bench.rig.receivers import Listening, Receiver
from bench.tables import extremes, table

ROW = Row("C sender", "33 KB", 4)


class Lab:
    """Receivers that start at once, and what is measured of each, round by round."""

    def __init__(self, folder: Path, rates: dict[str, list[float]]) -> None:
        """A rate of 0 is a sender that fails."""
        self.measured: list[str] = []
        self.started: list[str] = []
        self._rates = {name: iter(some) for name, some in rates.items()}
        self.receivers = [Receiver(name, self._start, folder).__enter__() for name in rates]

    @contextmanager
    def _start(self, folder: Path) -> Iterator[Listening]:
        self.started.append(folder.name)
        yield Listening(0, [])

    def measure(self, receiver: Receiver, row: Row) -> Measured:
        self.measured.append(receiver.name)
        if not (rate := next(self._rates[receiver.name])):
            raise SendFailed("1 of 4 senders")
        return Measured(rate, 1e6 / rate, row.window)


def test_each_round_runs_all_in_turn_every_second_one_backwards(tmp_path: Path) -> None:
    lab = Lab(tmp_path, {"ours": [1, 2, 3], "floor": [1, 2, 3]})
    measure_row(ROW, lab.receivers, 3, lab.measure)
    assert lab.measured == ["ours", "floor", "floor", "ours", "ours", "floor"]


def test_ratios_are_of_rounds_and_medians_count(tmp_path: Path) -> None:
    lab = Lab(tmp_path, {"ours": [100, 10, 200], "storescp": [200, 5, 100]})
    cells = measure_row(ROW, lab.receivers, 3, lab.measure)
    assert cells == {
        "ours": Cell(100, 10_000, 1.0, 1),
        "storescp": Cell(100, 10_000, 2.0, 1),  # of 0.5, 2 and 2; the ratio of the medians is 1
    }


def test_a_failure_is_a_cell_and_the_receiver_is_started_anew(tmp_path: Path) -> None:
    lab = Lab(tmp_path, {"ours": [10, 10], "pynetdicom": [0], "floor": [20, 20]})
    cells = measure_row(ROW, lab.receivers, 2, lab.measure)
    assert cells["pynetdicom"].failed == "1 of 4 senders"
    assert (cells["floor"].images_per_s, cells["floor"].ratio) == (20, 0.5)
    assert lab.measured == ["ours", "pynetdicom", "floor", "floor", "ours"]
    assert lab.started == ["ours-0", "pynetdicom-0", "floor-0", "pynetdicom-1"]


def test_where_ours_fails_the_others_have_rates_and_no_ratios(tmp_path: Path) -> None:
    lab = Lab(tmp_path, {"ours": [10, 0], "floor": [20, 20]})
    cells = measure_row(ROW, lab.receivers, 2, lab.measure)
    assert cells["ours"].failed
    assert (cells["floor"].images_per_s, cells["floor"].ratio) == (20, 0)


def part(row: Row, **cells: Cell) -> dict[str, Any]:
    told = {name.replace("_", " "): asdict(cell) for name, cell in cells.items()}
    return {"title": "", "rows": [asdict(row) | {"name": row.name, "cells": told}]}


def test_a_table_has_rate_cpu_and_ratio_a_failure_and_who_took_no_window() -> None:
    row = Row("C sender", "33 KB", 1, window=16, round_trip_ms=60)
    cells = {"ours": Cell(250, 320, 1, 16), "storescp": Cell(16, 400, 15.6, 1), "Orthanc": Cell(failed="a | b")}
    assert table(part(row, **cells)).splitlines() == [
        "| sender, size, associations | ours | storescp | Orthanc |",
        "|---|---|---|---|",
        "| C sender, 33 KB, 1, window 16, 60 ms | **250/s** 320 µs | 16/s† 400 µs (16) | failed: a / b |",
        "",
        "† answered no window: one request at a time",
    ]


def test_what_failed_is_said_in_every_table() -> None:
    big = {"ours": {"peak_rss_mib": 80, "seconds": 0.5, "raised_rss_mib": 1}, "a": {"failed": "gone"}}
    idle = {"ours": {"associations": 500, "percent": 0.2}, "b": {"associations": 50, "failed": "refused"}}
    lines = extremes({"one_gibibyte": big, "idle": idle, "cores": 2, "rounds": 3}).splitlines()
    assert "| ours | 80 | 0.5 s | 1 MiB |" in lines
    assert "| a | 0 | failed: gone | - |" in lines
    assert "| b | 50 | failed: refused |" in lines


def test_the_worst_ratio_is_to_a_peer_that_did_not_fail_and_not_to_the_floor() -> None:
    cells = {"ours": Cell(10, 1, 1), "floor": Cell(30, 1, 0.3), "Orthanc": Cell(5, 1, 2), "DCMTK": Cell(20, 1, 0.5)}
    assert worst_ratio([part(ROW, failing=Cell(failed="x"), **cells)]) == (0.5, "DCMTK", ROW.name)


@pytest.mark.parametrize("parts", [PARTS, QUICK])
def test_no_two_rows_have_one_name(parts: dict[str, list[Row]]) -> None:
    names = [row.name for rows in parts.values() for row in rows]
    assert len(set(names)) == len(names)
