"""Whom the watchdog names, and whom it leaves alone: ranks that wait, and stages that are long and go on."""

import time

import pytest

from pgdpo.guards.signals import StopSignals
from pgdpo.guards.watchdog import SILENT, Standing, Watchdog

SECONDS = 100.0


@pytest.fixture
def named(monkeypatch):
    """`named(standing, ...)`: what the verdict says, None without one."""
    verdicts = []
    monkeypatch.setattr(Watchdog, "_verdict", lambda self, text, **options: verdicts.append(text))
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)

    def judge(*ranks):
        verdicts.clear()
        Watchdog(None, SECONDS, StopSignals())._judge(list(ranks))
        return verdicts[0] if verdicts else None

    return judge


def rank(number: int, *, phase: int, still: float = 0.0, silent: float = 0.0) -> Standing:
    """A rank in a phase that came no further for so many seconds, and was not heard for so many."""
    now = time.monotonic()
    return Standing(number, "host", phase, 0, f"phase {phase}", now - still, now - silent)


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ([{"phase": 3, "still": 99}, {"phase": 3, "still": 1}], None),
        ([{"phase": 3, "still": 500}, {"phase": 2, "still": 1}], None),  # 0 waits for what 1 still works at
        ([{"phase": 3, "still": 500}, {"phase": 2, "still": 101}], [1]),
        (
            [{"phase": 2, "still": 500}, {"phase": 2, "still": 1}],
            [0],
        ),  # 1 goes on in the same phase: it does not wait
        ([{"phase": 3, "still": 500}, {"phase": 3, "still": 500}], [0, 1]),
        (
            [{"phase": 4, "still": 101, "silent": SILENT + 1}, {"phase": 3, "still": 50}],
            [0],
        ),  # its process is stopped
        ([{"phase": 4, "still": 50, "silent": SILENT + 1}, {"phase": 3, "still": 50}], None),
    ],
)
def test_the_rank_that_others_wait_for_is_named(named, ranks, expected):
    said = named(*(rank(number, **standing) for number, standing in enumerate(ranks)))
    found = None if said is None else [number for number in range(2) if f"rank {number} on host" in said]
    assert found == expected, said
    assert said is None or f"train.watchdog_seconds is {SECONDS:g}" in said


def test_units_of_a_phase_are_progress():
    standing = rank(0, phase=2, still=500)
    standing.update(2, 0, "phase 2")
    assert time.monotonic() - standing.moved > 400
    standing.update(2, 1, "phase 2, denoising step 1 of 50")
    assert time.monotonic() - standing.moved < 100 and standing.phase.endswith("1 of 50")
