import json
import math

import pytest

from stylecrafter_jax.metrics import ledger as module
from stylecrafter_jax.metrics.ledger import Ledger, fingerprint

GIVEN = ("clip_text", "CLIP", "video", "a cat", ["reference"])


def test_a_value_is_found_again_in_full_precision(tmp_path):
    path = tmp_path / "items.jsonl"
    ledger = Ledger(path)
    assert ledger.find("p") is None
    ledger.add({"entry": 0}, {"a": 0.1 + 0.2, "b": math.nan}, {"a": "p", "b": "q"})
    for reader in (ledger, Ledger(path)):
        assert reader.find("p") == 0.1 + 0.2
        assert math.isnan(reader.find("q"))
    assert json.loads(path.read_text())["scores"] == {"a": 0.1 + 0.2, "b": None}


def test_a_line_that_was_cut_short_is_dropped_and_the_next_is_whole(tmp_path):
    path = tmp_path / "items.jsonl"
    Ledger(path).add({"prompt": "ä"}, {"a": 1.0}, {"a": "p"})
    with path.open("a", encoding="utf-8") as file:
        file.write('{"prompt": "ö", "sco')
    ledger = Ledger(path)
    ledger.add({}, {"a": 2.0}, {"a": "q"})
    assert [json.loads(line)["scores"]["a"] for line in path.read_text().splitlines()] == [1.0, 2.0]
    assert Ledger(path).find("q") == 2.0


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "items.jsonl"
    Ledger(path).add({}, {"a": 1.0}, {"a": "p"})
    path.write_text(path.read_text() + "[]\n")
    with pytest.raises(ValueError, match=r"items.jsonl, line 2 is damaged"):
        Ledger(path)


@pytest.mark.parametrize(
    "changed",
    [
        ("clip_style", *GIVEN[1:]),
        (GIVEN[0], "another CLIP", *GIVEN[2:]),
        (*GIVEN[:2], "another video", *GIVEN[3:]),
        (*GIVEN[:3], "a dog", GIVEN[4]),
        (*GIVEN[:4], ["reference", "another"]),
    ],
)
def test_whatever_decides_a_value_changes_its_fingerprint(changed):
    assert fingerprint(*GIVEN) == fingerprint(*GIVEN)
    assert fingerprint(*changed) != fingerprint(*GIVEN)


def test_a_new_definition_is_measured_anew(monkeypatch):
    before = fingerprint(*GIVEN)
    monkeypatch.setattr(module, "DEFINITION", module.DEFINITION + 1)
    assert fingerprint(*GIVEN) != before
