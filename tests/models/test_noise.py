"""Noise processes: golden numbers of the public training code, closed forms, and how levels are drawn."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import CogVideoXDPMScheduler
from safetensors.torch import load_file

from physcli.errors import UsageError
from physcli.methods.lamo import drift_weight
from physcli.models.noise import Density, EpsilonPrediction, FlowMatching, NoiseLevel, VPrediction, shifted

GOLDEN = Path(__file__).parents[1] / "golden" / "cogvideox_objective"


def schedule(version: str) -> torch.Tensor:
    info = json.loads((GOLDEN / f"{version}.json").read_text())
    return CogVideoXDPMScheduler(**info["scheduler_config"]).alphas_cumprod


@pytest.fixture(scope="module", params=["2b", "5b"])
def golden(request):
    return VPrediction(schedule(request.param)), load_file(GOLDEN / f"{request.param}_case.safetensors")


PROCESSES = {
    "v-2b": lambda: VPrediction(schedule("2b")),
    "v-5b": lambda: VPrediction(schedule("5b")),
    "epsilon": lambda: EpsilonPrediction(schedule("2b")),
    "flow": FlowMatching,
}


@pytest.fixture(params=PROCESSES)
def process(request):
    return PROCESSES[request.param]()


# -- golden numbers ----------------------------------------------------------------------------------------------


def test_noising_and_target(golden):
    noise, case = golden
    torch.testing.assert_close(noise.alphas_cumprod, case["alphas_cumprod"], atol=1e-12, rtol=0)
    level = noise.of_time(case["timesteps"])
    noisy = noise.add_noise(case["x0"], case["noise"], level)
    target = noise.target(case["x0"], case["noise"], level)
    torch.testing.assert_close(noisy, case["noisy_latents"], atol=1e-6, rtol=0)
    torch.testing.assert_close(target, case["v_target"], atol=1e-6, rtol=0)


# -- the equations in closed form --------------------------------------------------------------------------------


def test_bfloat16_latents_are_noised_in_float32(golden):
    process, case = golden
    latents, noise = case["x0"][:1].bfloat16(), case["noise"][:1].bfloat16()
    noisy = process.add_noise(latents, noise, process.of_time(torch.tensor([0])))
    expected = (1 - process.alphas_cumprod[0]).sqrt().float() * noise.float()
    assert noisy.dtype == torch.float32
    residual = noisy - process.alphas_cumprod[0].sqrt().float() * latents.float()
    torch.testing.assert_close(residual, expected, atol=1e-6, rtol=1e-4)
    assert residual.abs().max() > 0.01


@pytest.mark.parametrize("timestep", [0, 500, 999])
def test_a_perfect_prediction_gives_back_the_clean_latents(golden, timestep):
    process, case = golden
    level = process.of_time(torch.full((2,), timestep))
    noisy = process.add_noise(case["x0"], case["noise"], level)
    target = process.target(case["x0"], case["noise"], level)
    torch.testing.assert_close(process.clean(target, noisy, level), case["x0"], atol=2e-6, rtol=0)


@pytest.mark.parametrize("seed", range(5))
def test_the_clean_latents_come_back_at_every_level(process, seed):
    """Of the target: x̂0 is x0, whatever was drawn."""
    draw = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    times = torch.stack([process.draw(rng, Density("sigmas")) for _ in range(60)])
    clean, noise = torch.randn(2, 60, 3, 4, 2, 2, generator=draw).unbind()
    level = process.of_time(times)
    noisy, target = process.add_noise(clean, noise, level), process.target(clean, noise, level)
    assert noisy.dtype == target.dtype == torch.float32
    found = process.clean(target, noisy, level)
    # Dividing by a multiplies what float32 rounds away.
    bound = 1e-6 / level.signal if process.prediction == "epsilon" else torch.full((60,), 2e-6)
    known = level.signal > 1e-3
    error = (found - clean).abs().amax(dim=(1, 2, 3, 4))
    assert known.sum() > 50
    assert (error <= 3 * bound)[known].all()


def test_x0_moves_with_the_output_in_a_straight_line(process):
    """By −b under v-prediction and in a flow, by −b/a where the noise is predicted."""
    draw = torch.Generator().manual_seed(0)
    noisy, output, change = torch.randn(3, 2, 3, 4, 2, 2, generator=draw).unbind()
    level = process.of_time(torch.tensor([100, 700]))
    factor = -level.sigma / (level.signal if process.prediction == "epsilon" else 1)
    found = process.clean(output + change, noisy, level) - process.clean(output, noisy, level)
    torch.testing.assert_close(found, factor.float().reshape(2, 1, 1, 1, 1) * change, atol=1e-5, rtol=1e-4)


def test_a_flow_by_hand():
    process, level = FlowMatching(), FlowMatching().of_time(torch.tensor([250.0]))
    clean, noise = torch.full((1, 1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1, 1), -2.0)
    assert process.add_noise(clean, noise, level).item() == 0.75 * 2 - 0.25 * 2
    assert process.target(clean, noise, level).item() == -4
    assert process.clean(torch.full_like(clean, 8.0), clean, level).item() == 2 - 0.25 * 8


# -- levels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.3, 0.77, 1.0])
def test_the_nearest_level(golden, sigma):
    process, _ = golden
    sigmas = (1 - process.alphas_cumprod).sqrt()
    level = process.at(sigma)
    assert abs(float(level.sigma) - sigma) == pytest.approx(float((sigmas - sigma).abs().min()), abs=1e-15)
    assert float(level.sigma) == pytest.approx(float(sigmas[level.time]))
    assert float(level.snr) == pytest.approx(float((1 - level.sigma**2) / level.sigma**2), abs=1e-9)
    if sigma == 1.0:
        assert (level.time.item(), level.snr.item()) == (999, 0.0)


@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.3, 0.77, 1.0])
def test_a_flow_has_every_level(sigma):
    level = FlowMatching().at(sigma)
    assert (level.sigma.item(), level.signal.item()) == (sigma, 1 - sigma)
    assert level.time.dtype == torch.float32
    assert level.time.item() == pytest.approx(1000 * sigma)


@pytest.mark.parametrize("sigma", [-0.1, 1.5, float("nan")])
def test_sigma_out_of_range(process, sigma):
    with pytest.raises(UsageError, match=r"noise level σ .* out of range"):
        process.at(sigma)


@pytest.mark.parametrize("ratio", [0.01, 1.0, 5.4, 100.0])
def test_a_level_by_its_signal_to_noise_ratio(process, ratio):
    assert process.at_snr(ratio).snr.item() == pytest.approx(ratio, rel=0.07)  # the nearest of a table, to σ
    assert process.at_snr(0).sigma.item() == pytest.approx(1, abs=1e-6)
    for wrong in (-1.0, float("nan")):
        with pytest.raises(UsageError, match=r"signal-to-noise ratio .* out of range"):
            process.at_snr(wrong)


def test_equal_sigma_is_unlike_noise():
    assert VPrediction(schedule("2b")).at(0.3).snr.item() == pytest.approx(10.1, abs=0.2)
    assert FlowMatching().at(0.3).snr.item() == pytest.approx(5.44, abs=0.01)


def test_times_that_cannot_be():
    table, flow = VPrediction(schedule("2b")), FlowMatching()
    for wrong in (torch.tensor([1000]), torch.tensor([-1]), torch.tensor([0.5])):
        with pytest.raises(ValueError, match=r"timesteps must be integers in 0..999, got"):
            table.of_time(wrong)
    for wrong in (torch.tensor([-0.1]), torch.tensor([1000.5])):
        with pytest.raises(ValueError, match=r"times must lie in 0..1000, got"):
            flow.of_time(wrong)


def test_one_level_for_many_clips(process):
    level = process.at(0.4)
    many = level.expand(3)
    assert isinstance(many, NoiseLevel)
    assert all(torch.equal(part, one.repeat(3)) for part, one in zip(many, level, strict=True))


# -- drawing -----------------------------------------------------------------------------------------------------


def test_timesteps_and_sigmas_are_drawn_as_ever(golden):
    """Bit for bit: runs that were begun before go on with the same noise."""
    process, _ = golden
    sigmas = (1 - process.alphas_cumprod).sqrt()
    for seed in range(300):
        drawn = process.draw(np.random.default_rng(seed), Density())
        assert (drawn.dtype, drawn.shape) == (torch.int64, ())
        assert drawn.item() == int(np.random.default_rng(seed).integers(1000))
        nearest = int((sigmas - float(np.random.default_rng(seed).random())).abs().argmin())
        assert process.draw(np.random.default_rng(seed), Density("sigmas")).item() == nearest
    numbers = process.draw_uniform(np.random.default_rng(0), 500)
    assert torch.equal(numbers, torch.from_numpy(np.random.default_rng(0).integers(1000, size=500)))
    assert [process.spread(number).item() for number in (0, 7, 999, 1000, 2345)] == [0, 7, 999, 0, 345]


COUNT = 4_000
EDGES = (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)


def share_below(density: Density, sigma: float) -> float:
    """How many draws should lie below a σ: shift and sigmoid are undone one after the other."""
    sigma = sigma / (density.shift - (density.shift - 1) * sigma)
    if density.kind != "logit-normal":
        return sigma
    normal = (math.log(sigma / (1 - sigma)) - density.mean) / density.std
    return (1 + math.erf(normal / math.sqrt(2))) / 2


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
@pytest.mark.parametrize(
    "density", [{"kind": "sigmas"}, {"kind": "logit-normal"}, {"kind": "logit-normal", "mean": -0.6, "std": 1.4}]
)
@pytest.mark.parametrize("name", ["v-2b", "flow"])
def test_draws_are_distributed_as_they_should(name, density, shift):
    process, density = PROCESSES[name](), Density(**density, shift=shift)
    rng = np.random.default_rng(0)
    drawn = process.of_time(torch.stack([process.draw(rng, density) for _ in range(COUNT)])).sigma
    for edge in EDGES:
        if name == "v-2b":  # the nearest level of a table: what is told apart lies half-way between two
            number = process.at(edge).time
            edge = float(process.of_time(torch.cat([number, number + 1])).sigma.mean())
        share = share_below(density, edge)
        # A share of n draws is within four of its standard errors.
        allowed = 4 * math.sqrt(share * (1 - share) / COUNT)
        assert abs(float((drawn <= edge).double().mean()) - share) <= allowed, edge


def test_timesteps_of_a_flow_are_uniform():
    rng = np.random.default_rng(0)
    drawn = FlowMatching().of_time(torch.stack([FlowMatching().draw(rng, Density()) for _ in range(COUNT)])).sigma
    shares = np.array(EDGES)
    assert np.abs(np.quantile(drawn.numpy(), shares) - shares).max() < 0.03
    spread = torch.stack([FlowMatching().spread(number) for number in range(1000)])
    torch.testing.assert_close(spread, torch.arange(1000) + 0.5)


def test_shift_by_hand():
    assert [shifted(sigma, 3.0) for sigma in (0.0, 0.5, 1.0)] == [0, 0.75, 1]
    assert [shifted(sigma, 1.0) for sigma in (0.0, 0.3, 1.0)] == [0, 0.3, 1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "cosine"}, "kind must be one of timesteps, sigmas, logit-normal, got 'cosine'"),
        ({"std": 0.0}, "std and shift must be positive, got 0.0 and 1.0"),
        ({"shift": -1.0}, "std and shift must be positive, got 1.0 and -1.0"),
    ],
)
def test_densities_that_cannot_be(options, said):
    with pytest.raises(ValueError, match=said):
        Density(**options)


# -- what LaMo's drift loss is weighted by -----------------------------------------------------------------------


@pytest.mark.parametrize("version", ["2b", "5b"])
def test_drift_weights_are_those_of_ever(version):
    """Bit for bit at all timesteps: 1 − (t/T)², and ᾱ_t."""
    process = VPrediction(schedule(version))
    timesteps = torch.arange(1000)
    level, time = process.of_time(timesteps), timesteps.double() / 1000
    released = drift_weight(time, level.signal, level.sigma, per_sample=True)
    assert torch.equal(released, (1 - (timesteps.double() / 1000).square()).clamp_min(0).float())
    abar = drift_weight(time, level.signal, level.sigma, reading="abar", per_sample=True)
    assert torch.equal(abar, process.alphas_cumprod.float())
    snr = drift_weight(time, level.signal, level.sigma, reading="snr", per_sample=True)
    torch.testing.assert_close(snr, abar, atol=1e-7, rtol=1e-6)


def test_drift_weights_of_a_flow():
    level = FlowMatching().of_time(torch.tensor([0.0, 250.0, 1000.0]))
    weights = {
        reading: drift_weight(level.sigma, level.signal, level.sigma, reading=reading, per_sample=True).tolist()
        for reading in ("released", "abar", "snr")
    }
    assert weights["released"] == pytest.approx([1, 1 - 0.0625, 0])
    assert weights["abar"] == pytest.approx([1, 0.5625, 0])
    assert weights["snr"] == pytest.approx([1, 0.9, 0])
