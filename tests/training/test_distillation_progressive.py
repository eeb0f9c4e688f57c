"""Progressive distillation against closed forms: where all is linear, students are exact."""

import pytest
import torch
from torch import Tensor

from models import ClippedScoreModel, GaussianMixtureScoreModel, Prediction, ScoreModel
from samplers import DDIMSampler
from sde_lib import SDE, VE, VP, Tabulated, expand_like
from training.losses.progressive import ProgressiveLoss, Stages, two_step_target


class LinearStudent(ScoreModel):
    """x0 = A_i x_t + b_i at the times i / N of a grid: what a network could be on a Gaussian."""

    def __init__(self, sde: SDE, num_steps: int, dim: int) -> None:
        super().__init__(sde)
        self.num_steps = num_steps
        self.maps = torch.nn.Parameter(torch.zeros(num_steps + 1, dim, dim, dtype=torch.float64))
        self.offsets = torch.nn.Parameter(torch.zeros(num_steps + 1, dim, dtype=torch.float64))

    def forward(self, x_t: Tensor, t: Tensor, *, cond: object = None) -> Prediction:
        index = (t / self.sde.t_max * self.num_steps).round().long()
        x0 = torch.einsum("bij,bj->bi", self.maps[index], x_t) + self.offsets[index]
        alpha, sigma = self.sde.alpha_sigma(t)
        return Prediction.from_x0(x_t, x0, alpha=alpha, sigma=sigma)

    @torch.no_grad()
    def solve(self, teacher: ScoreModel) -> None:
        """Minimise the loss: the target is an affine function of x_t, which D + 1 points determine."""
        dim = self.maps.shape[1]
        points = torch.cat([torch.zeros(1, dim), torch.eye(dim)]).double()
        for index in range(1, self.num_steps + 1):
            t, middle, s = (
                torch.full((dim + 1,), (index - part) / self.num_steps * self.sde.t_max, dtype=torch.float64)
                for part in (0.0, 0.5, 1.0)
            )
            target = two_step_target(teacher, points, t, middle, s)
            self.offsets[index] = target[0]
            self.maps[index] = (target[1:] - target[0]).T


def gaussian(sde: SDE) -> GaussianMixtureScoreModel:
    covs = torch.tensor([[[0.5, 0.2, 0.0], [0.2, 0.3, 0.1], [0.0, 0.1, 0.05]]])
    return GaussianMixtureScoreModel(sde, means=torch.tensor([[0.3, -0.5, 0.1]]), covs=covs)


@pytest.mark.parametrize("sde", [VP(), Tabulated.ddpm()], ids=["vp", "ddpm"])
def test_students_of_a_gaussian_end_where_their_first_teacher_does(sde: SDE):
    """However many stages: the student of N / 2^k steps is the teacher's N steps of DDIM."""
    first = gaussian(sde)
    stages = Stages((32, 16, 8, 4, 2, 1), 100)
    x_T = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = DDIMSampler(num_steps=64).sample(first, x_T).x0
    teacher: ScoreModel = first
    for number, num_steps in enumerate(stages.num_steps):
        student = LinearStudent(sde, num_steps, 3)
        student.solve(teacher)
        result = DDIMSampler(num_steps=num_steps).sample(student, x_T)
        torch.testing.assert_close(result.x0, expected, rtol=1e-12, atol=1e-12)
        assert result.nfe == num_steps
        # and it is what minimises the loss
        loss = ProgressiveLoss(teacher, stages=stages.num_steps, stage_steps=100)
        loss.begin_step(100 * number)
        t = loss.times(sde, torch.linspace(0, 0.999, 20))
        values = loss(student, expected, t, x_T)
        values.sum().backward()
        assert float(values.detach().max()) < 1e-20
        assert student.maps.grad is not None and float(student.maps.grad.abs().max()) < 1e-9
        teacher = student
    # neither is the flow itself
    assert float((DDIMSampler(num_steps=1000).sample(first, x_T).x0 - expected).abs().max()) > 1e-3


@pytest.mark.parametrize("sde", [VP(), Tabulated.ddpm()], ids=["vp", "ddpm"])
def test_the_target_is_that_of_the_paper(sde: SDE):
    teacher = gaussian(sde)
    x_t = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    t, middle, s = (
        torch.tensor(times, dtype=torch.float64)
        for times in ([1.0, 0.8, 0.5, 0.5], [0.9, 0.6, 0.3, 0.25], [0.8, 0.5, 0.2, 0.0])
    )
    first = teacher(x_t, t)
    x_middle = expand_like(sde.alpha(middle), x_t) * first.x0 + expand_like(sde.sigma(middle), x_t) * first.eps
    second = teacher(x_middle, middle)
    x_s = expand_like(sde.alpha(s), x_t) * second.x0 + expand_like(sde.sigma(s), x_t) * second.eps
    ratio = expand_like(sde.sigma(s) / sde.sigma(t), x_t)
    paper = (x_s - ratio * x_t) / (expand_like(sde.alpha(s), x_t) - ratio * expand_like(sde.alpha(t), x_t))
    torch.testing.assert_close(two_step_target(teacher, x_t, t, middle, s), paper, rtol=1e-11, atol=1e-11)


