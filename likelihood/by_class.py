"""The likelihood of an image under each class, from the same draws for all of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from models import Cond, ScoreModel
from models.condition import label_of
from runtime.options import whole_number
from sde_lib import NoiseStreams, derive_seed

from .base import LikelihoodEstimator, LikelihoodTerms
from .batch_checks import check_batch
from .term_sampling import sampling_variance
from .variational import VariationalBound

_ROUND = 0x726F756E64


@dataclass(frozen=True, kw_only=True)
class ClassTerms(LikelihoodTerms):
    """The terms of each image under its own class, and the sums of them under every class.

    Attributes:
        class_nats: -log p(x0 | c), or a bound above it, in nats, float64 [B, C].
        class_rounds: Rounds in which each of them was measured, int64 [B, C].
        null_nats: The same without a class, float64 [B]; None where it is not asked for.
        class_calls: Network evaluations for an image, over its classes and rounds, int64 [B]; ``null_nats`` not in it.
    """

    class_nats: Float[Tensor, "batch classes"]
    class_rounds: Int64[Tensor, "batch classes"]
    null_nats: Float[Tensor, " batch"] | None
    class_calls: Int64[Tensor, " batch"]


class LikelihoodByClass(LikelihoodEstimator):
    """-log p(x0 | c) of every class c, or a bound above it, by an estimator that is given the same draws for each.

    Image k draws its times and its noise from the same streams for every class, so that most of their noise is not in
    the differences between classes, which alone decide p(c | x0). The streams of the first round are those that the
    estimator is given by itself: with the same step weights the terms of an image's own class are the same.

    With several rounds, each with draws of its own, the values are means over them. After each, a class may be
    dropped for an image: if it lies above the best one by more than ``z`` standard errors of their difference, which
    the common draws give (``sampling_variance``, and the spread of L_0, which is to be drawn more than once where it
    differs between classes). This is the
    adaptive evaluation of Li et al. 2023, Algorithm 2, with a test in place of a fixed schedule. A class that is
    dropped keeps its distance from the one that was best then: its own mean is of fewer draws, whose noise is no longer
    that of the others. Steps had better be drawn by importance: of uniform draws few make most of the sum, and where
    they are missed the standard error is too small.

    Args:
        estimator: Any estimator of one class.
        num_classes: C, at least 2.
        rounds: Estimates of each class, at least 1.
        z: Standard errors at which a class is dropped; 0 drops none.
        null: Measure the model without a class too, in the first round; it keeps its distance from the class that was
            best then.

    Raises:
        ValueError: If a number is out of range, or ``z`` is given for another estimator than a variational bound.
    """

    def __init__(
        self, estimator: LikelihoodEstimator, *, num_classes: int, rounds: int = 1, z: float = 0.0, null: bool = False
    ) -> None:
        self.estimator, self.kind, self.null = estimator, estimator.kind, null
        self.num_classes = whole_number("num_classes", num_classes, least=2, fix="one class leaves nothing to tell")
        self.rounds = whole_number("rounds", rounds, fix="one is usual")
        if not 0 <= z < float("inf"):
            raise ValueError(f"z must be a number of standard errors, at least 0, got {z}; 3 is usual, 0 drops none")
        if z and not (isinstance(estimator, VariationalBound) and estimator.steps_per_image != 1):
            raise ValueError(
                f"z={z:g} drops classes by the spread of two or more terms of VariationalBound, got {estimator}; "
                "leave it at 0"
            )
        self.z = z

    def __call__(
        self, model: ScoreModel, x0: Tensor, *, cond: Cond | None = None, noise: NoiseStreams | None = None
    ) -> ClassTerms:
        """The terms of every class; see ``LikelihoodEstimator``. ``cond`` is each image's own class, int64 [B]."""
        noise = check_batch(x0, cond, noise)
        label = label_of(cond)
        if label is None:
            raise ValueError("cond must be each image's own class, got None; pass the labels, int64 [B]")
        shape = (len(x0), self.num_classes)
        sums = torch.zeros(3, *shape, dtype=torch.float64, device=x0.device)
        rounds = torch.zeros(shape, dtype=torch.int64, device=x0.device)
        calls = torch.zeros(len(x0), dtype=torch.int64, device=x0.device)
        null, at_first = torch.zeros(len(x0), dtype=torch.float64, device=x0.device), sums.sum(0)
        undecided = torch.ones(shape, dtype=torch.bool, device=x0.device)
        shares: list[Tensor] = []
        decoded: list[Tensor] = []
        drops: list[tuple[Tensor, Tensor, Tensor]] = []  # means so far, which classes were dropped, and the best one
        for turn in range(self.rounds):
            for c in range(self.num_classes):
                rows = undecided[:, c].nonzero().flatten()
                if not len(rows):
                    continue
                terms = self._measure(model, x0, c, noise, turn, rows)
                sums[:, rows, c] += torch.stack([terms.prior, terms.diffusion, terms.reconstruction])
                rounds[rows, c] += 1
                calls[rows] += terms.nfe
                if self.z and terms.step_scale is not None and terms.step_nats is not None:
                    _put(shares, turn, rows, c, shape, terms.step_scale * terms.step_nats)
                    if terms.decoder_nats is not None:
                        _put(decoded, turn, rows, c, shape, terms.decoder_nats)
            if self.null and not turn:
                null = self._measure(model, x0, -1, noise, turn, torch.arange(len(x0))).total
                at_first = sums.sum(0)
            if self.z and turn + 1 < self.rounds:
                before, means = undecided, sums / rounds
                undecided, best = self._undecided(before, means.sum(0), shares, decoded)
                drops.append((means, before & ~undecided, best.expand(3, -1, 1)))
        found = sums / rounds
        for means, dropped, best in reversed(drops):
            found = torch.where(dropped, means + (found - means).gather(2, best), found)
        if self.null and self.rounds > 1:
            # like a class that was dropped after the first round
            best = at_first.argmin(1, keepdim=True)
            null += (found.sum(0) - at_first).gather(1, best).squeeze(1)
        prior, diffusion, reconstruction = found.gather(2, label[None, :, None].expand(3, -1, 1)).squeeze(2)
        return ClassTerms(
            prior=prior,
            diffusion=diffusion,
            reconstruction=reconstruction,
            nfe=int(calls.max()),
            num_dims=x0[0].numel(),
            class_nats=found.sum(0),
            class_rounds=rounds,
            null_nats=null if self.null else None,
            class_calls=calls,
        )

    def _measure(
        self, model: ScoreModel, x0: Tensor, c: int, noise: NoiseStreams, turn: int, rows: Int64[Tensor, " rows"]
    ) -> LikelihoodTerms:
        """The terms of some images under class c, or under none for -1, by the draws of a round."""
        seed = derive_seed(noise.seed, _ROUND, turn) if turn else noise.seed
        streams = NoiseStreams(seed, [noise.indices[row] for row in rows.tolist()])
        cond = torch.full((len(rows),), c, dtype=torch.int64, device=x0.device)
        return self.estimator(model, x0[rows], cond=cond, noise=streams)

    def _undecided(
        self,
        before: Bool[Tensor, "batch classes"],
        nats: Float[Tensor, "batch classes"],
        shares: list[Tensor],
        decoded: list[Tensor],
    ) -> tuple[Bool[Tensor, "batch classes"], Int64[Tensor, "batch 1"]]:
        """The classes that stay, by the means so far; none once one is left. And the best class of each image.

        Args:
            before: The classes that were there.
            nats: The means.
            shares: What each draw of L_t added, [B, C, K] of each round.
            decoded: The draws of L_0, [B, C, D] of each round.
        """
        assert isinstance(self.estimator, VariationalBound)
        independent = self.estimator.step_sampling == "uniform"
        best = nats.masked_fill(~before, torch.inf).argmin(1, keepdim=True)
        variance = torch.zeros_like(nats)
        for one in shares:
            difference = one - one.gather(1, best[..., None].expand(-1, 1, one.shape[2]))
            found = sampling_variance(difference.flatten(0, 1), independent=independent)
            assert found is not None  # one draw alone is refused
            variance += found.view_as(nats)
        for one in decoded:
            if one.shape[2] > 1:
                difference = one - one.gather(1, best[..., None].expand(-1, 1, one.shape[2]))
                variance += difference.var(2) / one.shape[2]
        stay = before & (nats - nats.gather(1, best) <= self.z * variance.sqrt() / len(shares))
        return stay & (stay.sum(1, keepdim=True) > 1), best


def _put(
    rounds: list[Tensor], turn: int, rows: Int64[Tensor, " rows"], c: int, shape: tuple[int, int], values: Tensor
) -> None:
    """Keep the draws of some images under class c in a round's tensor [B, C, draws]."""
    if len(rounds) == turn:
        rounds.append(values.new_zeros(*shape, values.shape[1]))
    rounds[turn][rows, c] = values
