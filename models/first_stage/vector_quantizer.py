"""Vector quantization: every vector that an encoder gives is replaced by the nearest one of a codebook."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from runtime.options import whole_number

# squared distances that are held at once: of 256 MiB
_AT_ONCE = 2**25


@dataclass(frozen=True, eq=False)
class Quantized:
    """Vectors of a codebook in place of an encoder's.

    Attributes:
        codes: Number of each vector in the codebook.
        z: The vectors; their gradient is passed on to the encoder's as it is (straight through).
        codebook_loss: |sg(h) - e|^2, which draws the codebook to the encoder, summed over a datum.
        commitment_loss: commitment |h - sg(e)|^2, which keeps the encoder at the codebook.
    """

    codes: Int[Tensor, "batch *space"]
    z: Float[Tensor, "batch channels *space"]
    codebook_loss: Float[Tensor, " batch"]
    commitment_loss: Float[Tensor, " batch"]


@dataclass(frozen=True, eq=False)
class _Seen:
    """The codes and vectors that a training step has seen so far.

    Attributes:
        chosen: Whether each code was chosen, 0 or 1, [K].
        keys: Keys of at most K of the encoder's vectors, the largest ones of the step.
        vectors: These vectors, [K, c].
    """

    chosen: Tensor
    keys: Tensor
    vectors: Tensor


def _alone(values: Tensor) -> Tensor:
    """The values of all processes, where there is one."""
    return values


class VectorQuantizer(nn.Module):
    """e_k with k = argmin |h - e_k| for each vector h (van den Oord et al. 2017, Eqs. 1 to 3).

    sg(...) has no gradient: the codebook learns by |sg(h) - e|^2 alone, and the commitment, which is multiplied by
    0.25 there, moves the encoder alone. (The published code of VQGAN multiplies the other term by it.)

    **Codes that nobody chooses.** A code that was not chosen in ``restart_after`` training steps in a row is set to a
    vector that the encoder gave in the last of them, drawn in proportion to its squared distance from the nearest code,
    as k-means++ begins (Arthur & Vassilvitskii 2007). So is the codebook after its first step, but for the codes that
    were chosen. A step counts as a whole, over micro-batches and processes: the trainer calls ``forget`` before it and
    ``end_step`` after it. The draws come from PyTorch's generator, as those of dropout do: a resumed run restarts the
    same codes at the same places, and two processes do as one with two micro-batches, while another number of
    micro-batches draws others.

    Args:
        codebook_size: Number of codes, K.
        channels: Numbers in a vector, c.
        commitment: Weight of the commitment.
        restart_after: Steps.

    Attributes:
        codebook: The vectors, [K, c].
        idle: Steps since each code was last chosen, [K].

    Raises:
        ValueError: An option is out of range.
    """

    idle: Tensor

    def __init__(
        self, codebook_size: int, channels: int, *, commitment: float = 0.25, restart_after: int = 100
    ) -> None:
        super().__init__()
        whole_number("codebook_size", codebook_size, fix="pass the number of codes")
        whole_number("channels", channels, fix="pass 1 or more")
        whole_number("restart_after", restart_after, fix="pass a number of steps")
        if not 0 <= commitment < float("inf"):
            raise ValueError(f"commitment must be at least 0 and finite, got {commitment}; try 0.25")
        self.commitment, self.restart_after = commitment, restart_after
        self.codebook = nn.Parameter(
            torch.empty(codebook_size, channels).uniform_(-1 / codebook_size, 1 / codebook_size)
        )
        self.register_buffer("idle", torch.full((codebook_size,), restart_after))
        self._seen: _Seen | None = None

    def forward(self, h: Float[Tensor, "batch channels *space"]) -> Quantized:
        """Replace the vectors h of an encoder's output, which lie along its channels."""
        # of bfloat16, neighbours would not be told apart
        with torch.autocast(h.device.type, enabled=False):
            h = h.to(self.codebook.dtype)
            codes = self.nearest(h)
            e = self.vectors(codes)
            if self.training and torch.is_grad_enabled():
                self._note(h.detach(), codes, e.detach())
            return Quantized(
                codes,
                # exactly e: what is added is 0, with the gradient of h
                e.detach() + (h - h.detach()),
                (h.detach() - e).square().flatten(1).sum(1),
                self.commitment * (h - e.detach()).square().flatten(1).sum(1),
            )

    @torch.no_grad()
    def begin_with(self, codebook: Float[Tensor, "codes channels"]) -> None:
        """Take the vectors of a trained codebook, of which none is to be restarted at once."""
        self.codebook.copy_(codebook)
        self.idle.zero_()

    @torch.no_grad()
    def nearest(self, h: Float[Tensor, "batch channels *space"]) -> Int[Tensor, "batch *space"]:
        """The code that is nearest to each vector; of several, the first."""
        along = h.movedim(1, -1)
        flat, codebook = along.reshape(-1, along.shape[-1]).double(), self.codebook.double()
        half = 0.5 * codebook.square().sum(1)
        rows = max(1, _AT_ONCE // len(codebook))
        return torch.cat([(half - part @ codebook.T).argmin(1) for part in flat.split(rows)]).view(along.shape[:-1])

    def vectors(self, codes: Int[Tensor, "batch *space"]) -> Float[Tensor, "batch channels *space"]:
        """The vectors of codes."""
        return F.embedding(codes, self.codebook).movedim(-1, 1)

    @torch.no_grad()
    @torch.compiler.disable()
    def _note(self, h: Tensor, codes: Tensor, e: Tensor) -> None:
        """Take a micro-batch into what the step has seen."""
        chosen = torch.zeros_like(self.idle)
        chosen[codes.flatten()] = 1
        squares = (h - e).double().square().sum(1).flatten()
        # log w plus Gumbel noise: the largest keys are a draw without replacement, each in proportion to its w
        keys = squares.log() - torch.empty_like(squares).exponential_().log()
        vectors = h.movedim(1, -1).flatten(0, -2)
        if self._seen is not None:
            chosen = chosen | self._seen.chosen
            keys, vectors = torch.cat((self._seen.keys, keys)), torch.cat((self._seen.vectors, vectors))
        self._seen = _Seen(chosen, *_largest(keys, vectors, len(self.idle)))

    def forget(self) -> None:
        """Begin a training step anew."""
        self._seen = None

    @torch.no_grad()
    def end_step(
        self, *, add: Callable[[Tensor], Tensor] = _alone, gather: Callable[[Tensor], Tensor] = _alone
    ) -> tuple[Int[Tensor, " restarts"], Float[Tensor, "restarts channels"]]:
        """Count a training step; all processes must call this.

        Args:
            add: Sum of a tensor over the processes.
            gather: A tensor of each process, one after the other.

        Returns:
            The codes that are to be restarted, and the vectors that the codebook is to have there.
        """
        seen, self._seen = self._seen, None
        if seen is None:
            return self.idle[:0], self.codebook.new_empty(0, self.codebook.shape[1])
        self.idle.copy_(torch.where(add(seen.chosen) > 0, 0, self.idle + 1))
        dead = (self.idle >= self.restart_after).nonzero().flatten()
        if not len(dead):
            return dead, seen.vectors[:0]
        keys, vectors = _largest(gather(seen.keys), gather(seen.vectors), len(self.idle))
        # a vector that is a code already is none to restart at
        vectors = vectors[keys > -torch.inf][: len(dead)]
        dead = dead[: len(vectors)]
        self.idle[dead] = 0
        return dead, vectors


def _largest(keys: Tensor, vectors: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """The vectors with the largest keys, in their order, filled up to a number of them with keys of -inf."""
    keys, order = keys.topk(min(number, len(keys)))
    missing = number - len(keys)
    return F.pad(keys, (0, missing), value=-torch.inf), F.pad(vectors[order], (0, 0, 0, missing))