def test_a_clipped_teacher_is_the_one_that_is_sampled():
    """A student that answers two steps of the clipped teacher has no loss, and ends where they do."""

    class Follower(ScoreModel):
        def forward(self, x_t: Tensor, t: Tensor, *, cond: object = None) -> Prediction:
            x0 = two_step_target(clipped, x_t, t, t - 1 / 8, t - 1 / 4)
            alpha, sigma = self.sde.alpha_sigma(t)
            return Prediction.from_x0(x_t, x0, alpha=alpha, sigma=sigma)

    sde = VP()
    # half of its mass is beyond the range
    teacher = GaussianMixtureScoreModel(sde, means=torch.ones(1, 3), covs=torch.eye(3)[None])
    clipped = ClippedScoreModel(teacher)
    x0, eps = torch.randn(2, 200, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    losses = [ProgressiveLoss(teacher, stages=(4,), clip_x0=clip_x0) for clip_x0 in (True, False)]
    t = losses[0].times(sde, torch.linspace(0, 0.999, 200))
    with_clip, without = (loss(Follower(sde), x0, t, eps) for loss in losses)
    assert float(with_clip.max()) < 1e-20 and float(without.mean()) > 0.01
    ends = [DDIMSampler(num_steps=n).sample(model, eps).x0 for n, model in ((4, Follower(sde)), (8, clipped))]
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-12, atol=1e-12)
    assert float((DDIMSampler(num_steps=8).sample(teacher, eps).x0 - ends[1]).abs().max()) > 0.1


def test_weightings_are_those_of_the_paper():
    """max(SNR, 1) and, of VP, SNR + 1 times the error of x0."""
    sde, teacher = VP(), gaussian(VP())
    student = LinearStudent(sde, 4, 3)
    x0, eps = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    losses = {name: ProgressiveLoss(teacher, stages=(4,), weighting=name) for name in ("x0", "truncated_snr", "v")}
    t = losses["x0"].times(sde, torch.tensor([0.0, 0.3, 0.5, 0.9]))
    assert t.tolist() == [0.25, 0.5, 0.75, 1.0]
    values = {name: loss(student, x0, t, eps) for name, loss in losses.items()}
    snr = sde.log_snr(t).exp()
    torch.testing.assert_close(values["truncated_snr"], snr.clamp_min(1) * values["x0"])
    torch.testing.assert_close(values["v"], (snr + 1) * values["x0"])


def test_stages_say_which_student_is_trained_and_which_one_a_checkpoint_holds():
    stages = Stages((8, 4, 2), 10)
    assert stages.total == 30
    assert [stages.at(step) for step in (0, 9, 10, 29, 30, 50)] == [0, 0, 1, 2, 2, 2]
    assert [step for step in range(40) if stages.begins(step)] == [10, 20]
    assert [stages.student_steps(step) for step in (0, 1, 10, 11, 20, 30)] == [8, 8, 8, 4, 4, 2]
    loss = ProgressiveLoss(gaussian(VP()), stages=(8, 4, 2), stage_steps=10)
    rates = []
    for step in (0, 5, 9, 10, 29):
        loss.begin_step(step)
        rates.append(round(loss.rate, 3))
    assert rates == [1, 0.5, 0.1, 1, 0.1]


@pytest.mark.parametrize("steps", [(), (8, 4, 1), (8, 8), (1, 2), (3, 1), (2, 1, 0)])
def test_stages_that_do_not_halve_are_refused(steps: tuple[int, ...]):
    with pytest.raises(ValueError, match="must halve"):
        Stages(steps, 10)


def test_a_student_teaches_half_its_own_steps_alone():
    teacher = LinearStudent(VP(), 8, 3)
    teacher.answers, teacher.own_steps = "steps", 8
    assert ProgressiveLoss(teacher, stages=(4, 2)).own_steps == 4
    with pytest.raises(ValueError, match="answers 8 steps of DDIM and nothing else"):
        ProgressiveLoss(teacher, stages=(2, 1))
    with pytest.raises(ValueError, match="DDIMSampler cannot take a student"):
        DDIMSampler(num_steps=4).sample(teacher, torch.zeros(1, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="without noise at t = 0"):
        ProgressiveLoss(gaussian(VE()), stages=(4, 2))
