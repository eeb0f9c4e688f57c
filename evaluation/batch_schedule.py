"""The schedule of a measurement: batches to processes, results that are known already, and progress."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from likelihood import RunningMean
from runtime.messages import say
from runtime.processes.ranks import Ranks
from runtime.terminal import ProgressBar

from .kept_batches import PartialResults
from .measurement import EvalSplit, Measurement, Values, bits_per_dim_of
from .over_ranks import deal

# each measure by name: a likelihood's estimator and the model as it sees it, or the like
Measured = dict[str, tuple[Callable[..., Any], Any]]
Summary = TypeVar("Summary")


class Schedule(Generic[Summary]):
    """The batches of a split, by several likelihoods, dealt to the processes of a job.

    Batch by batch, each by all likelihoods: so the running means can be compared, and a setting that cannot work
    shows at the first batch, not after hours. Batch k is of the k-th process, counted round, among the batches that
    are not known from before; each value is kept as it comes, by the process that measured it.

    Args:
        split: The images.
        measured: Each likelihood's estimator, and the model as it sees it; see ``EvalSplit.measure``.
        folder: Where batches are kept.
        fingerprints: All that the values depend on, for each likelihood.
        ranks: The processes.
        summarize: Makes the result of all batches.
        value_of: The value of each image of a batch, [B], that the progress bar shows the mean of.
        units: Those of the values.
    """

    def __init__(
        self,
        split: EvalSplit,
        measured: Measured,
        *,
        folder: Path,
        fingerprints: dict[str, dict[str, Any]],
        ranks: Ranks,
        summarize: Callable[[Sequence[Values]], Summary] = Measurement,
        value_of: Callable[[Values], np.ndarray] = bits_per_dim_of,
        units: str = "bits/dim",
    ) -> None:
        self._split, self._measured, self._ranks = split, measured, ranks
        self._summarize, self._value_of, self._units = summarize, value_of, units
        self._partial = {name: PartialResults(folder / name, fingerprints[name]) for name in measured}
        self._known: dict[str, dict[int, Values]] = {name: {} for name in measured}
        self._running = {name: RunningMean() for name in measured}
        self._bar: ProgressBar | None = None

    def run(self) -> dict[str, Summary]:
        """Measure what is not known yet.

        Returns:
            On rank 0 the values of all images; on the others nothing.

        Raises:
            FloatingPointError: If a value is not finite.
            RuntimeError: If this process has another model or other data than rank 0.
        """
        plan = self._ranks.share("plan", self._plan)
        for name, digest in plan["digests"].items():
            if digest != self._partial[name].digest:
                raise RuntimeError(
                    f"the checkpoint, data or settings of {name} differ from those of rank 0; "
                    "give all processes the same work directory, data and command"
                )
        before = [(k, name) for name, known in self._known.items() for k in known]
        with ProgressBar(
            total=self._split.num_images * len(self._measured),
            initial=sum(self._split.size(k) for k, _ in before),
            desc="eval",
            unit="value",
            disable=not self._ranks.first,
        ) as self._bar:
            self._show(before)
            deal(self._ranks, plan["todo"], self._measure, self._take)
        if not self._ranks.first:
            return {}
        return {
            name: self._summarize([known[k] for k in range(len(self._split))]) for name, known in self._known.items()
        }

    def kept(self) -> str:
        """The number of batches that are kept, by whatever process, in words."""
        return self._counted({name: partial.count() for name, partial in self._partial.items()})

    def _counted(self, counts: dict[str, int]) -> str:
        return " and ".join(f"{count} of {len(self._split)} batches of {name}" for name, count in counts.items())

    def forget(self) -> None:
        """Delete what was kept."""
        for partial in self._partial.values():
            partial.drop()

    def _plan(self) -> dict[str, Any]:
        """On rank 0: read what is known, say so, and list what is not."""
        for name, partial in self._partial.items():
            self._known[name], notes = partial.load(len(self._split))
            for note in notes:
                say(note)
        if any(self._known.values()):
            counts = {name: len(known) for name, known in self._known.items()}
            say(f"goes on: {self._counted(counts)} were measured before")
        todo = [
            [f"{name}/{k}" for name, known in self._known.items() if k not in known] for k in range(len(self._split))
        ]
        digests = {name: partial.digest for name, partial in self._partial.items()}
        return {"digests": digests, "todo": [units for units in todo if units]}

    def _measure(self, unit: str) -> bytes:
        name, k = _parsed(unit)
        estimator, model = self._measured[name]
        values = self._split.measure(k, estimator, model)
        shown = torch.from_numpy(self._value_of(values))
        if not bool(torch.isfinite(shown).all()):
            worst = int((~torch.isfinite(shown)).nonzero()[0])
            raise FloatingPointError(
                f"{name} is {float(shown[worst])} for image {k * self._split.batch_size + worst}; the network's output "
                "is not finite, or p(x) is 0 there: look at its checkpoint"
            )
        return self._partial[name].encode(k, values)

    def _take(self, unit: str, data: bytes) -> None:
        name, k = _parsed(unit)
        self._partial[name].keep(k, data)
        if self._ranks.first:
            self._known[name][k] = self._partial[name].decode(k, data)
            self._advance(k, name)

    def _advance(self, k: int, name: str) -> None:
        """Move the progress bar by a batch."""
        assert self._bar is not None
        self._bar.update(self._split.size(k))
        self._show([(k, name)])

    def _show(self, units: list[tuple[int, str]]) -> None:
        """Take batches into the running means, and show them."""
        assert self._bar is not None
        for k, name in units:
            self._running[name].update(torch.from_numpy(self._value_of(self._known[name][k])))
        shown = [f"{name} {mean.mean:.4f} ± {mean.stderr:.4f}" for name, mean in self._running.items() if mean.count]
        if shown:
            self._bar.set_postfix_str(f"{', '.join(shown)} {self._units}")


def _parsed(unit: str) -> tuple[str, int]:
    """The likelihood and the batch of a unit, "vlb/3"."""
    name, k = unit.rsplit("/", 1)
    return name, int(k)
