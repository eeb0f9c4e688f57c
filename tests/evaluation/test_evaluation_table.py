"""Output of ``--mode eval``: both numbers side by side, the gap's sentence, every image's value."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from eval_runs import eval_command, results
from PIL import Image
from thinning import only

import main
from evaluation.measurement import Measurement
from evaluation.table import gap_of, gap_sentence, table

LN2 = math.log(2)


def _measured(nfe: int, *terms: list[float]) -> Measurement:
    """Images of two dimensions, given in bits/dim, in two batches."""
    prior, diffusion, reconstruction = (2 * LN2 * np.asarray(term) for term in terms)
    return Measurement(
        [
            {
                "prior": prior[part],
                "diffusion": diffusion[part],
                "reconstruction": reconstruction[part],
                "nfe": np.asarray(nfe - k),
                "num_dims": np.asarray(2),
            }
            for k, part in enumerate((slice(0, 3), slice(3, 4)))
        ]
    )


BOUND = _measured(101, [0.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 2.0], [0.25, 0.5, 0.5, 0.75])
FLOW = _measured(632, [2.5, 2.5, 2.5, 2.5], [-3.0, -2.0, -1.0, -2.0], [1.5, 1.5, 1.25, 1.5])

# the standard errors: of 1, 2, 3, 2, of 0.25, 0.5, 0.5, 0.75, of 1.5, 1.5, 1.25, 1.5, and of the sums
TABLE = """\
toy test, 4 images, bits/dim
                                                       vlb                 ode
prior (L_T)                                0.0000 ± 0.0000     2.5000 ± 0.0000
diffusion (sum of L_t / volume)            2.0000 ± 0.4082    -2.0000 ± 0.4082
reconstruction (L_0 / dequantization)      0.5000 ± 0.1021     1.4375 ± 0.0625
bits_per_dim (total)                       2.5000 ± 0.4677     1.9375 ± 0.3590
nfe (network calls)                                    101                 632"""

ONE = """\
toy
                                        vlb
