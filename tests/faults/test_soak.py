"""The soak of `tests.faults.soak`: the long one on record, and a short one."""

import json
import os

import pytest

from tests.faults.soak import ROOT, soak


def check(found, mib_per_1000_steps):
    assert found["ends_alike"]
    held = found["undisturbed"]
    assert held["rss_mib"]["per_1000_steps"] < mib_per_1000_steps
    for name in ("files", "threads", "children", "temporary"):
        # A save that is under way at one of the looks holds some more.
        assert held[name]["late"] <= held[name]["early"] + 8, name
    assert found["left_after_kills"] == {"temporary": 0, "torn": 0}


def test_the_long_soak_on_record_held():
    found = json.loads((ROOT / "benchmarks/results/soak.json").read_text())
    assert found["steps"] >= 10_000 and len(found["killed_at"]) >= 10
    check(found, mib_per_1000_steps=10)


@pytest.mark.slow
def test_nothing_piles_up_and_kills_change_nothing(tmp_path):
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("what a process holds is read from /proc, which this system lacks")
    check(soak(tmp_path, steps=600, kills=3), mib_per_1000_steps=100)
