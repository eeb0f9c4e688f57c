"""Networks of consistency_models, against the project's network and formulas written out on its own tensors."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models import ConsistencyModel, NetworkScoreModel
from models.backbones import ADM
from models.pretrained import from_consistency
from models.pretrained.consistency.importer import plan_consistency
from models.pretrained.guided.importer import guided_sources
from models.pretrained.shared.renaming import renamed

FLAGS = (
    "--attention_resolutions 4 --channel_mult 1,2 --class_cond True --use_scale_shift_norm True --dropout 0.0 "
    "--image_size 8 --num_channels 32 --num_head_channels 16 --num_res_blocks 1 --resblock_updown True "
    "--use_fp16 True --weight_schedule uniform"
)
CLASSES = 5


def random_tensors() -> dict[str, Tensor]:
    """Names and shapes of the project for FLAGS, with numbers that no network of ours has seen."""
    plan = plan_consistency(f"--training_mode edm {FLAGS}", num_classes=CLASSES)
    network, draw = plan.build_backbone(), torch.Generator().manual_seed(0)
    assert isinstance(network, ADM)
    shapes = {name: tensor.shape for name, tensor in renamed(network, guided_sources(network)).items()}
    tensors = {name: 0.15 * torch.randn(shape, generator=draw) for name, shape in sorted(shapes.items())}
    norms = [name for name in tensors if name.endswith(("_layers.0.weight", ".norm.weight", "out.0.weight"))]
    return tensors | {name: tensors[name] + 1 for name in norms}


def their_network(w: dict[str, Tensor], x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """The network of FLAGS (Dhariwal & Nichol 2021, Appendix C) on the project's tensors alone."""
    w = {name: tensor.double() for name, tensor in w.items()}

    def linear(name: str, h: Tensor) -> Tensor:
        return h @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def conv(name: str, h: Tensor) -> Tensor:
        return F.conv2d(h, w[f"{name}.weight"], w[f"{name}.bias"], padding=w[f"{name}.weight"].shape[-1] // 2)

    def norm(name: str, h: Tensor) -> Tensor:
        return F.group_norm(h, 32, w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-5)

    frequencies = (-math.log(10_000) * torch.arange(16, dtype=torch.float64) / 16).exp()
    angles = t[:, None] * frequencies
    embedded = linear("time_embed.0", torch.cat([angles.cos(), angles.sin()], 1))
    embedded = F.silu(linear("time_embed.2", F.silu(embedded)) + w["label_emb.weight"][y])

    def block(name: str, h: Tensor) -> Tensor:
        a = F.silu(norm(f"{name}.in_layers.0", h))
        if name == "input_blocks.2.0":
            a, h = F.avg_pool2d(a, 2), F.avg_pool2d(h, 2)
        if name == "output_blocks.1.2":
            a, h = (one.repeat_interleave(2, 2).repeat_interleave(2, 3) for one in (a, h))
        a = conv(f"{name}.in_layers.2", a)
        scale, shift = linear(f"{name}.emb_layers.1", embedded)[:, :, None, None].chunk(2, 1)
        a = F.silu(norm(f"{name}.out_layers.0", a) * (1 + scale) + shift)
        skip = conv(f"{name}.skip_connection", h) if f"{name}.skip_connection.weight" in w else h
        return skip + conv(f"{name}.out_layers.3", a)

    def attend(name: str, h: Tensor) -> Tensor:
        qkv = torch.einsum("oi,bip->bop", w[f"{name}.qkv.weight"][..., 0], norm(f"{name}.norm", h).flatten(2))
        # its flash attention has "(three h d)"
        q, k, v = (qkv + w[f"{name}.qkv.bias"][:, None]).unflatten(1, (3, -1, 16)).unbind(1)
        weights = (torch.einsum("bhdp,bhdq->bhpq", q, k) / 4).softmax(-1)
        a = torch.einsum("bhpq,bhdq->bhdp", weights, v).flatten(1, 2)
        a = torch.einsum("oi,bip->bop", w[f"{name}.proj_out.weight"][..., 0], a) + w[f"{name}.proj_out.bias"][:, None]
        return h + a.unflatten(2, h.shape[2:])

    def run(name: str, h: Tensor) -> Tensor:
        for i in range(3):
            if f"{name}.{i}.in_layers.0.weight" in w:
                h = block(f"{name}.{i}", h)
            elif f"{name}.{i}.qkv.weight" in w:
                h = attend(f"{name}.{i}", h)
        return h

    states = [conv("input_blocks.0.0", x)]
    for i in (1, 2, 3):
        states.append(run(f"input_blocks.{i}", states[-1]))
    h = run("middle_block", states[-1])
    for i in range(4):
        h = run(f"output_blocks.{i}", torch.cat([h, states.pop()], 1))
    return conv("out.2", F.silu(norm("out.0", h)))


@pytest.mark.parametrize("mode", ["consistency_distillation", "consistency_training", "edm"])
def test_answers_are_those_of_the_formulas(tmp_path, mode):
    tensors = random_tensors()
    torch.save(tensors, tmp_path / "cd.pt")
    model = from_consistency(tmp_path / "cd.pt", f"--training_mode {mode} {FLAGS}").double()
    assert isinstance(model, NetworkScoreModel if mode == "edm" else ConsistencyModel)
    sigma, y = torch.tensor([0.002, 0.05, 1.3, 80.0], dtype=torch.float64), torch.tensor([0, 4, 2, 2])
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = x * sigma[:, None, None, None]
    # Song et al. 2023, Appendix C, with sigma_data = 0.5
    end = 0.0 if mode == "edm" else 0.002
    c_skip, c_out = 0.25 / ((sigma - end) ** 2 + 0.25), (sigma - end) * 0.5 / (sigma**2 + 0.25).sqrt()
    c_in, told = (sigma**2 + 0.25).rsqrt(), 250 * sigma.log()
    scaled = c_in[:, None, None, None] * x
    expected = c_skip[:, None, None, None] * x
    expected = expected + c_out[:, None, None, None] * their_network(tensors, scaled, told, y)
    with torch.no_grad():
        found = model(x, model.sde.time_from_sigma(sigma), cond=y)
    found = found if isinstance(found, Tensor) else found.x0
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    if mode != "edm":
        torch.testing.assert_close(found[0], x[0], rtol=0, atol=1e-14)


def test_the_published_networks_have_the_published_size():
    flags = (
        "--attention_resolutions 32,16,8 --class_cond True --use_scale_shift_norm True --image_size 64 "
        "--num_channels 192 --num_head_channels 64 --num_res_blocks 3 --resblock_updown True"
    )
    plan = plan_consistency(f"--training_mode consistency_training {flags}")
    # guided-diffusion's network, whose last convolution has three outputs more
    with torch.device("meta"):
        assert sum(one.numel() for one in plan.build_backbone().parameters()) == 295_904_454 - 3 * (9 * 192 + 1)
    assert plan.sde == {"name": "ve", "sigma_min": 0.002, "sigma_max": 80.0}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (FLAGS, "config must say training_mode"),
        (f"--training_mode progdist {FLAGS}", "training_mode"),
        (f"--training_mode edm --learn_sigma True {FLAGS}", "learn_sigma must be False"),
        (f"--training_mode edm --noise_schedule cosine {FLAGS}", "noise_schedule"),
    ],
)
def test_what_the_project_has_not_is_refused(tmp_path, flags, message):
    torch.save(random_tensors(), tmp_path / "cd.pt")
    with pytest.raises(ValueError, match=message):
        from_consistency(tmp_path / "cd.pt", flags)
