"""Gathering: the texts' representations of all processes, in the order of a batch in one process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from diffretriever.training.objective import SideTensors, pad_columns


@dataclass(frozen=True)
class World:
    """The processes that train together.

    Attributes:
        rank: number of this process.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @staticmethod
    def here() -> World:
        """Return the world that torch.distributed knows; one process where it was not started."""
        if dist.is_available() and dist.is_initialized():
            return World(dist.get_rank(), dist.get_world_size())
        return World()

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over all processes of a tensor of one shape."""
        if self.size == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total

    def largest(self, value: int, device: torch.device) -> int:
        """Return the largest of the processes' numbers."""
        if self.size == 1:
            return value
        found = torch.tensor(value, device=device)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return int(found)

    def agreed(self, values: list[int]) -> list[int]:
        """Return the numbers of the first process, the same in all."""
        if self.size == 1:
            return values
        box: list[list[int]] = [values]
        dist.broadcast_object_list(box)
        return box[0]

    def gather(self, own: Tensor, counts: Sequence[int]) -> Tensor:
        """Return the rows of all processes, [sum(counts), ...], with gradients for the own rows alone.

        Args:
            own: [counts[rank], ...].
            counts: rows of every process.
        """
        if self.size == 1:
            return own
        longest = max(counts)
        padded = own.new_zeros(longest, *own.shape[1:])
        padded[: len(own)] = own.detach()
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        rows = [part[:count] for part, count in zip(parts, counts, strict=True)]
        rows[self.rank] = own
        return torch.cat(rows)


def gather_side(world: World, own: SideTensors, counts: Sequence[int]) -> SideTensors:
    """Return the tensors of all processes' texts of one side; see `World.gather`."""
    if world.size == 1:
        return own
    width = world.largest(own.ids.shape[1], own.ids.device)
    return SideTensors(
        world.gather(own.dense, counts),
        world.gather(pad_columns(own.weights, width, 0.0), counts),
        world.gather(pad_columns(own.ids, width, -1), counts),
        None if own.teacher is None else world.gather(own.teacher, counts),
    )
