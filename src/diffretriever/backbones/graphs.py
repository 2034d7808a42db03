"""Graphs: single sequences replayed as CUDA graphs, which spares the launch of every kernel.

One query through a model of 7B parameters is bound by reading its weights, about 4 ms; launching some thousand kernels
from Python takes longer than that. A graph has fixed shapes, so sequences are padded to a few lengths, and each length
is recorded once.
"""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch

#: Lengths that sequences are padded to; a longer one is computed without a graph.
BUCKETS = (32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256)

#: Graphs held at once: each keeps its activations.
_MOST_GRAPHS = 24


class Inputs(NamedTuple):
    """One padded sequence, at fixed places of memory.

    Attributes:
        ids: [1, L] token ids.
        mask: [1, L] True where a token is real.
        slots: [1, K] positions of the masked positions.
        added: [K, D] vectors added to the input embeddings there; None for none.
        positions: [1, L] positions that the model is told; None for 0, 1, 2 ...
        offset: what is added to the slots before reading.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    slots: torch.Tensor
    added: torch.Tensor | None
    positions: torch.Tensor | None
    offset: int


class Replay(NamedTuple):
    """A recorded call: what it writes to, and how to do it again."""

    output: torch.Tensor
    run: Callable[[], None]


#: Bucket, number of slots, offset, whether vectors are added, whether positions are told.
_Key = tuple[int, int, int, bool, bool]
Recorder = Callable[[Callable[[], torch.Tensor]], Replay]


class SequenceGraphs:
    """Runs one sequence at a time through graphs of a forward pass; threads wait for each other.

    Args:
        forward: the hidden states [1, K, D] at the slots of one padded sequence; it may not wait for the device.
        pad_id: id of padding.
        longest: positions that the model can read; None for any number.
        record: makes a call repeatable; as a CUDA graph by default.
    """

    def __init__(
        self,
        forward: Callable[[Inputs], torch.Tensor],
        pad_id: int,
        longest: int | None = None,
        record: Recorder | None = None,
    ) -> None:
        self._forward = forward
        self._pad_id = pad_id
        self._longest = longest
        self._buckets = tuple(b for b in BUCKETS if longest is None or b <= longest)
        self._record = record or record_cuda
        # A graph reads and writes fixed places of memory, which another thread's sequence would overwrite.
        self._lock = threading.Lock()
        self._graphs: OrderedDict[_Key, tuple[Inputs, Replay]] = OrderedDict()

    def __call__(
        self,
        ids: torch.Tensor,
        slots: torch.Tensor,
        added: torch.Tensor | None,
        positions: torch.Tensor | None,
        offset: int,
    ) -> torch.Tensor | None:
        """Return the hidden states [1, K, D] at the slots; None for a sequence longer than every bucket.

        Args:
            ids: [1, L] token ids, none of them padding.
            slots: [1, K] positions of the masked positions.
            added: [K, D] vectors added to the input embeddings there, or None.
            positions: [1, L] positions that the model is told, or None.
            offset: added to the slots before reading.
        """
        length = ids.shape[1]
        bucket = next((b for b in self._buckets if b >= length), None)
        if bucket is None:
            return None
        key = (bucket, slots.shape[1], offset, added is not None, positions is not None)
        with self._lock, _current(slots.device):
            if key not in self._graphs:
                self._graphs[key] = self._recorded(bucket, slots, added, positions, offset)
            self._graphs.move_to_end(key)
            return self._replayed(*self._graphs[key], ids, slots, added, positions)

    def __deepcopy__(self, memo: dict[int, object]) -> SequenceGraphs:
        """Return graphs of the copied model, with none recorded: a recording is of this one's weights."""
        return SequenceGraphs(copy.deepcopy(self._forward, memo), self._pad_id, self._longest, self._record)

    def _replayed(
        self,
        inputs: Inputs,
        replay: Replay,
        ids: torch.Tensor,
        slots: torch.Tensor,
        added: torch.Tensor | None,
        positions: torch.Tensor | None,
    ) -> torch.Tensor:
        length = ids.shape[1]
        inputs.ids.fill_(self._pad_id)[:, :length].copy_(ids, non_blocking=True)
        inputs.mask.fill_(False)[:, :length].fill_(True)
        inputs.slots.copy_(slots, non_blocking=True)
        if inputs.added is not None and added is not None:
            inputs.added.copy_(added, non_blocking=True)
        if inputs.positions is not None and positions is not None:
            inputs.positions[:, :length].copy_(positions, non_blocking=True)
        replay.run()
        return replay.output.clone()

    def _recorded(
        self,
        bucket: int,
        slots: torch.Tensor,
        added: torch.Tensor | None,
        positions: torch.Tensor | None,
        offset: int,
    ) -> tuple[Inputs, Replay]:
        while len(self._graphs) >= _MOST_GRAPHS:
            self._graphs.popitem(last=False)
        ids = torch.full((1, bucket), self._pad_id, device=slots.device)
        mask = torch.ones(1, bucket, dtype=torch.bool, device=slots.device)
        told = None if positions is None else torch.arange(bucket, device=slots.device)[None]
        inputs = Inputs(ids, mask, slots.clone(), None if added is None else added.clone(), told, offset)
        return inputs, self._record(lambda: self._forward(inputs))


def _current(device: torch.device) -> AbstractContextManager[object]:
    """Make a CUDA device the current one: streams and graphs are made on that, wherever their tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def record_cuda(call: Callable[[], torch.Tensor]) -> Replay:
    """Record a call on the current device as a CUDA graph, after two calls that let libraries choose their kernels."""
    side: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call()
    return Replay(output, graph.replay)


def record_calls(call: Callable[[], torch.Tensor]) -> Replay:
    """Repeat a call as it is, on devices without graphs: for trying the padding out."""
    output = call()

    def run() -> None:
        output.copy_(call())

    return Replay(output, run)
