"""The moving average of weights against its definition."""

import pytest
import torch
from torch import nn

from ddpm_hf.training.ema import EMA
from ddpm_hf.training.power_functions import exponent_of


def make_parameters(*values: float) -> list[nn.Parameter]:
    return [nn.Parameter(torch.full((2, 3), value)) for value in values]


def test_the_average_is_the_recurrence_of_its_docstring_in_float64(rng: torch.Generator) -> None:
    parameters = make_parameters(1.0, -2.0)
    ema = EMA(parameters, [0.8])
    expected = [p.detach().double() for p in parameters]
    for n in range(1, 60):
        for parameter in parameters:
            parameter.data = torch.randn(2, 3, generator=rng)
        ema.update()
        decay = min(0.8, (1 + n) / (10 + n))
        expected = [decay * e + (1 - decay) * p.detach().double() for e, p in zip(expected, parameters, strict=True)]
    assert ema.num_updates == 59
    for average, value in zip(ema.averages[0.8], expected, strict=True):
        torch.testing.assert_close(average.double(), value, rtol=0, atol=1e-6)


def test_the_warm_up_forgets_the_initial_weights() -> None:
    parameters = make_parameters(1000.0)
    ema = EMA(parameters, [0.9999])
    parameters[0].data.zero_()
    for _ in range(200):
        ema.update()
    assert ema.averages[0.9999][0].abs().max() < 1e-6  # 0.9999 ** 200 alone would leave 980 of the 1000


def test_an_update_moves_the_averages_in_place_and_leaves_the_parameters() -> None:
    parameters = make_parameters(3.0)
    ema = EMA(parameters, [0.5])
    storage = ema.averages[0.5][0].data_ptr()
    parameters[0].data.fill_(5.0)
    ema.update()
    assert ema.averages[0.5][0].data_ptr() == storage
    assert torch.equal(parameters[0], torch.full((2, 3), 5.0))


def test_averaged_weights_are_in_the_network_within_the_context_and_out_of_it_after(rng: torch.Generator) -> None:
    network = nn.Linear(4, 4)
    ema = EMA(network.parameters(), [0.9])
    with torch.no_grad():
        network.weight.copy_(torch.randn(4, 4, generator=rng))
    ema.update()
    weights, averages = network.weight.detach().clone(), ema.averages[0.9][0].clone()
    assert not torch.equal(weights, averages)
    with ema.averaged_weights():
        assert torch.equal(network.weight, averages)
    assert torch.equal(network.weight, weights)
    assert torch.equal(ema.averages[0.9][0], averages)


def test_several_decays_are_averaged_at_once(rng: torch.Generator) -> None:
    parameters = make_parameters(1.0, -2.0)
    both, alone = EMA(parameters, [0.9, 0.3]), EMA(parameters, [0.3])
    for _ in range(30):
        for parameter in parameters:
            parameter.data = torch.randn(2, 3, generator=rng)
        both.update()
        alone.update()
    for a, b in zip(both.averages[0.3], alone.averages[0.3], strict=True):
        assert torch.equal(a, b)
    with both.averaged_weights(0.3):
        assert torch.equal(parameters[0], alone.averages[0.3][0])
    assert both.decay_now(0.9) == 31 / 40
    assert both.decay_now(0.3) == 0.3


def test_an_average_of_a_relative_length_is_the_integral_of_its_profile(rng: torch.Generator) -> None:
    """Over weights that are constant from one update to the next; the initial ones are not in it."""
    parameters, updates = make_parameters(1000.0), 50
    ema, past = EMA(parameters, [0.9], [0.05, 0.2]), []
    for _ in range(updates):
        parameters[0].data = torch.randn(2, 3, generator=rng)
        past.append(parameters[0].data.double())
        ema.update()
    for length, [average] in ema.by_length.items():
        powers = (torch.arange(updates + 1, dtype=torch.float64) / updates) ** (exponent_of(length) + 1)
        expected = sum(share * weights for share, weights in zip(powers.diff(), past, strict=True))
        torch.testing.assert_close(average.double(), expected, rtol=0, atol=1e-6)


def test_what_cannot_be_averaged_is_refused() -> None:
    with pytest.raises(ValueError, match=r"decay of the average is 1\.0 and must be"):
        EMA(make_parameters(1.0), [1.0])
    with pytest.raises(ValueError, match=r"sigma_rel is 0\.3 and must be from"):
        EMA(make_parameters(1.0), [0.9], [0.3])
