"""Every backbone from a config alone: trained, measured and sampled, and what its section cannot say."""

import json
from pathlib import Path

import pytest
from thinning import only
from tiny import ROOT, error, last_tensors, tiny_command

import main
from models.backbones import ADM, DiT, NCSNpp

TEXT = (ROOT / "configs/vp/digits.py").read_text()
BACKBONES = {
    "adm": (
        '{"middle_attention": False, "resampling": "convolution"}',
        lambda: ADM(
            image_size=8, in_channels=1, channels=16, channel_mult=(1, 1), num_res_blocks=1, norm_groups=8,
            attention_resolutions=(4,), scale_shift_norm=False, symmetric_downsample=False, embedding="sin_first",
            norm_eps=1e-6, resampling="convolution", middle_attention=False, num_classes=10,
        ),
    ),
    "ncsnpp": (
        '{"fir_kernel": None, "input_pyramid": "none", "augment_dim": 2}',
        lambda: NCSNpp(
            image_size=8, in_channels=1, channels=16, channel_mult=(1, 1), num_res_blocks=1, augment_dim=2,
            attention_resolutions=(4,), fir_kernel=None, input_pyramid="none", num_classes=10,
        ),
    ),
    "dit": (
        '{"depth": 2, "qk_norm": True}',
        lambda: DiT(image_size=8, in_channels=1, channels=16, depth=2, num_heads=1, qk_norm=True, num_classes=10),
    ),
}  # fmt: skip


def command(folder: Path, mode: str, backbone: str, network: str, *extra: str) -> list[str]:
    lines = f'    config.model.backbone = "{backbone}"\n    config.model.network = ConfigDict({network})\n'
    lines += "    config.model.class_conditional = True\n"
    # of the first function alone
    (folder / "mine.py").write_text(TEXT.replace("    return config\n", f"{lines}    return config\n", 1))
    return [f"--config={folder / 'mine.py'}", *tiny_command(mode, folder / "run", *extra)[1:]]


@pytest.mark.parametrize("backbone", only(("ncsnpp", "dit"), BACKBONES))
def test_a_backbone_of_the_config_trains_and_is_measured_and_sampled(tmp_path: Path, backbone: str):
    network, build = BACKBONES[backbone]
    for mode in ("train", "eval", "sample"):
        assert main.run(command(tmp_path, mode, backbone, network, "--config.training.precision=bf16")) == 0
    shapes = {
        name.removeprefix("ema."): list(tensor.shape)
        for name, tensor in last_tensors(tmp_path / "run").items()
        if name.startswith("ema.")
    }
    assert shapes == {name: list(tensor.shape) for name, tensor in build().state_dict().items()}
    assert json.loads((tmp_path / "run" / "eval" / "report.json").read_text())["step"] == 6
    # an option more or less is another network
    for mode in ("train", "sample"):
        assert main.run(command(tmp_path, mode, backbone, "{}")) == 2


@pytest.mark.parametrize(
    ("backbone", "network", "message"),
    [
        ("adm", '{"fir_kernel": None}', "unknown key of config.model.network for backbone 'adm': 'fir_kernel'; "),
        ("ncsnpp", '{"channels": 8}', "unknown key of config.model.network for backbone 'ncsnpp': 'channels'; "),
        ("unet", '{"image_size": 16}', "the model has image_size 16, but digits has 8; use images such as"),
        ("adm", '{"num_classes": 3}', "the model has num_classes 3, but digits has 10; use images such as"),
        ("ncsnpp", '{"block": "resnet"}', "block must be one of biggan, ddpm, got 'resnet'"),
        (
            "vit",
            "{}",
            "unknown backbone 'vit'; did you mean 'dit'? choices: adm, autoencoder, classifier, dit, mlp, ncsnpp",
        ),
    ],
)
def test_what_a_backbone_does_not_know_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], backbone: str, network: str, message: str
):
    assert message in error(capsys, command(tmp_path, "train", backbone, network))
    assert not (tmp_path / "run").exists()
