"""Out of memory is one line that names the batch size and what else takes less."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

# PyTorch raises RuntimeError for memory of the CPU, and for some of cuDNN's and CUDA's
_SIGNS = ("not enough memory", "can't allocate memory", "out of memory", "ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell an error of memory that does not suffice."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)
    )


@contextmanager
def explain_out_of_memory(key: str, batch_size: int, *, training: bool = False) -> Iterator[None]:
    """Turn "out of memory" into a line that names the batch size and what takes less.

    Args:
        key: The key of the batch size, such as "training.batch_size".
        batch_size: Its value.
        training: Whether gradients are computed, for which there is more to turn.

    Raises:
        MemoryError: In place of what PyTorch raises.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        fix = "lower it"
        if training:
            fix = (
                "raise training.accumulation_steps, which computes the same in smaller parts, set "
                "training.gradient_checkpointing=True or training.precision=bf16, or lower it"
            )
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise MemoryError(f"out of memory with {key}={batch_size}; {fix} ({said})") from error
