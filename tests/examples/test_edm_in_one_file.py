"""examples/edm_in_one_file.py, which imports nothing of edm_ray, equals edm_ray when given the same random numbers."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from edm_ray.config.presets import preset
from edm_ray.config.shape import DataShape
from edm_ray.data.codec import decode, encode
from edm_ray.data.importers.digits import load_digits
from edm_ray.diffusion.labels import one_hot_labels
from edm_ray.diffusion.samplers import Heun, sample
from edm_ray.evaluation.extractors.digits import DigitsClassifier
from edm_ray.evaluation.fid import frechet_distance
from edm_ray.evaluation.moments import Moments
from edm_ray.networks.build import build_denoiser
from edm_ray.seeding import image_noise, normal, stream_key
from edm_ray.training.device import Place
from edm_ray.training.loss import make_objective, share_loss
from edm_ray.training.state import TrainingState
from edm_ray.training.step import TrainingStep

FILE = Path(__file__).parents[2] / "examples" / "edm_in_one_file.py"
PRESET = preset("digits", DataShape(resolution=8, channels=1, num_classes=10))
BATCH, STEPS = 16, 5
CONFIG = dataclasses.replace(
    PRESET,
    denoiser=dataclasses.replace(
        PRESET.denoiser, preconditioning=dataclasses.replace(PRESET.denoiser.preconditioning, sigma_data=0.6)
    ),
    objective=dataclasses.replace(PRESET.objective, p_mean=-1.0, p_std=1.4),
    optimizer=dataclasses.replace(PRESET.optimizer, lr=3e-4, ramp_kimg=0.05),
    ema=dataclasses.replace(PRESET.ema, halflife_kimg=0.02, rampup_ratio=0.5),
    batch_size=BATCH,
)
"""Other constants than the example's own. Both ramps end within the steps: that of the rate at 50 images, that of the
half-life at 40."""
PIXELS, CLASSES = (torch.from_numpy(array) for array in load_digits())
IMAGES = decode(PIXELS)


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("edm_in_one_file", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def configured(example, monkeypatch):
    """The example with the constants of CONFIG."""
    adam, ema, objective = CONFIG.optimizer, CONFIG.ema, CONFIG.objective
    constants = {
        "sigma_data": CONFIG.denoiser.preconditioning.sigma_data,
        "P_mean": objective.p_mean,
        "P_std": objective.p_std,
        "learning_rate": adam.lr,
        "ramp_up": adam.ramp_kimg * 1000,
        "ema_halflife": ema.halflife_kimg * 1000,
        "ema_ramp_up": ema.rampup_ratio,
        "batch_size": CONFIG.batch_size,
    }
    for name, value in constants.items():
        assert hasattr(example, name)
        monkeypatch.setattr(example, name, value)
    return example


class InOrder:
    """Serves the product's training: position p is image p."""

    def at(self, positions, seed):
        return PIXELS[positions], CLASSES[positions]


@pytest.fixture(scope="module")
def shaken():
    """The product's denoiser where every layer matters: at the start and soon after, the last ones are nearly 0."""
    denoiser = build_denoiser(CONFIG.denoiser, CONFIG.seed).eval().requires_grad_(False)
    for layer, parameter in enumerate(denoiser.parameters()):
        noise = normal(stream_key("shaken", layer), torch.arange(1), parameter.numel())
        parameter += 0.03 * noise.reshape(parameter.shape)
    return denoiser


@pytest.fixture(scope="module")
def trained():
    """The product's denoiser and its average after STEPS steps, and the mean loss of each step."""
    state, losses = TrainingState(CONFIG, torch.device("cpu")), []
    step = TrainingStep(CONFIG, Place(), state)
    for _ in range(STEPS):
        step.take(InOrder())
        losses.append(step.tally.read(1)["loss"])
    return state.denoiser, state.average, losses


def keyed(nimg, images, labels):
    """What the product draws for the images from nimg on, as the example's training takes it."""
    where = torch.arange(nimg, nimg + BATCH)
    draw = normal(stream_key("sigma", CONFIG.seed), where, 1)[:, 0].float()
    noise = image_noise(where, "training noise", (1, 8, 8), CONFIG.seed)(0).float()
    return images[where], labels[where], draw, noise


def like(example, denoiser):
    """The example's denoiser with the product's parameters, which have the same names in the same order."""
    copied, parameters = example.Denoiser(example.UNet()), dict(denoiser.named_parameters())
    assert list(parameters) == [name for name, _ in copied.named_parameters()]
    copied.load_state_dict(parameters)
    return copied


def without_key_biases(module):
    """Parameters by name, without what the softmax does not see: their gradient is 0 but for rounding, of which Adam
    makes steps as large as any."""
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
    return {name: value.view(-1, 3)[:, ::2] if "qkv.bias" in name else value for name, value in parameters.items()}


def largest_gap(one, other):
    """Between the parameters of two modules."""
    one, other = without_key_biases(one), without_key_biases(other)
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_it_imports_nothing_of_the_product():
    lines = [line.split() for line in FILE.read_text().splitlines()]
    imported = {line[1].split(".")[0] for line in lines if line and line[0] in ("import", "from")}
    assert imported == {"copy", "math", "numpy", "torch", "PIL", "sklearn"}


def test_its_images_are_those_of_the_product_and_so_is_the_way_back_to_pixels(example):
    images, labels = example.load_images()
    assert torch.equal(images, IMAGES) and torch.equal(labels, CLASSES)
    beyond = torch.linspace(-1.1, 1.1, 4001)
    assert torch.equal(example.to_pixels(beyond), encode(beyond))


