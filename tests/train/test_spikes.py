"""What stands out, on losses whose spread is known."""

import json

import numpy as np
import pytest

from stylecrafter_jax.train.spikes import FEWEST, WINDOW, Spikes


@pytest.fixture
def losses():
    """Logarithms of mean 0 and deviation 1/4; of 2,000 none is 8 deviations away."""
    return np.exp(0.25 * np.random.default_rng(0).standard_normal(2000)).tolist()


def found(spikes, losses, source="a"):
    return [i for i, loss in enumerate(losses) if spikes.look(source, loss) is not None]


def test_noise_has_no_spikes_and_a_spike_is_found_with_its_size(losses):
    spikes = Spikes(8.0)
    assert found(spikes, losses) == []
    spike = spikes.look("a", float(np.exp(0.25 * 20)))
    # The deviation of a hundred values, by their median absolute deviation, is known to 20 %.
    assert spike is not None and 14 < spike.deviations < 28
    assert spike.median == pytest.approx(1.0, rel=0.15)


def test_spikes_do_not_hide_each_other(losses):
    high = [10.0 * loss if i % 10 == 7 else loss for i, loss in enumerate(losses[:400])]
    assert set(found(Spikes(5.0), high)) >= {i for i in range(40, 400) if i % 10 == 7}


def test_a_loss_that_stays_high_is_soon_no_spike(losses):
    raised = losses[:200] + [100.0 * loss for loss in losses[200:400]]
    spiked = found(Spikes(8.0), raised)
    assert spiked[0] == 200 and spiked[-1] < 200 + WINDOW


def test_sources_are_compared_with_themselves(losses):
    spikes = Spikes(8.0)
    assert found(spikes, losses[:200], "pictures") == []
    assert found(spikes, [50.0 * loss for loss in losses[:200]], "clips") == []
    assert spikes.look("pictures", 50.0) is not None


def test_few_losses_and_no_limit_find_nothing(losses):
    assert found(Spikes(8.0), losses[: FEWEST - 1] + [1e6]) == []
    assert found(Spikes(None), [*losses, 1e6]) == []
    assert found(Spikes(8.0), [0.5] * 50 + [0.505]) == []  # losses as close as that are alike


def test_what_is_found_does_not_depend_on_a_stop(losses):
    whole, first, second = Spikes(2.0), Spikes(2.0), Spikes(2.0)
    wanted = [whole.look("a", loss) for loss in losses[:300]]
    one = [first.look("a", loss) for loss in losses[:130]]
    second.set_state(json.loads(json.dumps(first.get_state())))
    assert one + [second.look("a", loss) for loss in losses[130:300]] == wanted
    assert any(wanted)
