"""The sampler against closed forms, against the published schedule and against diffusers' scheduler."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from models.sampler import euler, flow_sigmas, guided_velocity, sample, seeded_noise
from models.text_encoders import TextEmbedding

SHAPE = (16, 3, 4, 6)


def embedding(batch: int, dtype: torch.dtype = torch.float32, value: float = 1.0) -> TextEmbedding:
    return TextEmbedding(torch.full((batch, 5, 8), value, dtype=dtype), torch.full((batch, 4), value, dtype=dtype))


def pulled_to_text(hidden_states, encoder_hidden_states, pooled_projections, timestep):
    """A stand-in whose flow leads to the mean of the text's tokens: v = (x - text) / sigma."""
    data = encoder_hidden_states.mean((1, 2)).view(-1, 1, 1, 1, 1)
    return (hidden_states - data) / (timestep.view(-1, 1, 1, 1, 1) / 1000)


def test_published_schedule_of_50_steps_at_shift_17():
    sigmas = flow_sigmas(50, 17.0)
    assert sigmas.dtype == torch.float32 and sigmas.shape == (51,)
    golden = [1, 0.998801, 0.997555, 0.944444, 0.414634, 0.257576, 0]
    np.testing.assert_allclose(sigmas[[0, 1, 2, 25, 48, 49, 50]], golden, atol=5e-7)


def test_the_shift_is_applied_once():
    assert flow_sigmas(50, 17.0)[49].item() == pytest.approx(0.257576, abs=1e-6)  # shifted twice: 0.224379


def test_without_a_shift_the_steps_are_even():
    np.testing.assert_allclose(flow_sigmas(4, 1.0), [1, 0.75, 0.5, 0.25, 0])


@pytest.mark.parametrize("steps, shift", [(0, 17.0), (50, 0.0), (50, -1.0)])
def test_no_steps_or_no_shift_is_an_error(steps, shift):
    with pytest.raises(ValueError, match="at least one step and a positive shift"):
        flow_sigmas(steps, shift)


def gaussian_error(steps: int, shift: float) -> float:
    """Largest error at sigma 0 for data that are N(0.7, 0.3^2), whose flow has a closed form.

    The marginal at sigma is N((1 - sigma) m, v) with v = (1 - sigma)^2 s^2 + sigma^2, the velocity
    -m + v' / (2 v) * (x - (1 - sigma) m), and noise z arrives at m + s z.
    """
    mean, std = 0.7, 0.3

    def velocity(x, sigma):
        variance = (1 - sigma) ** 2 * std**2 + sigma**2
        slope = (sigma - (1 - sigma) * std**2) / variance
        return -mean + slope * (x - (1 - sigma) * mean)

    noise = seeded_noise(SHAPE, [3])
    return (euler(velocity, noise, flow_sigmas(steps, shift)) - (mean + std * noise)).abs().max().item()


@pytest.mark.parametrize("shift", [1.0, 17.0])
def test_the_error_on_gaussian_data_falls_first_order_with_the_steps(shift):
    errors = [gaussian_error(steps, shift) for steps in (400, 800, 1600)]
    assert errors[0] < 0.1
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(2.0, rel=0.08)


def test_to_a_single_point_the_path_is_straight_and_one_step_arrives():
    text = embedding(1, value=-0.4)
    for steps in (1, 7):
        latents = sample(pulled_to_text, text, None, SHAPE, seeds=[0], steps=steps, guidance=1.0)
        torch.testing.assert_close(latents, torch.full((1, *SHAPE), -0.4))


def test_same_trajectory_as_diffusers_when_sigmas_are_handed_in():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=17.0)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.0, 21)[:-1])
    torch.testing.assert_close(flow_sigmas(20, 17.0), scheduler.sigmas, rtol=0, atol=1e-6)

    theirs = seeded_noise(SHAPE, [5])
    times = []

    def velocity(x, sigma):
        times.append(1000 * sigma)
        return torch.sin(3 * x) + sigma * x

    ours = euler(velocity, theirs, flow_sigmas(20, 17.0))
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        theirs = scheduler.step(torch.sin(3 * theirs) + sigma * theirs, timestep, theirs).prev_sample
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-5)
    torch.testing.assert_close(torch.stack(times), scheduler.timesteps, rtol=0, atol=1e-3)


