"""Sums over the ranks of a ``torchrun`` job: gradients, losses, and networks that are split over them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from ..registry import choices_message
from ..signals import Interrupted
from .rank_slice import RankSlice
from .ranks import Ranks

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

SHARDINGS = ("none", "fsdp")


class Communication:
    """Sums over processes; with one process, nothing at all.

    Args:
        rank_slice: This rank's slice of a batch.
        device: Where its network is.
        sharding: "none" or "fsdp", which splits weights, gradients and the optimizer's state over the processes.

    Raises:
        ValueError: If the sharding is unknown, or there is one process to shard over.
    """

    def __init__(self, rank_slice: RankSlice, device: torch.device, *, sharding: str = "none") -> None:
        if sharding not in SHARDINGS:
            raise ValueError(choices_message("sharding", sharding, list(SHARDINGS)))
        if sharding == "fsdp" and rank_slice.world == 1:
            raise ValueError(
                "training.sharding=fsdp needs several processes, got 1; start it with torchrun, or set it to none"
            )
        self.rank_slice, self.device, self.sharded = rank_slice, device, sharding == "fsdp"

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network with its gradients averaged over the processes."""
        if self.rank_slice.world == 1 or self.sharded:
            return network
        # buffers change alike on all of them, if at all; newer versions of PyTorch call the setting otherwise
        known = inspect.signature(DistributedDataParallel).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        quiet: dict[str, Any] = {name: False}
        return DistributedDataParallel(network, gradient_as_bucket_view=True, **quiet)

    def without_sum(self, network: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """Leave the sum over ranks to the last micro-batch of a step."""
        if last or self.rank_slice.world == 1:
            return nullcontext()
        return _no_sum(network, sharded=self.sharded)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average the gradients of what lies outside the network: a noise schedule, a dequantizer."""
        if self.rank_slice.world > 1:
            for parameter in parameters:
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad)
                    parameter.grad.div_(self.rank_slice.world)

    def add(self, values: Tensor) -> Tensor:
        """Sum of float64 or whole values over the processes, on each of them."""
        if self.rank_slice.world > 1:
            dist.all_reduce(values)
        return values

    def any(self, one: bool) -> bool:
        """True if ``one`` is true on some rank; all ranks must call this."""
        return bool(self.add(torch.tensor(float(one), dtype=torch.float64, device=self.device)) > 0)

    def gather_all(self, values: Tensor) -> Tensor:
        """Values of all processes, of one shape, one after the other along the first axis, on each of them."""
        if self.rank_slice.world == 1:
            return values
        found = [torch.empty_like(values, memory_format=torch.contiguous_format) for _ in range(self.rank_slice.world)]
        dist.all_gather(found, values.contiguous())
        return torch.cat(found)

    def gather(self, values: Tensor) -> Tensor:
        """Per-sample values of all processes, in the order of the global batch, on each of them."""
        if self.rank_slice.world == 1:
            return values
        sizes = self.rank_slice.sizes()
        # of one size, which all backends can gather
        padded = values.new_zeros(max(sizes))
        padded[: len(values)] = values
        found = self.gather_all(padded).split(max(sizes))
        return torch.cat([part[:size] for part, size in zip(found, sizes, strict=True)])


@contextmanager
def _no_sum(network: nn.Module, *, sharded: bool) -> Iterator[None]:
    if not sharded:
        assert isinstance(network, DistributedDataParallel)
        with network.no_sync():
            yield
        return
    parts = [module for module in network.modules() if hasattr(module, "set_requires_gradient_sync")]
    for module in parts:
        module.set_requires_gradient_sync(False, recurse=False)  # pyright: ignore[reportCallIssue]
    try:
        yield
    finally:
        for module in parts:
            module.set_requires_gradient_sync(True, recurse=False)  # pyright: ignore[reportCallIssue]


def shard(network: nn.Module, blocks: Iterable[nn.Module]) -> None:
    """Split the parameters over the processes, in place; blocks gather theirs only while they work (FSDP2)."""
    # imported here since it takes as long as half of PyTorch's
    from torch.distributed.fsdp import fully_shard

    for block in blocks:
        fully_shard(block)
    # the whole, too, gives its own parameters back after a forward pass that no backward pass follows
    fully_shard(network, reshard_after_forward=True)


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Tell a tensor that ``shard`` has split."""
    # not by its type, DTensor, whose import takes as long as half of PyTorch's
    return hasattr(tensor, "device_mesh")


@contextmanager
def process_group(ranks: Ranks, device: torch.device) -> Iterator[None]:
    """The processes' collectives, over the store by which they found each other; gloo on CPUs, nccl on GPUs."""
    if ranks.store is None:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # a connection of its own: who waits for a late rank holds it, and could give no sign of life (PyTorch from 2.7 on)
    clone = getattr(ranks.store, "clone", None)
    store = ranks.store if clone is None else clone()
    dist.init_process_group(
        backend, store=store, rank=ranks.rank, world_size=ranks.world, timeout=timedelta(minutes=30)
    )
    try:
        yield
    except Interrupted:
        dist.destroy_process_group()
        raise
    # not after an error: that would wait for the others, and the process ends
    dist.destroy_process_group()


def is_lost_peer(error: BaseException) -> bool:
    """Tell an error of a collective that means that another process is gone."""
    return isinstance(error, RuntimeError) and (
        isinstance(error, dist.DistError)
        or any(word in str(error) for word in ("gloo/transport", "NCCL error", "Connection closed by peer"))
    )
