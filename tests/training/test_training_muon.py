"""Muon: what its step is, and what it can train."""

from pathlib import Path

import pytest
import torch
from ml_collections import ConfigDict

from data import ImageDataset
from experiment.config import load_config
from training.build import build_state
from training.losses.critic import Critic
from training.optimizers import MuonWithAdamW, build_optimizer
from training.optimizers.muon import orthogonalized

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {"lr": 3e-3, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}


def _after_steps(make):
    """The moves of two matrices and a vector in three steps of gradients that are far from singular."""
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in ((40, 6), (3, 40), (5,))]
    weights = [torch.nn.Parameter(one.clone()) for one in start]
    optimizers = make(weights[:2], weights[2:])
    for _ in range(3):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator)
        for optimizer in optimizers:
            optimizer.step()
    return [weight.detach() - old for weight, old in zip(weights, start, strict=True)]


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this version of PyTorch has no Muon")
def test_steps_are_those_of_torch_but_for_its_bf16():
    def theirs(matrices, others):
        muon = torch.optim.Muon(matrices, lr=3e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        return muon, torch.optim.AdamW(others, **SETTINGS)

    ours = _after_steps(lambda matrices, others: [MuonWithAdamW(matrices, others, **SETTINGS)])
    for moved, expected in zip(ours, _after_steps(theirs), strict=True):
        assert float((moved - expected).norm() / expected.norm()) < 0.04


def test_singular_vectors_stay_and_singular_values_go_through_the_quintic():
    generator = torch.Generator().manual_seed(0)
    for shape in ((2, 5, 8), (2, 8, 5)):
        matrices = torch.randn(shape, dtype=torch.float64, generator=generator)
        u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
        value = s / s.norm(dim=1, keepdim=True)
        for _ in range(5):
            value = 3.4445 * value - 4.7750 * value**3 + 2.0315 * value**5
        torch.testing.assert_close(orthogonalized(matrices), u @ torch.diag_embed(value) @ vh, rtol=1e-9, atol=1e-9)
        assert float(value.min()) > 0.6 and float(value.max()) < 1.3


def test_the_first_step_is_as_large_as_adamws():
    # a momentum of full rank: singular values near 1, over sqrt(max(m, n)), times 0.2 sqrt(max(m, n)) lr
    weight = torch.nn.Parameter(torch.zeros(32, 64))
    optimizer = MuonWithAdamW([weight], [torch.nn.Parameter(torch.zeros(1))], **SETTINGS | {"lr": 1.0})
    weight.grad = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    root = float(weight.detach().square().mean().sqrt())
    assert 0.2 * 0.7 * (32 / 64) ** 0.5 * (64 / 32) ** 0.5 < root < 0.2 * 1.2
    torch.testing.assert_close(optimizer.state[weight]["momentum_buffer"], 0.05 * weight.grad)


def _config(*extra: str, path: str = "configs/dit/digits.py") -> ConfigDict:
    return load_config(str(ROOT / path), [f"--config.{setting}" for setting in ("optim.name=muon", *extra)])


def _state(config: ConfigDict):
    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    dataset = ImageDataset(images, torch.arange(4), 17, 10, "digits", "train")
    return build_state(config, dataset.kind, torch.device("cpu"))


def test_a_transformer_is_trained_by_muon_within_its_blocks_and_saved_with_its_momentum(tmp_path: Path):
    config = _config("optim.weight_decay=0.1")
    state = _state(config)
    names = {id(weight): name for name, weight in state.model.backbone.named_parameters()}
    matrices, *others = state.optimizer.param_groups
    found = {names[id(weight)].split(".", 2)[2] for weight in matrices["params"]}
    assert found == {"attention.qkv.weight", "attention.proj.weight", "linear1.weight", "linear2.weight"}
    count = sum(len(group["params"]) for group in (matrices, *others))
    assert count == len(names) == len(list(state.model.parameters()))
    generator = torch.Generator().manual_seed(0)
    for weight in state.model.parameters():
        weight.grad = torch.randn(weight.shape, generator=generator)
    state.optimizer.step()
    state.step = 1
    state.save(tmp_path, keep=1)
    other = _state(config)
    assert other.restore(tmp_path)
    for one in (state, other):
        for weight in one.model.parameters():
            weight.grad = torch.ones_like(weight)
        one.optimizer.step()
    for one, two in zip(state.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_learned_schedule_is_trained_beside_and_does_not_decay():
    config = _config("optim.weight_decay=0.1")
    config.sde = load_config(str(ROOT / "configs/vp/mnist_vdm.py"), []).sde
    config.training.loss, config.model.time_input = "vlb_continuous", "log_snr"
    state = _state(config)
    groups = state.optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.1, 0.0]
    assert {id(one) for one in groups[2]["params"]} == {id(one) for one in state.model.sde.parameters()}
    assert sum(len(group["params"]) for group in groups) == len(list(state.model.parameters()))


@pytest.mark.parametrize(("path", "backbone"), [("vp/digits", "unet"), ("latent/digits_autoencoder", "autoencoder")])
def test_networks_without_such_matrices_are_refused(path: str, backbone: str):
    with pytest.raises(ValueError, match=f"'muon' is of backbones dit and space_time, got {backbone}; set optim.name"):
        _state(_config(path=f"configs/{path}.py"))


def test_a_critic_keeps_the_moments_of_adam():
    critic = Critic(_state(_config()).model)
    with pytest.raises(ValueError, match="'muon' is not for loss 'distribution_matching'"):
        build_optimizer(_config("training.loss=distribution_matching"), critic)