def test_guidance_goes_from_the_unconditional_past_the_conditional():
    text, negative = embedding(1, value=2.0), embedding(1, value=0.5)
    noise = seeded_noise(SHAPE, [1])
    sigma = torch.tensor(0.5)
    guided = guided_velocity(pulled_to_text, noise, sigma, text, negative, 6.0)
    conditional, unconditional = ((noise - value) / 0.5 for value in (2.0, 0.5))
    torch.testing.assert_close(guided, unconditional + 6 * (conditional - unconditional))


@pytest.mark.parametrize("guidance, passes", [(1.0, 1), (6.0, 2), (0.0, 2)])
def test_guidance_1_costs_no_unconditional_pass(guidance, passes):
    seen = []

    def transformer(**inputs):
        seen.append(inputs["encoder_hidden_states"])
        return pulled_to_text(**inputs)

    sample(transformer, embedding(1), embedding(1, value=0.0), SHAPE, seeds=[0], steps=3, guidance=guidance)
    assert len(seen) == 3 * passes


def test_a_bfloat16_transformer_reads_exact_times_and_leaves_the_latents_float32():
    times = []

    def transformer(**inputs):
        assert inputs["hidden_states"].dtype == torch.bfloat16
        times.append(inputs["timestep"])
        return inputs["hidden_states"] * 0

    latents = sample(
        transformer, embedding(2, torch.bfloat16), None, SHAPE, seeds=[7, 8], steps=50, shift=17.0, guidance=1.0
    )
    assert latents.dtype == torch.float32
    assert torch.equal(latents, seeded_noise(SHAPE, [7, 8]))  # no rounding on the way
    assert times[1].shape == (2,) and times[1].dtype == torch.float32
    assert times[1][0].item() == pytest.approx(998.801, abs=1e-3)  # bfloat16 would make 1000 of it


def test_noise_depends_on_the_seed_alone():
    together = seeded_noise(SHAPE, [11, 12, 11])
    assert torch.equal(together[1], seeded_noise(SHAPE, [12])[0])
    assert torch.equal(together[0], together[2])
    assert not torch.equal(together[0], together[1])
    torch.manual_seed(0)
    assert torch.equal(together, seeded_noise(SHAPE, [11, 12, 11]))


def test_a_sample_does_not_depend_on_its_batch():
    text = TextEmbedding(torch.randn(2, 5, 8), torch.randn(2, 4))
    both = sample(pulled_to_text, text, embedding(1, value=0.0), SHAPE, seeds=[3, 4], steps=5)
    for row, seed in enumerate((3, 4)):
        own = TextEmbedding(text.tokens[row : row + 1], text.pooled[row : row + 1])
        alone = sample(pulled_to_text, own, embedding(1, value=0.0), SHAPE, seeds=[seed], steps=5)
        torch.testing.assert_close(both[row : row + 1], alone)


def test_progress_is_told_after_each_step():
    told = []
    sample(
        pulled_to_text,
        embedding(1),
        None,
        SHAPE,
        seeds=[0],
        steps=3,
        guidance=1.0,
        progress=lambda done, of: told.append((done, of)),
    )
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_batches_that_do_not_agree_are_errors():
    with pytest.raises(ValueError, match="2 prompts and 1 seeds"):
        sample(pulled_to_text, embedding(2), None, SHAPE, seeds=[0], guidance=1.0)
    with pytest.raises(ValueError, match="2 negative prompts for 3 prompts"):
        sample(pulled_to_text, embedding(3), embedding(2), SHAPE, seeds=[0, 1, 2])
    with pytest.raises(ValueError, match="needs the embedding of a negative prompt"):
        sample(pulled_to_text, embedding(1), None, SHAPE, seeds=[0], steps=1)
