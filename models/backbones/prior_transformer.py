"""The transformer of unCLIP's prior, for data that are embeddings of images: it is told tokens and a pooled vector."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Backbone
from .blocks.checks import check_input, check_positive
from .blocks.cross_attention import Attention, Text, read_text
from .blocks.embedding import sinusoidal_embedding
from .blocks.initialization import initialize
from .blocks.layers import count_heads

_WIDENING = 4


class SequenceLayer(nn.Module):
    """``x + attend(norm1(x))``, then ``x + contract(GELU(expand(norm2(x))))``, 4 N wide; each branch starts at zero.

    Args:
        hidden: Features of a place, ``N``.
        num_heads: Number of heads, which divides ``N``.
    """

    def __init__(self, hidden: int, *, num_heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.attend = Attention(hidden, hidden, num_heads=num_heads, bias=True)
        self.expand = initialize(nn.Linear(hidden, _WIDENING * hidden))
        self.contract = initialize(nn.Linear(_WIDENING * hidden, hidden), zero=True)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """Map places [B, P, N] to [B, P, N], of which each attends to those that ``seen`` [B, 1, P, P] lets it."""
        normed = self.norm1(x)
        x = x + self.attend(normed, Text(normed, seen))
        return x + self.contract(F.gelu(self.expand(self.norm2(x))))


class PriorTransformer(Backbone):
    """A causal transformer over a text's tokens, its pooled vector, the noise level, x_t and a learned query.

    Each is one place of width N, with a learned vector of its own added; a place attends to those up to itself that the
    mask does not hide. The answer is read off the last place. A new network returns zeros, since its last layer starts
    at zero.

    Args:
        num_dims: Dimensions of the data, ``D``.
        hidden: Features of a place, ``N``.
        num_layers: Layers.
        num_heads: Heads of their attention.
        max_tokens: Tokens of the longest text.
        cond_tokens: Features of a token, at least 1.
        cond_pooled: Features of the pooled vector of a text, at least 1.
        query: Read the answer off a place of its own after x_t's, not off x_t's.
        learned_variance: Return ``2 D`` values, the last ``D`` being the raw variance interpolation.

    Raises:
        ValueError: A setting is impossible; the message names it.

    Source: Ramesh et al. 2022 (DALL-E 2), Section 2.2.

    Example:
        >>> network = PriorTransformer(768, 512, 6, num_heads=8, max_tokens=77, cond_tokens=768, cond_pooled=768)
        >>> x0 = network(x_t, timestep, tokens=tokens, mask=mask, pooled=pooled)
    """

    def __init__(
        self,
        num_dims: int,
        hidden: int = 2048,
        num_layers: int = 20,
        *,
        num_heads: int = 32,
        max_tokens: int = 77,
        cond_tokens: int = 0,
        cond_pooled: int = 0,
        query: bool = True,
        learned_variance: bool = False,
    ) -> None:
        super().__init__()
        check_positive(
            num_dims=num_dims, hidden=hidden, num_layers=num_layers, num_heads=num_heads, max_tokens=max_tokens,
            cond_tokens=cond_tokens, cond_pooled=cond_pooled,
        )  # fmt: skip
        count_heads(hidden, num_heads=num_heads, head_channels=None)
        self.num_dims, self.hidden, self.max_tokens = num_dims, hidden, max_tokens
        self.cond_tokens, self.cond_pooled = cond_tokens, cond_pooled
        self.time1, self.time2 = (initialize(nn.Linear(hidden, hidden)) for _ in range(2))
        self.linear_in = initialize(nn.Linear(num_dims, hidden))
        self.of_tokens = initialize(nn.Linear(cond_tokens, hidden))
        self.of_pooled = initialize(nn.Linear(cond_pooled, hidden))
        self.query = nn.Parameter(0.02 * torch.randn(1, 1, hidden)) if query else None
        self.places = nn.Parameter(0.02 * torch.randn(1, max_tokens + 3 + query, hidden))
        self.layers = nn.ModuleList(SequenceLayer(hidden, num_heads=num_heads) for _ in range(num_layers))
        self.norm_out = nn.LayerNorm(hidden)
        self.linear_out = initialize(nn.Linear(hidden, num_dims * (2 if learned_variance else 1)), zero=True)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        *,
        tokens: Tensor | None = None,
        mask: Tensor | None = None,
        pooled: Tensor | None = None,
    ) -> Tensor:
        """Apply the network.

        Args:
            x: Scaled noisy data, [B, D].
            c_noise: Noise labels, [B], in any real dtype: the embedding is computed in float64.
            tokens: Tokens of a text, [B, L, cond_tokens], L at most ``max_tokens``.
            mask: True where a token is one, bool [B, L]; None where all are.
            pooled: The pooled vector of the text, [B, cond_pooled].

        Returns:
            The prediction, [B, D], or [B, 2 D] with ``learned_variance``, in the dtype of ``x``.

        Raises:
            ValueError: A shape or dtype is not what the network was built for, the text is missing, or there are NaN in
                it.
        """
        check_input(x, (self.num_dims,), self.linear_in.weight)
        text = read_text(x, tokens, mask, features=self.cond_tokens, null_condition=False)
        assert text is not None
        pooled, length = self._check_pooled(x, pooled), text.tokens.shape[1]
        if length > self.max_tokens:
            raise ValueError(
                f"a text must have at most {self.max_tokens} tokens, got {length}; cut it off, as the text encoder's "
                "max_length does"
            )
        features = sinusoidal_embedding(c_noise, self.hidden, cos_first=True, dtype=self.time1.weight.dtype)
        time = self.time2(F.silu(self.time1(features)))
        after = [self.of_pooled(pooled), time, self.linear_in(x)]
        sequence = [self.of_tokens(text.tokens), torch.stack(after, 1)]
        if self.query is not None:
            sequence.append(self.query.expand(len(x), -1, -1))
        places = torch.cat([self.places[:, :length], self.places[:, self.max_tokens :]], 1)
        hidden = torch.cat(sequence, 1) + places
        seen = _seen(hidden, text.mask)
        for layer in self.layers:
            hidden = layer(hidden, seen)
        return self.linear_out(self.norm_out(hidden[:, -1])).to(x.dtype)

    def _check_pooled(self, x: Tensor, pooled: Tensor | None) -> Tensor:
        expected = [len(x), self.cond_pooled]
        if pooled is None or list(pooled.shape) != expected:
            got = None if pooled is None else list(pooled.shape)
            raise ValueError(
                f"the condition's pooled must have shape {expected}, got {got}; pass Condition(pooled=...)"
            )
        # nothing is read back from a GPU to check
        if pooled.device.type == "cpu" and not torch.compiler.is_compiling() and bool(pooled.isnan().any()):
            raise ValueError(
                "the condition's pooled must have no NaN, got some (the network was never trained without text); give "
                "each sample its text"
            )
        return pooled.to(x.dtype)


def _seen(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """True where a place [B, 1, P, ...] attends to another [..., P]: to all up to itself, but for masked tokens."""
    size = hidden.shape[1]
    seen = torch.ones(size, size, dtype=torch.bool, device=hidden.device).tril()[None, None]
    if mask is None:
        return seen
    shown = F.pad(mask, (0, size - mask.shape[-1]), value=True)
    # a softmax over nothing is NaN: a masked token, which nobody sees, sees itself
    return (seen & shown) | torch.eye(size, dtype=torch.bool, device=hidden.device)
