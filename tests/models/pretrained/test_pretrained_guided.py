"""Networks of guided-diffusion and improved-diffusion: the projects' numbers, their flags, and what is refused."""

import json
import pickle

import pytest
import torch
from importer_references import Reference, count, per_sample_error, randomize, worst_error

from models import reverse_log_var
from models.pretrained.guided.importer import (
    from_guided_classifier,
    from_guided_diffusion,
    from_improved_diffusion,
    guided_sources,
)
from models.pretrained.guided.settings import plan_classifier, plan_guided
from models.pretrained.shared.renaming import Source, load_renamed, renamed, reordered_heads, same
from sde_lib import Tabulated

NETWORKS = {
    "guided_imagenet_cond": from_guided_diffusion,
    "guided_plain_resampling": from_guided_diffusion,
    "improved_cifar": from_improved_diffusion,
}


def imported(name):
    reference = Reference(name)
    config = {"image_size": 16, **reference.config}
    return reference, NETWORKS[name](reference.path, config)


@pytest.mark.parametrize("name", NETWORKS)
def test_x0_and_variance_are_those_of_p_mean_variance(name):
    reference, model = imported(name)
    model.double()
    num_steps = model.sde.table_size
    alpha_bar = model.sde.alpha(torch.arange(1, num_steps + 1, dtype=torch.float64) / num_steps) ** 2
    beta = 1 - alpha_bar / torch.cat((alpha_bar.new_ones(1), alpha_bar[:-1]))
    second_beta_tilde = float(beta[1] * (1 - alpha_bar[0]) / (1 - alpha_bar[1]))
    for case in reference.cases():
        index, x = case["index"], case["x"].double()
        t, s = (index + 1) / torch.tensor(num_steps, dtype=torch.float64), index.double() / num_steps
        prediction = model(x, t, cond=case.get("y"))
        # their x0 is stored in float32
        assert per_sample_error(prediction.x0.detach(), case["pred_xstart"].double()) < 1e-6
        told = model.parameterization.c_noise(model.sde, t)
        torch.testing.assert_close(told, case["t"].double(), rtol=0, atol=1e-9)
        fraction = prediction.variance_fraction
        if int(index.max()) > 0:
            kind = "large" if fraction is None else "learned"
            log_var = reverse_log_var(kind, prediction, model.sde, s, t)
        else:
            # their last step, to data without noise, has no variance of its own: they take the second step's
            small = torch.full_like(x, second_beta_tilde).log()
            log_var = small if fraction is None else fraction * beta[0].log() + (1 - fraction) * small
        theirs = case["log_variance"].double()
        torch.testing.assert_close(log_var.detach().expand_as(theirs), theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-5), (torch.float64, 1e-10)])
def test_classifier_gives_the_project_s_logits_and_gradient(dtype, tolerance):
    reference = Reference("guided_classifier")
    classifier = from_guided_classifier(reference.path, reference.config).to(dtype)
    assert sum(p.numel() for p in classifier.parameters()) == reference.settings["num_parameters"]

    def logits(case):
        return classifier(case["x"].to(dtype), (case["t"] + 1).double() / 1000)

    def gradient(case):
        return classifier.grad_log_prob(case["x"].to(dtype), (case["t"] + 1).double() / 1000, case["y"])

    assert worst_error(reference, logits) < tolerance
    assert worst_error(reference, gradient, "grad_f64") < tolerance