prior (L_T)                 0.0000 ± 0.0000
diffusion (sum of L_t)      2.0000 ± 0.4082
reconstruction (L_0)        0.5000 ± 0.1021
bits_per_dim (total)        2.5000 ± 0.4677
nfe (network calls)                     101"""


def test_both_numbers_stand_in_one_table():
    assert table({"vlb": BOUND, "ode": FLOW}, "toy test, 4 images, bits/dim") == TABLE
    assert table({"vlb": BOUND}, "toy") == ONE
    # a likelihood of a plugin has the terms' own names
    assert "prior (L_T) " in table({"vlb": BOUND, "mine": FLOW}, "toy")
    assert [line.split("  ")[0] for line in table({"mine": FLOW}, "toy").splitlines()[2:5]] == [
        "prior",
        "diffusion",
        "reconstruction",
    ]


def test_the_table_has_the_names_of_the_report():
    rows = [line.split()[0] for line in TABLE.splitlines()[2:]]
    assert set(rows) <= BOUND.report().keys() and rows[-2:] == ["bits_per_dim", "nfe"]


def test_columns_stay_apart_however_large_their_numbers():
    huge = _measured(7, [1e6, 2e6, 3e6, 4e6], [0.0] * 4, [0.0] * 4)
    prior = table({"vlb": BOUND, "ode": huge}, "toy").splitlines()[2]
    assert prior.split() == ["prior", "(L_T)", "0.0000", "±", "0.0000", "2500000.0000", "±", "645497.2244"]


def test_the_gap_is_that_of_the_images_one_by_one():
    found = gap_of({"ode": FLOW, "vlb_continuous": FLOW, "vlb": BOUND})
    assert found is not None and found["of"] == ["vlb", "ode"]
    differences = np.asarray([1.25 - 1.0, 2.5 - 2.0, 3.5 - 2.75, 2.75 - 2.0])
    assert found["bits_per_dim"] == pytest.approx(differences.mean())
    assert found["stderr"] == pytest.approx(differences.std(ddof=1) / 2)
    limit = gap_of({"vlb_continuous": BOUND, "ode": FLOW})
    assert limit == found | {"of": ["vlb_continuous", "ode"]}
    assert gap_of({"vlb": BOUND}) is gap_of({"ode": FLOW}) is None


@pytest.mark.parametrize(
    ("mean", "stderr", "sentence"),
    [
        (
            0.1234,
            0.01,
            "gap 0.1234 ± 0.0100 bits/dim: the ODE explains the data better than the reverse chain, which pays for "
            "its Gaussian steps and variance",
        ),
        (
            -0.5,
            0.2,
            "gap -0.5000 ± 0.2000 bits/dim: the reverse chain explains the data better than the same network's ODE, "
            "which sums up its errors",
        ),
        (
            0.5,
            0.26,
            "gap 0.5000 ± 0.2600 bits/dim: the reverse chain and the ODE explain the data equally well, to within the "
            "error",
        ),
        (0.5, math.nan, "gap 0.5000 bits/dim: a single image has no standard error, and so no verdict"),
    ],
)
def test_the_gap_gets_a_sentence(mean: float, stderr: float, sentence: str):
    gap = {"of": ["vlb", "ode"], "bits_per_dim": mean, "stderr": stderr}
    assert gap_sentence(gap) == sentence
    of_the_limit = gap_sentence(gap | {"of": ["vlb_continuous", "ode"]})
    assert "chain" not in of_the_limit and ("the reverse SDE" in of_the_limit) == (not math.isnan(stderr))


def test_the_report_the_arrays_and_the_table_agree(run_copy: Path, capsys: pytest.CaptureFixture[str]):
    assert main.run(eval_command(run_copy)) == 0
    said = capsys.readouterr()
    files = results(run_copy)
    report = json.loads(files["report.json"])
    arrays = np.load(io.BytesIO(files["per_image.npz"]))
    for name in ("vlb", "ode"):
        ours, values = report[name], arrays[name]
        assert values.dtype == np.float64 and values.shape == (6,)
        assert ours["bits_per_dim"] == pytest.approx(values.mean(), rel=1e-12)
        assert ours["stderr"] == pytest.approx(values.std(ddof=1) / math.sqrt(6), rel=1e-12)
        parts = [arrays[f"{name}_{term}"] for term in ("prior", "diffusion", "reconstruction")]
        np.testing.assert_allclose(sum(parts), values, rtol=1e-12)
        for term, part in zip(("prior", "diffusion", "reconstruction"), parts, strict=True):
            assert ours[term] == pytest.approx(part.mean(), rel=1e-9)
            assert ours[f"{term}_stderr"] == pytest.approx(part.std(ddof=1) / math.sqrt(6), rel=1e-9)
        assert f"{ours['bits_per_dim']:.4f} ± {ours['stderr']:.4f}" in said.out
        assert f"{name} {ours['bits_per_dim']:.4f} ± {ours['stderr']:.4f}" in said.err  # where the progress bar ends
        assert ours["seed"] == 0 and ours["batch_size"] == 2
    difference = arrays["vlb"] - arrays["ode"]
    assert report["gap"]["bits_per_dim"] == pytest.approx(difference.mean(), rel=1e-12)
    assert report["gap"]["stderr"] == pytest.approx(difference.std(ddof=1) / math.sqrt(6), rel=1e-12)
    assert said.out.splitlines()[-1] == gap_sentence(report["gap"])
    assert report["ode"]["rtol"] == 0.5 and report["ode"]["clip_x0"] is False
    assert report["vlb"]["variance"] == "small" and report["vlb"]["clip_x0"] is True


@pytest.mark.parametrize(
    "extra",
    only(
        (["--config.eval.vlb_steps_per_image=2", "--config.eval.vlb_num_steps=50"],),
        [
            ["--config.eval.vlb_variance=large", "--config.eval.vlb_num_steps=7"],
            ["--config.eval.vlb_steps_per_image=2", "--config.eval.vlb_num_steps=50"],
            ["--config.eval.clip_x0=false"],
        ],
    ),
)
@pytest.mark.usefixtures("drawn")
def test_the_curve_of_the_terms_is_there_for_every_chain(run_copy: Path, extra: list[str]):
    assert main.run(eval_command(run_copy, "--config.eval.likelihoods=vlb", *extra)) == 0
    files = results(run_copy)
    curve = json.loads(files["report.json"])["vlb"]["terms"]
    assert len(curve["t"]) == len(curve["bits_per_dim"]) == len(curve["stderr"]) > 0
    assert curve["t"] == sorted(curve["t"]) and curve["t"][-1] <= 1
    arrays = np.load(io.BytesIO(files["per_image.npz"]))
    index, bits = arrays["vlb_step_index"], arrays["vlb_step_bits_per_dim"]
    np.testing.assert_allclose((bits * arrays["vlb_step_scale"]).sum(1), arrays["vlb_diffusion"], rtol=1e-12)
    np.testing.assert_allclose([bits[index == k].mean() for k in np.unique(index)], curve["bits_per_dim"], rtol=1e-12)
    assert Image.open(io.BytesIO(files["bound_terms.png"])).size[0] > 300


def test_terms_stand_at_the_time_from_which_their_step_goes(run_copy: Path):
    command = eval_command(run_copy, "--config.eval.likelihoods=vlb", "--config.eval.vlb_steps_per_image=0")
    assert main.run(command) == 0
    # four steps from 1 to 0, of which the last is L_0
    curve = json.loads((run_copy / "eval" / "report.json").read_text())["vlb"]["terms"]
    assert curve["t"] == pytest.approx([0.5, 0.75, 1.0])


def test_settings_reach_the_estimator_that_they_are_of(run_copy: Path):
    settings = {"ode_t_end": 0.25, "ode_num_probes": 3, "ode_divergence": "gaussian", "ode_dequantization": "uniform"}
    settings |= {"vlb_variance": "large", "vlb_grid": "quadratic", "vlb_num_steps": 6, "vlb_step_sampling": "uniform"}
    few = "--config.eval.num_images=2"
    assert (
        main.run(eval_command(run_copy, few, *(f"--config.eval.{key}={value}" for key, value in settings.items()))) == 0
    )
    report = json.loads((run_copy / "eval" / "report.json").read_text())
    for key, value in settings.items():
        likelihood, name = key.split("_", 1)
        assert report[likelihood][name] == pytest.approx(value), key
    assert report["ode"]["probe_stderr"] > 0


def test_a_measurement_without_a_bound_leaves_no_curve_of_another(run_copy: Path):
    few = "--config.eval.num_images=2"
    assert main.run(eval_command(run_copy, few, "--config.eval.likelihoods=vlb")) == 0
    assert (run_copy / "eval" / "bound_terms.png").is_file()
    assert main.run(eval_command(run_copy, few, "--config.eval.likelihoods=ode")) == 0
    assert sorted(path.name for path in (run_copy / "eval").iterdir()) == ["per_image.npz", "report.json"]


def test_nfe_is_the_most_of_any_batch():
    assert BOUND.nfe == 101
    assert BOUND.total.count == 4


def test_means_of_a_step_are_those_of_its_draws():
    generator = torch.Generator().manual_seed(0)
    batches = []
    for size in (5, 3):
        zeros = np.zeros(size)
        batches.append(
            {
                "prior": zeros,
                "diffusion": zeros,
                "reconstruction": zeros,
                "nfe": np.asarray(1),
                "num_dims": np.asarray(3),
                "step_index": torch.randint(4, (size, 6), generator=generator).numpy().astype(np.int32) * 2,
                "step_nats": torch.rand(size, 6, generator=generator, dtype=torch.float64).numpy(),
            }
        )
    index = np.concatenate([batch["step_index"].ravel() for batch in batches])
    values = np.concatenate([batch["step_nats"].ravel() for batch in batches]) / (3 * LN2)
    steps = Measurement(batches).steps
    assert sorted(steps) == sorted(set(index.tolist()))
    for k, mean in steps.items():
        drawn = values[index == k]
        assert mean.count == len(drawn)
        assert mean.mean == pytest.approx(drawn.mean(), rel=1e-12)
        assert mean.stderr == pytest.approx(drawn.std(ddof=1) / math.sqrt(len(drawn)), rel=1e-12)


@pytest.mark.slow
def test_a_grid_solver_by_name_agrees_with_the_adaptive_one(run_copy: Path):
    few = ("--config.eval.likelihoods=ode", "--config.eval.num_images=8")
    accurate = ["--config.eval.ode_rtol=1e-5", "--config.eval.ode_atol=1e-5"]
    values, reports = [], []
    for extra in (accurate, ["--config.eval.ode_solver=rk4", "--config.eval.ode_num_steps=60"]):
        assert main.run(eval_command(run_copy, *few, *extra)) == 0
        reports.append(json.loads((run_copy / "eval/report.json").read_text())["ode"])
        values.append(np.load(run_copy / "eval/per_image.npz")["ode"])
    # a network of six steps, which is not smooth in time
    np.testing.assert_allclose(values[1], values[0], rtol=0, atol=1e-2)
    assert reports[0]["rtol"] == 1e-5 and "num_steps" not in reports[0]
    assert (reports[1]["num_steps"], reports[1]["grid"]) == (60, "log_snr") and "rtol" not in reports[1]
    # 60 intervals, the last of them from the data to the first noise, and the decoder's call
    assert reports[1]["nfe"] == 4 * 59 + 1