def test_its_constants_are_those_of_the_digits_preset(example):
    adam, ema, network = PRESET.optimizer, PRESET.ema, PRESET.denoiser.network
    assert (example.P_mean, example.P_std) == (PRESET.objective.p_mean, PRESET.objective.p_std)
    assert example.sigma_data == PRESET.denoiser.preconditioning.sigma_data
    assert (example.learning_rate, example.ramp_up) == (adam.lr, adam.ramp_kimg * 1000)
    assert (example.ema_halflife, example.ema_ramp_up) == (ema.halflife_kimg * 1000, ema.rampup_ratio)
    assert (example.batch_size, example.duration) == (PRESET.batch_size, PRESET.total_kimg * 1000)
    assert (network.dropout, PRESET.augment.probability) == (0, 0)


def test_a_seed_gives_the_weights_that_the_product_starts_from(example):
    network, theirs = example.UNet(), build_denoiser(CONFIG.denoiser, CONFIG.seed).model
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream_key("weights", CONFIG.seed) >> 1)
        example.initialize(network)
    assert largest_gap(network, theirs) < 1e-7


def test_the_network_is_that_of_the_product(example, shaken):
    """In float64, which leaves no room for another network."""
    theirs = copy.deepcopy(shaken).double()
    ours, labels = like(example, theirs).double(), torch.arange(20) % 10
    x, c_noise = image_noise(torch.arange(20), "latents", (1, 8, 8))(0), torch.linspace(-1.6, 1.1, 20).double()
    with torch.no_grad():
        expected = theirs.model(x, c_noise, one_hot_labels(labels, 10).double())
        assert float((ours.model(x, c_noise, labels) - expected).abs().max()) < 1e-12
    assert float(expected.std()) > 0.1


def test_the_denoiser_is_that_of_the_product_at_every_noise_level(configured, shaken):
    where = torch.arange(60)
    sigma = torch.logspace(math.log10(0.002), math.log10(80), 60, dtype=torch.float64)
    x = IMAGES[:60] + sigma[:, None, None, None] * image_noise(where, "latents", (1, 8, 8))(0)
    with torch.no_grad():
        ours = like(configured, shaken)(x, sigma, where % 10)
        theirs = shaken(x, sigma, one_hot_labels(where % 10, 10))
    assert torch.allclose(ours, theirs, rtol=1e-6, atol=2e-6)


def test_the_losses_are_those_of_the_product(configured, shaken):
    where, objective, here = np.arange(BATCH), make_objective(CONFIG), torch.device("cpu")
    with torch.no_grad():
        ours = configured.loss(like(configured, shaken), *keyed(0, IMAGES, CLASSES))
        theirs, _ = share_loss(shaken, objective, PIXELS[where], CLASSES[where], where, CONFIG, here)
    assert torch.allclose(ours, theirs, rtol=1e-6, atol=0)


def test_training_gives_the_losses_the_parameters_and_the_average_of_the_product(configured, trained):
    D, (denoiser, average, losses) = like(configured, build_denoiser(CONFIG.denoiser, CONFIG.seed)), trained
    our_average, our_losses = configured.train(D, IMAGES, CLASSES, STEPS * BATCH, keyed)
    assert our_losses == pytest.approx(losses, rel=1e-6)
    assert largest_gap(D, denoiser) < 1e-6 and largest_gap(our_average, average) < 1e-6
    assert largest_gap(D, our_average) > 1e-4


CHURN = {
    "no churn": {},
    "churn in a window": {"S_churn": 5, "S_tmin": 0.05, "S_tmax": 20, "S_noise": 1.007},
    "more churn than the cap": {"S_churn": 99, "S_noise": 1.003},
    "other time steps": {"N": 11, "sigma_min": 0.01, "sigma_max": 20, "rho": 3, "S_churn": 2},
}


@pytest.mark.parametrize("settings", CHURN.values(), ids=CHURN)
def test_algorithm_2_gives_the_samples_of_the_product(configured, shaken, settings):
    """To 1e-6 with the network, whose float32 rounds differently; to 1e-12 with a denoiser in float64."""
    seeds = torch.arange(6)
    latents, noise = image_noise(seeds, "latents", (1, 8, 8))(0), image_noise(seeds, "churn", (1, 8, 8))
    named = {"num_steps" if name == "N" else name.lower(): value for name, value in settings.items()}

    def ideal(x, sigma, labels):  # of normal data
        return x * 0.25 / (0.25 + sigma.reshape(-1, 1, 1, 1) ** 2)

    for ours, theirs, bound in ((ideal, ideal, 1e-12), (like(configured, shaken), shaken, 1e-6)):
        x = configured.stochastic_sampler(ours, latents, seeds, noise=noise, **settings)
        with torch.no_grad():
            expected = sample(theirs, latents, Heun(**named), one_hot_labels(seeds, 10), noise)
        assert float((x - expected).norm() / expected.norm()) < bound


def test_the_fid_is_that_of_the_product(example):
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(64, 64)) * np.linspace(0, 1, 64)
    sets = [np.rint(rng.normal(size=(n, 64)) @ mix * 2**10).astype(np.int32) for n in (300, 400)]
    sets[1] += 300
    ours = example.frechet_distance(*(features / 2**10 for features in sets))
    assert ours == pytest.approx(frechet_distance(*(Moments.of(part, "any", 10) for part in sets)), rel=1e-6)


def test_the_classifier_is_that_of_the_product(example):
    theirs, ours = DigitsClassifier(), example.Classifier()
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        assert torch.allclose(ours(PIXELS[:100]), theirs(PIXELS[:100]), atol=1e-6)