# flags as the projects' READMEs give them, and the parameters that the papers state, in millions
GUIDED = "--diffusion_steps 1000 --learn_sigma True --resblock_updown True --use_fp16 True --use_scale_shift_norm True "
ATTENTION = "--attention_resolutions 32,16,8 "
MODELS = {
    "64": (
        "--class_cond True --dropout 0.1 --image_size 64 --noise_schedule cosine --num_channels 192 "
        "--num_head_channels 64 --num_res_blocks 3 --use_new_attention_order True",
        296,
        295_904_454,
    ),
    "128": (
        "--class_cond True --image_size 128 --noise_schedule linear --num_channels 256 --num_heads 4 "
        "--num_res_blocks 2",
        422,
        421_529_606,
    ),
    "256": (
        "--class_cond True --image_size 256 --noise_schedule linear --num_channels 256 --num_head_channels 64 "
        "--num_res_blocks 2",
        554,
        553_838_086,
    ),
    "512": (
        "--class_cond True --image_size 512 --noise_schedule linear --num_channels 256 --num_head_channels 64 "
        "--num_res_blocks 2 --use_fp16 False",
        559,
        558_997_638,
    ),
    "256 without classes": (
        "--class_cond False --image_size 256 --noise_schedule linear --num_channels 256 --num_head_channels 64 "
        "--num_res_blocks 2",
        553,
        552_814_086,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_published_flags_build_networks_of_the_published_size(name):
    flags, millions, exact = MODELS[name]
    plan = plan_guided(GUIDED + ATTENTION + flags)
    parameters = count(plan.build_backbone)
    assert (round(parameters / 1e6), parameters) == (millions, exact)
    assert plan.sde["name"] == ("improved_ddpm" if "cosine" in flags else "ddpm") and plan.time_input == "index"


def test_published_flags_of_improved_diffusion():
    cifar10 = "--image_size 32 --num_channels 128 --num_res_blocks 3 --learn_sigma True --dropout 0.3"
    plan = plan_guided(f"{cifar10} --diffusion_steps 4000 --noise_schedule cosine", project="improved")
    assert plan.backbone == "unet" and plan.network["attention_resolutions"] == (16, 8)
    # "50M" in the file's name, 52.5 M in EDM's and others' counts
    assert count(plan.build_backbone) == 52_546_438
    assert (plan.sde, plan.time_input) == ({"name": "improved_ddpm", "num_steps": 4000}, "index1000")
    imagenet = (
        "--image_size 64 --num_channels 192 --num_res_blocks 3 --learn_sigma True --class_cond True "
        "--diffusion_steps 4000 --noise_schedule cosine --rescale_learned_sigmas False --rescale_timesteps False"
    )
    plan = plan_guided(imagenet, project="improved")
    assert count(plan.build_backbone) // 10_000_000 == 27 and plan.time_input == "index"


def test_published_classifiers_have_the_published_size():
    for size, depth, millions in ((64, 4, 65), (128, 2, 43), (256, 2, 54), (512, 2, 54)):
        plan = plan_classifier(f"--image_size {size} --classifier_depth {depth} --classifier_scale 1.0")
        assert round(count(plan.build_backbone) / 1e6) == millions


def test_a_linear_table_of_other_lengths_is_scaled():
    plan = plan_guided("--diffusion_steps 4000 --noise_schedule linear", project="improved")
    assert plan.sde == {"name": "ddpm", "num_steps": 4000, "beta_start": 0.25 * 0.0001, "beta_end": 0.25 * 0.02}
    assert isinstance(plan.build().sde, Tabulated)


SMALL = {
    "image_size": 8, "model_channels": 32, "num_res_blocks": 1, "out_channels": 6, "attention_resolutions": [2],
    "channel_mult": [1, 2], "num_head_channels": 16, "num_classes": 5, "resblock_updown": True,
    "use_scale_shift_norm": True, "steps": 100,
}  # fmt: skip


def saved(folder, *, config=SMALL, new_attention_order=False, name="model.pt"):
    """A file as the project would write it, made of a network of ours."""
    network = randomize(plan_guided(config).build_backbone())
    tensors = renamed(network, guided_sources(network, new_attention_order=new_attention_order))
    torch.save(tensors, folder / name)
    return network, folder / name


@pytest.mark.parametrize("new", [False, True])
def test_both_attention_orders_and_every_form_of_config_give_the_same_network(tmp_path, new):
    network, path = saved(tmp_path, new_attention_order=new)
    config = {**SMALL, "use_new_attention_order": new}
    (tmp_path / "config.json").write_text(json.dumps(config))
    flags = (
        "--image_size 8 --num_channels=32 --num_res_blocks 1 --learn_sigma True --attention_resolutions 4 --class_cond "
        "True --channel_mult 1,2 --num_head_channels 16 --resblock_updown yes --diffusion_steps 100 --use_fp16 True "
        f"--use_new_attention_order {new}"
    )
    for form in (config, tmp_path / "config.json", str(tmp_path / "config.json"), flags):
        model = from_guided_diffusion(path, form)
        assert model.learned_variance and model.sde.table_size == 100 and not model.training
        for name, tensor in network.state_dict().items():
            assert torch.equal(model.backbone.state_dict()[name], tensor)
    # the two orders are different files
    other = from_guided_diffusion(path, {**config, "use_new_attention_order": not new}).backbone.state_dict()
    assert not torch.equal(other["middle.attention.qkv.weight"], network.state_dict()["middle.attention.qkv.weight"])


def test_rows_of_heads_stand_where_the_projects_have_them():
    # row numbers of [(q, k, v), head, channel] with 2 heads of 3 channels
    rows = torch.arange(18)
    legacy, edm = reordered_heads(2, (1, 0, 2)), reordered_heads(2, (1, 2, 0))
    by_head = [[part * 6 + head * 3 + c for part in range(3) for c in range(3)] for head in range(2)]
    interleaved = [part * 6 + head * 3 + c for head in range(2) for c in range(3) for part in range(3)]
    assert legacy(rows)[0].tolist() == by_head[0] + by_head[1]
    assert edm(rows)[0].tolist() == interleaved
    for layout in (legacy, edm, same):
        module = torch.nn.Linear(1, 18, bias=False)
        theirs = {"theirs": layout(rows[:, None].float())[0]}
        load_renamed(module, theirs, {"weight": Source(("theirs",), layout)}, path="a.pt")
        assert module.weight.flatten().tolist() == rows.tolist()


def test_no_class_is_refused_since_these_networks_never_saw_it():
    network = randomize(plan_guided(SMALL).build_backbone())
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([1.0, 50.0])
    with pytest.raises(ValueError, match="got -1: this network never saw samples without a class"):
        network(x, t, torch.tensor([3, -1]))


def change(tensors, **changes):
    return {**tensors, **changes}


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (lambda t: {k: v for k, v in t.items() if k != "out.2.bias"}, "1 missing \\(out.2.bias\\)"),
        (lambda t: change(t, extra=torch.zeros(1)), "1 unexpected \\(extra\\)"),
        (
            lambda t: change(t, **{"out.2.bias": torch.zeros(3)}),
            "1 misshapen \\(out.2.bias is \\[3\\], expected \\[6\\]\\)",
        ),
        (lambda t: {"temb.dense.0.weight": torch.zeros(1)}, "of another project than guided-diffusion or improved"),
        (lambda t: {**t, "step": 3}, "must be a state dict of tensors alone, got others under step"),
    ],
    ids=["missing", "unexpected", "misshapen", "another project", "no tensor"],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(tmp_path, tamper, message):
    _, path = saved(tmp_path)
    torch.save(tamper(torch.load(path, weights_only=True)), path)
    with pytest.raises(ValueError, match=message) as error:
        from_guided_diffusion(path, SMALL)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


class Trap:
    """A pickle of this writes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_damaged_files_and_code_are_refused_in_one_line(tmp_path):
    _, path = saved(tmp_path)
    whole = path.read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    torch.save({"model": Trap(tmp_path / "ran")}, tmp_path / "code.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
    for name, message in (
        ("cut.pt", "truncated"),
        ("code.pt", "refused unread"),
        ("raw.pt", "refused unread"),
        ("absent.pt", "is no file"),
    ):
        for read in (from_guided_diffusion, from_guided_classifier):
            with pytest.raises(ValueError, match=message) as error:
                read(tmp_path / name, SMALL)
            assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**SMALL, "model_channels": 64}, "misshapen"),
        ({**SMALL, "num_classes": None}, "unexpected \\(label_emb.weight\\)"),
        ({**SMALL, "num_classes": 6}, "label_emb.weight is \\[5, 128\\], expected \\[6, 128\\]"),
        ({**SMALL, "resblock_updown": False}, "missing"),
        ({**SMALL, "use_scale_shift_norm": False}, "misshapen"),
        ({**SMALL, "out_channels": 4}, "out_channels must be 3, or 6 with a learned variance, got 4"),
        ({**SMALL, "learn_sigma": False}, "learn_sigma=False contradicts its out_channels=6"),
        ({**SMALL, "num_heads_upsample": 3}, "num_heads_upsample=3 is not supported"),
        ({**SMALL, "noise_schedule": "quadratic"}, "unknown noise_schedule of the config 'quadratic'"),
        ({**SMALL, "channel_mul": [1]}, "unknown setting of the config 'channel_mul'; did you mean 'channel_mult'"),
        ({**SMALL, "image_size": 9}, "image_size 9 cannot be halved 1 times"),
        ({**SMALL, "num_head_channels": 24}, "head_channels must divide 64 channels, got 24"),
        ({k: v for k, v in SMALL.items() if k != "image_size"}, "config must say image_size"),
        ("--image_size 8 --num_channels 32", "config must say channel_mult for image_size 8"),
        ("--image_size", "flag --image_size of the config has no value"),
        ("--image_size eight", "image_size must be a whole number, got 'eight'"),
        ("no/such/config.json", "config no/such/config.json cannot be read"),
    ],
)
def test_a_config_that_contradicts_the_file_is_refused_in_one_line(tmp_path, config, message):
    _, path = saved(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        from_guided_diffusion(path, config)
    assert "\n" not in str(error.value)


def test_classifier_files_and_models_are_not_taken_for_each_other(tmp_path):
    _, path = saved(tmp_path)
    config = {"image_size": 8, "model_channels": 32, "num_res_blocks": 1, "out_channels": 5, "channel_mult": [1, 2]}
    config |= {"attention_resolutions": [2], "num_head_channels": 16, "pool": "attention"}
    with pytest.raises(ValueError, match="unexpected"):
        from_guided_classifier(path, config)
    with pytest.raises(ValueError, match="pool='spatial' is not supported; only pool='attention' is"):
        from_guided_classifier(path, {**config, "pool": "spatial"})
    network = randomize(plan_classifier(config).build_backbone())
    torch.save(renamed(network, guided_sources(network)), tmp_path / "classifier.pt")
    classifier = from_guided_classifier(tmp_path / "classifier.pt", config)
    x, t = torch.randn(3, 3, 8, 8), torch.tensor([0.001, 0.5, 1.0], dtype=torch.float64)
    assert torch.equal(classifier(x, t), network(x, 1000 * t - 1))
    # the gradient beside a difference quotient
    classifier.double()
    x, direction, step = x.double(), torch.randn(3, 3, 8, 8).double(), 1e-5
    label = torch.tensor([0, 4, 2])

    def log_prob(at):
        return torch.log_softmax(classifier(at, t), dim=1)[range(3), label].detach()

    quotient = (log_prob(x + step * direction) - log_prob(x - step * direction)) / (2 * step)
    slope = (classifier.grad_log_prob(x, t, label) * direction).sum((1, 2, 3))
    torch.testing.assert_close(slope, quotient, rtol=1e-6, atol=1e-8)
    with pytest.raises(ValueError, match="missing"):
        from_guided_diffusion(tmp_path / "classifier.pt", SMALL)
