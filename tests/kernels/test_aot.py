"""Every kernel compiles for real GPUs on a machine without one: no spill, 128-bit loads, few registers."""

import aot
import pytest


def check(reports: list[aot.Report], capsys: pytest.CaptureFixture) -> None:
    with capsys.disabled():
        print("\n" + aot.table(reports))
    assert {report.target for report in reports} == set(aot.TARGETS)
    assert not [(report.name, report.target, report.failures) for report in reports if report.failures]


def test_kernels_compile_for_every_target(capsys):
    check(aot.run_in_subprocess(), capsys)


@pytest.mark.slow
def test_every_combination_compiles_for_every_target(capsys):
    check(aot.run_in_subprocess("--full"), capsys)
