import json
import math

import pytest

from stylecrafter_jax.files import write_json
from stylecrafter_jax.metrics.measures import Metric
from stylecrafter_jax.metrics.report import summarise, write_report
from stylecrafter_jax.metrics.table import write_markdown

METRICS = {"content": Metric("Content", "higher"), "error": Metric("Error", "lower")}


def item(entry, **scores):
    return {"entry": entry, "scores": scores}


def test_samples_of_a_prompt_are_averaged_first():
    items = [item(0, content=1.0), item(0, content=3.0), item(0, content=2.0), item(1, content=6.0)]
    (row,) = summarise(items, ["content"])
    assert row.mean == 4.0
    assert row.interval == (2.0, 6.0)
    assert (row.entries, row.items, row.missing) == (2, 4, 0)


def test_values_that_are_not_finite_are_left_out_and_counted():
    items = [item(0, error=math.nan), item(1, error=0.5), item(2), item(3, error=math.inf)]
    error, content = summarise(items, ["error", "content"])
    assert (error.mean, error.interval) == (0.5, None)
    assert (error.entries, error.items, error.missing) == (1, 1, 3)
    assert math.isnan(content.mean) and content.missing == 4


def test_the_report_is_a_table_and_strict_json(tmp_path):
    items = [item(0, content=0.25, error=math.nan), item(1, content=0.75, error=math.nan)]
    paths = write_report(tmp_path, items, METRICS, {"flow": "known", "sheet": ["a", "b"]})
    assert [path.name for path in paths] == ["metrics.md", "metrics.json"]
    assert paths[0].read_text().splitlines() == [
        "| metric | better | mean | 95% interval | prompts | videos |",
        "| --- | --- | --- | --- | --- | --- |",
        "| Content | higher | 0.5 | 0.25 to 0.75 | 2 | 2 |",
        "| Error | lower | – | – | 0 | 0 |",
        "",
        "- flow: known",
        "- sheet: a, b",
        "- missing: Error: 2 without value",
    ]

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    content = json.loads(paths[1].read_text(), parse_constant=refuse)
    assert content["metrics"]["content"] == {
        "title": "Content",
        "better": "higher",
        "mean": 0.5,
        "low": 0.25,
        "high": 0.75,
        "prompts": 2,
        "videos": 2,
        "missing": 0,
    }
    assert content["metrics"]["error"]["mean"] is None
    assert content["notes"] == {"flow": "known", "sheet": ["a", "b"]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.json", "metrics.md"]


def test_a_cell_cannot_break_the_table(tmp_path):
    write_markdown(tmp_path / "t.md", ["a", "b"], [["x|y", "z"]], {})
    assert (tmp_path / "t.md").read_text().splitlines()[2] == "| x\\|y | z |"
    with pytest.raises(ValueError, match="wanted 2 cells, got 1"):
        write_markdown(tmp_path / "t.md", ["a", "b"], [["x"]], {})


def test_json_turns_what_is_not_finite_into_null_at_any_depth(tmp_path):
    write_json(tmp_path / "a.json", {"a": [1.0, math.nan, {"b": -math.inf}], "c": 2})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1.0, None, {"b": None}], "c": 2}
