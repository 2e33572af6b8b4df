"""What `python -m benchmarks.speed` says where something can't be measured, and that it measures this process."""

from __future__ import annotations

import json
import subprocess
import sys
import types

import pytest

from benchmarks.peak import NotMeasured, peak
from benchmarks.speed import __main__ as table
from benchmarks.speed import memory
from benchmarks.speed.clock import Row
from harness.server import ROOT

MEGABYTE = 1 << 20
needs_a_peak = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such figure that Python knows")
SILENT = "import benchmarks.peak as p\ndef silent(): raise p.NotMeasured('no such figure')\np.peak = silent\n"


@pytest.mark.parametrize("target", ["<= 3", ">= 3", ""])
def test_what_is_not_measured_meets_no_target_and_misses_none(target):
    row = Row.not_measured("a thing", "no such figure", "MB", target)
    assert row.met is None
    shown = table.line(row)
    assert "not measured here: no such figure" in shown and "met" not in shown and "MISSED" not in shown
    assert not any(character.isdigit() for character in shown.replace(target, ""))


@pytest.mark.parametrize(("value", "verdict"), [(2.0, "met"), (0.0, "met"), (4.0, "MISSED")])
def test_what_is_measured_is_judged(value, verdict):
    assert f" {verdict} " in table.line(Row("a thing", value, "MB", "<= 3", "so and so"))


def test_the_table_and_the_file_hold_no_figure_for_it(monkeypatch, capsys, tmp_path):
    section = types.ModuleType("benchmarks.speed.made_up")
    section.measure = lambda: iter([Row.not_measured("a thing", "no such figure", "MB", "<= 3")])
    monkeypatch.setitem(sys.modules, section.__name__, section)
    monkeypatch.setitem(table.SECTIONS, "made-up", ("made_up:measure", "a section"))
    monkeypatch.setattr(sys, "argv", ["speed", "made-up", "--json", str(tmp_path / "speed.json")])
    assert table.main() == 0
    assert "not measured here: no such figure" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "speed.json").read_text())["made-up"]["rows"]
    assert row["value"] is None and row["met"] is None and row["detail"] == "not measured here: no such figure"


def test_memory_that_the_system_does_not_tell_is_no_0_MB(monkeypatch):
    """The section's own process, in which the system stays silent."""
    monkeypatch.setattr(memory, "ANCHORS", (60,))
    run = subprocess.run

    def silently(command, **how):
        rest = f"import runpy, sys\nsys.argv = {command[2:]!r}\nrunpy.run_module({command[2]!r}, run_name='__main__')"
        return run([command[0], "-c", SILENT + rest], **how)

    monkeypatch.setattr(memory.subprocess, "run", silently)
    (row,) = memory.measure()
    assert row.value is None and row.detail == "not measured here: no such figure"
    monkeypatch.undo()
    assert memory._row(60, {"states": 1.0, "added": 5.0}).value == 5.0


def test_a_system_that_says_nothing_or_0_is_told_from_one_that_says(monkeypatch):
    monkeypatch.setattr("benchmarks.peak.Path.is_file", lambda path: False)
    resource = types.SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda who: types.SimpleNamespace(ru_maxrss=0))
    monkeypatch.setitem(sys.modules, "resource", resource)
    with pytest.raises(NotMeasured, match="no memory at all"):
        peak()
    monkeypatch.setitem(sys.modules, "resource", None)
    with pytest.raises(NotMeasured, match="doesn't say"):
        peak()


@needs_a_peak
def test_a_rise_below_an_earlier_peak_is_not_measured():
    program = (
        "from benchmarks.peak import NotMeasured, rise\n"
        f"grown = rise(lambda: bytearray(b'x' * {64 * MEGABYTE}))\n"
        f"assert {60 * MEGABYTE} < grown < {200 * MEGABYTE}, grown\n"
        "try: print(rise(lambda: bytearray(b'x' * 1000)))\n"
        "except NotMeasured as reason: print(reason)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "had held" in done.stdout


@needs_a_peak
def test_the_peak_is_this_process_s_and_not_that_of_the_one_that_started_it():
    held = b"x" * (256 * MEGABYTE)
    program = "from benchmarks.peak import peak; print(peak())"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert len(held) < peak() and int(done.stdout) < len(held)
