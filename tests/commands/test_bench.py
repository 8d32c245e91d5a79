import json

import pytest

from stylecrafter_jax.bench.timing import Runnable, timed
from stylecrafter_jax.cli import main

QUICK = ["--repeat", "2", "--quiet", "--json"]


def benched(capsys, *args):
    assert main(["bench", *map(str, args), *QUICK]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(("what", "count"), [("unet", 1), ("decode", 1), ("sample", 7)])
def test_programs_of_generation_are_timed(capsys, tmp_path, small_bundle, what, count):
    out = tmp_path / "bench.json"
    found = benched(capsys, what, "--bundle", small_bundle, "--out", out)
    assert json.loads(out.read_text()) == found
    assert len(found["rows"]) == count and found["platform"] == "cpu"
    for row in found["rows"]:
        assert len(row["seconds"]) == 2 and min(row["seconds"]) > 0
        assert row["compile_seconds"] > 0 and row["flops"] > 0 and row["ratio"] == 1.0
        assert row["flops_per_second"] == pytest.approx(row["flops"] / row["median_seconds"])


def test_a_training_step_is_timed(capsys, small_bundle):
    small = ["data.image_batch=2", "data.height=16", "data.width=16", "train.accumulate=1"]
    args = ("--config", "configs/stage1_t2i.py", "--bundle", small_bundle, "--set", *small)
    (row,) = benched(capsys, "train", *args)["rows"]
    assert row["name"] == "step on pictures" and row["flops"] > 0


def test_two_settings_take_turns(capsys, small_bundle):
    found = benched(capsys, "kernels", "--bundle", small_bundle, "--compare", "impl=reference,xla")
    assert found["compared"] == ["impl=reference", "impl=xla"]
    names = [row["name"] for row in found["rows"]]
    assert len(names) == 6 and names[0].endswith("impl=reference")
    assert [row["ratio"] == 1.0 for row in found["rows"]][::2] == [True] * 3


def test_an_import_is_timed(capsys, small_bundle):
    (row,) = benched(capsys, "import", "--bundle", small_bundle)["rows"]
    assert row["bytes"] > 0 and row["flops"] == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["unet", "--compare", "impl"], "--compare wants NAME=ONE,OTHER, got 'impl'"),
        (["unet", "--compare", "speed=1,2"], "--compare: there is no setting 'speed' to compare"),
        (["import", "--compare", "dtype=float32,bfloat16"], "nothing to compare"),
        (["train"], "bench train needs a run's config, such as configs/stage1_t2i.py"),
    ],
)
def test_a_mistake_is_one_line(capsys, args, message):
    assert main(["bench", *args]) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_turns_alternate_after_one_to_warm_up():
    calls = []
    both = [Runnable(name, lambda name=name: calls.append(name)) for name in "ab"]
    found = timed(both, 3)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert [len(each.seconds) for each in found] == [3, 3]
