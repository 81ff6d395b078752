"""`pgdpo doctor` tries things out, and says what is wrong and what mends it."""

import json

import pytest

from pgdpo.checking import doctor
from pgdpo.cli import app


def findings(tmp_path) -> dict[str, dict]:
    """The findings of the command, by what was checked; `code` is its exit code."""
    file = tmp_path / "doctor.json"
    code = app(["doctor", str(tmp_path / "runs"), "--json", str(file)], standalone_mode=False)
    return {row["what"]: row for row in json.loads(file.read_text())} | {"code": code}


def test_this_machine_runs_the_kernels_writes_clips_and_files(tmp_path):
    found = findings(tmp_path)
    for what in ("Python", "torch", "pair_errors", "attention backends", "mp4", "disk"):
        assert found[what]["state"] in ("ok", "warning"), found[what]
    assert (
        "relative error" in found["pair_errors"]["found"] and "native" in found["attention backends"]["found"]
    )
    assert "MiB/s" in found["disk write"]["found"]
    assert not (tmp_path / "runs").exists()  # looking changes nothing


@pytest.mark.parametrize("package", ["diffusers", "no-such-package"])
def test_a_wrong_package_comes_with_the_command_that_mends_it(tmp_path, monkeypatch, package):
    monkeypatch.setitem(doctor.PACKAGES, package, ">=99")
    found = findings(tmp_path)
    assert found["code"] == 1
    assert found[package]["state"] == "wrong" and found[package]["mend"] == f"pip install '{package}>=99'"


def test_wrong_numbers_of_a_kernel_are_seen(tmp_path, monkeypatch):
    import pgdpo_kernels

    right = pgdpo_kernels.pair_errors

    def wrong(pred, target, reference):
        return right(pred * 1.001, target, reference)

    monkeypatch.setattr(pgdpo_kernels, "pair_errors", wrong)
    assert findings(tmp_path)["pair_errors"]["state"] == "wrong"


def test_a_check_that_breaks_is_a_finding(tmp_path, monkeypatch):
    def broken(*arguments, **options):
        raise OSError("no codec here")

    monkeypatch.setattr("pgdpo.video.write_video", broken)
    found = findings(tmp_path)
    assert found["video"]["state"] == "wrong" and "no codec here" in found["video"]["found"]
    assert found["code"] == 1


def test_a_network_file_system_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "_file_system", lambda path: "nfs4")
    found = findings(tmp_path)["file system"]
    assert found["state"] == "warning" and "network" in found["found"] and "local disk" in found["mend"]
