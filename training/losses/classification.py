"""The cross-entropy of a classifier of noisy data."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from models import Cond, NoisyClassifier, ScoreModel
from models.condition import label_of
from sde_lib import SDE, LearnedVP

from .base import Loss, register_loss


@register_loss("cross_entropy")
class CrossEntropyLoss(Loss):
    """-log p(class | x_t) in nats, with t uniform on [t_min, t_max] (Dhariwal and Nichol 2021, Section 4.3).

    Its least mean at a time t is the class's entropy given x_t, which rises to the entropy of the classes where x_t is
    noise. The model is a ``NoisyClassifier``, and the condition the class that it is to find.
    """

    name = "cross_entropy"
    own_weighting = "eps"  # there is one error alone to weight

    def check(self, sde: SDE) -> None:
        """Refuse a noise schedule that is learned: the easiest classes are those of data without noise.

        Raises:
            ValueError: In one line.
        """
        if isinstance(sde, LearnedVP):
            raise ValueError("loss 'cross_entropy' needs an SDE that is fixed, got a learned noise schedule; use vp")

    def times(self, sde: SDE, u: Tensor) -> Tensor:
        """t_min + u (t_max - t_min)."""
        return sde.t_min + u.double() * (sde.t_max - sde.t_min)

    def __call__(
        self, model: ScoreModel | NoisyClassifier, x0: Tensor, t: Tensor, eps: Tensor, *, cond: Cond | None = None
    ) -> Tensor:
        """The loss of each sample, [B]; see ``Loss``.

        Raises:
            ValueError: If the model is no classifier, or there is no class.
        """
        label = label_of(cond)
        if label is None or not isinstance(model, NoisyClassifier):
            raise ValueError("loss 'cross_entropy' needs a NoisyClassifier and the classes of its samples; pass both")
        return F.cross_entropy(model(model.sde.perturb(x0, t, eps), t), label, reduction="none")
