"""evaluate --demo, with the embedded model and judges."""

import json

import numpy as np
import pytest

from stylecrafter_jax import embedded
from stylecrafter_jax.judges.judging import load_judges
from stylecrafter_jax.metrics.clip_scores import ClipEmbedder
from stylecrafter_jax.metrics.demo import measure
from stylecrafter_jax.world.drawing import draw
from stylecrafter_jax.world.held_out import REFERENCE_CONTENTS, cases, references

PICTURES = ("content_accuracy", "content_leak", "style_retrieval_top1")
WHOLE = (*PICTURES, "motion_accuracy", "clip_temp")
RIGHT = ("content_accuracy", "style_retrieval_top1", "motion_accuracy")
TRUE = ("content_ceiling", "content_leak_real", "style_ceiling", "motion_ceiling", "clip_temp_real")


@pytest.fixture(scope="module")
def judged():
    """Clips, their cases -> scores by the embedded judges."""
    judges, clip = load_judges(embedded.JUDGES), ClipEmbedder.load(embedded.BUNDLE)
    return lambda clips, of: measure(clips, of, judges, clip)


def test_true_clips_are_recognised_far_above_chance_and_others_are_not(judged):
    chosen = cases(40)
    true = [draw(case.scene) for case in chosen]
    found = judged(true, chosen)
    assert set(found) == set(WHOLE) and all(len(value) == 40 for value in found.values())
    assert all(found[name].mean() > 0.5 for name in RIGHT)
    assert found["content_leak"].mean() < 0.1
    # Each clip taken for one of another case, of the next style.
    others = judged([*true[1:], true[0]], chosen)
    assert all(others[name].mean() < 0.4 for name in RIGHT)
    np.testing.assert_allclose(np.sort(others["clip_temp"]), np.sort(found["clip_temp"]), rtol=1e-5)


def test_frames_that_are_all_the_same_do_not_move_and_are_consistent(judged):
    chosen = cases(10)
    frozen = [np.repeat(draw(case.scene)[:1], 8, axis=0) for case in chosen]
    found = judged(frozen, chosen)
    np.testing.assert_allclose(found["clip_temp"], 1.0, rtol=1e-5)
    still = np.array([case.scene.motion == "" for case in chosen])
    assert np.mean(found["motion_accuracy"] == still) >= 0.8


def test_a_copied_reference_is_a_leak_unless_the_prompt_asks_for_its_content(judged):
    chosen, pictures = cases(40, pictures=True), references()
    found = judged([pictures[case.style][None] for case in chosen], chosen)
    same = np.array([case.scene.content == REFERENCE_CONTENTS[case.style] for case in chosen])
    assert found["content_leak"][same].sum() == 0
    assert found["content_leak"][~same].mean() > 0.8
    np.testing.assert_array_equal(found["style_retrieval_top1"], 1.0)


def test_pictures_have_neither_motion_nor_consistency(judged):
    chosen = cases(5, pictures=True)
    assert set(judged([draw(case.scene) for case in chosen], chosen)) == set(PICTURES)


def test_the_embedded_model_is_measured(run, tmp_path):
    ran = run("evaluate", "--demo", "--out", "o", "--count", 2, "--steps", 2, "--quiet")
    assert ran.status == 0 and ran.err == []
    assert ran.out == ["o/metrics.json", "o/sheet.png"]
    found = json.loads((tmp_path / "o" / "metrics.json").read_text())
    for name in (*WHOLE, *TRUE):
        assert 0.0 <= found[name] <= 1.0
        low, high = found["intervals"][name]
        assert low <= found[name] + 1e-6 and found[name] <= high + 1e-6
    assert [case["prompt"] for case in found["cases"]] == [case.prompt for case in cases(2)]
    assert found["notes"]["steps"] == 2 and found["notes"]["cache_interval"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--list", "l.json"), "--demo brings its own prompts and metrics; leave out --list"),
        (("--frames", 4), "the judges know frames, height, width (8, 64, 64)"),
        (("--count", 0), "--count and --batch-size must be at least 1, got 0"),
    ],
)
def test_what_contradicts_the_demo_is_refused(run, words, message):
    ran = run("evaluate", "--demo", "--out", "o", *words)
    assert ran.status == 1 and ran.out == []
    assert len(ran.err) == 1 and message in ran.err[0]


def test_without_the_demo_a_bundle_and_a_list_are_needed(run, tmp_path):
    ran = run("evaluate", "--out", "o")
    assert ran.status == 1
    assert ran.err == [
        "stylecrafter: error: wanted --bundle, or --demo for the demo world's own cases"
    ]
    ran = run("evaluate", "--bundle", "b", "--list", "l", "--count", 3, "--out", "o")
    assert ran.err == ["stylecrafter: error: --count is for --demo"]
