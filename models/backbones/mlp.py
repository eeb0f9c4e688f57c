"""A residual multilayer perceptron for data that are vectors, two-dimensional toys above all."""

from torch import Tensor, nn
from torch.nn import functional as F

from .base import Backbone
from .blocks.checks import check_input, check_positive
from .blocks.condition_input import ConditionInput
from .blocks.embedding import ConditioningEmbedding, EmbeddingKind
from .blocks.initialization import initialize


class MLPBlock(nn.Module):
    """Residual layer ``x + linear2(SiLU(linear1(SiLU(x)) + project(e)))``; ``linear2`` starts at zero.

    Args:
        hidden: Features, ``N``.
        embedding_dim: Features of the embedding, ``E``.
    """

    def __init__(self, hidden: int, embedding_dim: int) -> None:
        super().__init__()
        self.linear1 = initialize(nn.Linear(hidden, hidden))
        self.project = initialize(nn.Linear(embedding_dim, hidden))
        self.linear2 = initialize(nn.Linear(hidden, hidden), zero=True)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map features [B, N] and an activated embedding [B, E] to features [B, N]."""
        return x + self.linear2(F.silu(self.linear1(F.silu(x)) + self.project(embedding)))


class MLP(Backbone):
    """Residual multilayer perceptron with SiLU and the same conditioning as ``UNet``, for [B, D] data.

    A new network returns zeros, since its last layer starts at zero.

    Args:
        num_dims: Dimensions of the data, ``D``.
        hidden: Width.
        num_layers: Residual layers.
        embedding_dim: Features of the noise embedding, even; ``hidden`` (or the next even number) when None.
        num_classes: Number of classes, or None for an unconditional network.
        null_condition: Take no condition too, label -1 and NaN: for a network that is trained without it now and then.
        cond_values: Values that are a condition, for each sample; 0 for none.
        learned_variance: Return ``2 D`` values, the last ``D`` being the raw variance interpolation.
        embedding: Embedding of the noise label: ``sin_first``, ``cos_first`` or ``fourier`` (for ln sigma).

    Raises:
        ValueError: A setting is impossible; the message names it.
    """

    def __init__(
        self,
        num_dims: int,
        hidden: int = 128,
        num_layers: int = 3,
        *,
        embedding_dim: int | None = None,
        num_classes: int | None = None,
        null_condition: bool = False,
        cond_values: int = 0,
        learned_variance: bool = False,
        embedding: EmbeddingKind = "sin_first",
    ) -> None:
        super().__init__()
        check_positive(num_dims=num_dims, hidden=hidden, num_layers=num_layers)
        self.num_dims = num_dims
        self.num_classes = num_classes
        features = max(4, hidden + hidden % 2) if embedding_dim is None else embedding_dim
        self.embed = ConditioningEmbedding(
            features, hidden, num_classes=num_classes, null_condition=null_condition, kind=embedding
        )
        self.linear_in = initialize(nn.Linear(num_dims, hidden))
        self.layers = nn.ModuleList(MLPBlock(hidden, hidden) for _ in range(num_layers))
        self.linear_out = initialize(nn.Linear(hidden, num_dims * (2 if learned_variance else 1)), zero=True)
        self.condition_input = ConditionInput(
            channels=0,
            num_values=cond_values,
            hidden_channels=hidden,
            embedding_dim=hidden,
            null_condition=null_condition,
        )

    def forward(
        self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None, *, values: Tensor | None = None
    ) -> Tensor:
        """Apply the network.

        Args:
            x: Scaled noisy data, [B, D].
            c_noise: Noise labels, [B], in any real dtype: the embedding is computed in float64.
            cond: Class labels, int64 [B] in 0 .. num_classes - 1, -1 too with ``null_condition``; None without classes.
            values: Condition of ``cond_values`` values, of order 1, [B, cond_values]; NaN is none.

        Returns:
            The prediction, [B, D], or [B, 2 D] with ``learned_variance``, in the dtype of ``x``.

        Raises:
            ValueError: A shape, dtype or label is not what the network was built for.
        """
        check_input(x, (self.num_dims,), self.linear_in.weight)
        embedding = self.embed(c_noise, cond, x.shape[0], self.condition_input.to_embedding(len(x), None, values))
        hidden = self.linear_in(x)
        for layer in self.layers:
            hidden = layer(hidden, embedding)
        return self.linear_out(F.silu(hidden)).to(x.dtype)
