import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stylecrafter_jax.diffusion.guidance import Guidance, branches, combine, guided, weights


def outputs(*names):
    rows = {"full": 0, "text": 1, "uncond": 2}
    return {name: jax.random.normal(jax.random.key(rows[name]), (2, 4, 3)) for name in names}


HALF = jnp.full((2,), 0.5)
ALL = ("full", "text", "uncond")


def test_released_rule_is_the_programs():
    e = outputs(*ALL)
    found = combine(Guidance(text=15.0, style=7.5), e, HALF)
    wanted = e["full"] + 7.5 * (e["full"] - e["text"]) + 15.0 * (e["text"] - e["uncond"])
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_paper_rule_is_equation_2():
    e = outputs(*ALL)
    found = combine(Guidance(text=7.5, style=5.0, convention="paper"), e, HALF)
    wanted = e["uncond"] + 5.0 * (e["full"] - e["text"]) + 7.5 * (e["text"] - e["uncond"])
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_ordinary_rule_has_one_weight():
    e = outputs("full", "uncond")
    found = combine(Guidance(text=6.0, style=None), e, HALF)
    np.testing.assert_allclose(found, e["uncond"] + 6.0 * (e["full"] - e["uncond"]), atol=1e-5)


@pytest.mark.parametrize("styled", [True, False])
@pytest.mark.parametrize(("text", "style"), [(15.0, 7.5), (0.0, 0.0), (3.0, -1.0)])
def test_released_weights_are_the_papers_less_one(text, style, styled):
    released = weights(Guidance(text=text, style=style), styled)
    paper = Guidance(text=text + 1.0, style=style + 1.0, convention="paper")
    assert released == weights(paper, styled)
    assert sum(released.values()) == 1.0


@pytest.mark.parametrize("convention", ["released", "paper"])
def test_without_style_the_three_way_rule_is_the_one_with_equal_branches(convention):
    guidance = Guidance(text=9.0, style=4.0, convention=convention)
    e = outputs("full", "uncond")
    unstyled = combine(guidance, e, HALF)
    np.testing.assert_allclose(
        unstyled, combine(guidance, e | {"text": e["full"]}, HALF), atol=1e-5
    )
    ordinary = Guidance(text=10.0 if convention == "released" else 9.0, style=None)
    np.testing.assert_allclose(unstyled, combine(ordinary, e, HALF), atol=1e-5)


@pytest.mark.parametrize(
    ("guidance", "styled", "wanted"),
    [
        (Guidance(text=15.0, style=7.5), True, ALL),
        (Guidance(text=15.0, style=7.5), False, ("full", "uncond")),
        (Guidance(text=5.0, style=5.0), True, ("full", "uncond")),
        (Guidance(text=0.0, style=2.0), True, ("full", "text")),
        (Guidance(text=0.0, style=0.0), True, ("full",)),
        (Guidance(text=7.5, style=0.0, convention="paper"), True, ("text", "uncond")),
        (Guidance(text=7.5, style=0.0, convention="paper", rescale=0.7), True, ALL),
        (Guidance(text=6.0), True, ("full", "uncond")),
        (Guidance(text=1.0), True, ("full",)),
        (Guidance(text=0.0), True, ("uncond",)),
        (Guidance(text=0.0, interval=(0.0, 0.5)), True, ("full", "uncond")),
    ],
)
def test_only_the_needed_branches_run(guidance, styled, wanted):
    assert branches(guidance, styled) == wanted


def test_full_rescaling_gives_the_spread_of_the_full_branch():
    e = outputs(*ALL)
    found = combine(Guidance(text=15.0, style=7.5, rescale=1.0), e, HALF)
    np.testing.assert_allclose(
        np.std(found, axis=(1, 2)), np.std(e["full"], axis=(1, 2)), rtol=1e-5
    )
    plain = combine(Guidance(text=15.0, style=7.5), e, HALF)
    part = combine(Guidance(text=15.0, style=7.5, rescale=0.7), e, HALF)
    np.testing.assert_allclose(part, 0.7 * found + 0.3 * plain, atol=1e-4)


def test_outside_its_interval_guidance_takes_the_full_branch_of_each_sample():
    e = outputs(*ALL)
    guidance = Guidance(text=15.0, style=7.5, interval=(0.2, 0.8))
    found = combine(guidance, e, jnp.array([0.5, 0.9]))
    always = combine(Guidance(text=15.0, style=7.5), e, HALF)
    np.testing.assert_allclose(found[0], always[0], rtol=1e-6)
    np.testing.assert_array_equal(found[1], e["full"][1])


def test_branches_are_one_call_with_the_styled_rows_first():
    calls = []
    bias = {"full": 1.0, "text": 2.0, "uncond": 3.0}

    def denoise_branches(x, t, names):
        calls.append((x.shape, t.shape, names))
        outputs = [x + t[:, None] + bias[name] for name in names]
        return jnp.concatenate(outputs).astype(jnp.bfloat16)

    denoise = guided(denoise_branches, Guidance(text=2.0, style=3.0), True, timesteps=1000)
    x = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    out = denoise(x, jnp.array([0.0, 8.0]))
    assert calls == [((2, 2), (2,), ALL)]
    assert out.dtype == jnp.float32
    # full + 3 (full - text) + 2 (text - uncond) = x + t + 1 - 3 - 2
    np.testing.assert_allclose(out, [[-3.0, -2.0], [7.0, 8.0]])


@pytest.mark.parametrize(("t", "rows"), [(500.0, 2), (900.0, 1), (100.0, 1), (200.0, 2)])
def test_outside_the_interval_one_branch_runs(t, rows):
    guidance = Guidance(text=6.0, style=None, interval=(0.2, 0.8))

    def denoise_branches(x, t, names):
        jax.debug.callback(lambda: seen.append(len(names)))
        return jnp.tile(x, (len(names), 1))

    seen = []
    denoise = jax.jit(guided(denoise_branches, guidance, False, timesteps=1000))
    jax.block_until_ready(denoise(jnp.ones((3, 2)), jnp.full((3,), t)))
    jax.effects_barrier()
    assert seen == [rows]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text": float("nan")}, "text must be finite"),
        ({"text": 1.0, "style": float("inf")}, "style must be finite"),
        ({"text": 1.0, "rescale": 1.5}, "rescale"),
        ({"text": 1.0, "interval": (0.8, 0.2)}, "interval"),
        ({"text": 1.0, "interval": (0.0, 2.0)}, "interval"),
    ],
)
def test_impossible_guidance_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Guidance(**settings)


def test_outputs_must_be_the_branches():
    with pytest.raises(ValueError, match="uncond"):
        combine(Guidance(text=15.0, style=7.5), outputs("full", "text"), HALF)
    with pytest.raises(ValueError, match="text"):
        combine(Guidance(text=6.0), outputs(*ALL), HALF)
