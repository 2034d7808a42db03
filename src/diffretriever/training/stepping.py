"""Stepping: the loss of one optimiser step and its gradients, chunk by chunk.

The losses look at all texts of a batch, whose activations need not fit into memory (GradCache, Gao et al. 2021):

    1. every chunk goes through the model; its representations are kept, its activations only if there is room
    2. the losses of the representations of all chunks and processes, and their gradients
    3. every chunk again, with activations, if they were not kept; the gradients go back through the model
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffretriever.conventions import Side
from diffretriever.training import losses
from diffretriever.training.batch import SIDES, Chunk, LocalLosses, StepInputs
from diffretriever.training.gathering import World, gather_side
from diffretriever.training.module import Outputs
from diffretriever.training.objective import SideTensors, global_losses
from diffretriever.training.settings import LossSettings

Context = Callable[[], AbstractContextManager[object]]


class StepReport(NamedTuple):
    """The parts of one step's loss over all processes, before their factors, and what tells how slots differ.

    Attributes:
        loss: the weighted sum.
        dense: InfoNCE over MaxSim / K_q.
        sparse: InfoNCE over term weights.
        scores: divergence from the teacher's scores.
        vectors: distance from the teacher's vectors.
        parts: distance from the teacher's vectors of the texts' parts.
        part_scores: divergence from the teacher's likeness of these parts.
        words: cross entropy of the slots' words.
        terms: distance from lexical term weights.
        diversity: mean cosine between slots, as far as it is a loss.
        denoising: masked-diffusion loss.
        slot_cosine: mean cosine between the slots of a passage.
    """

    loss: float
    dense: float
    sparse: float
    scores: float
    vectors: float
    parts: float
    part_scores: float
    words: float
    terms: float
    diversity: float
    denoising: float
    slot_cosine: float


@dataclass(frozen=True)
class Engine:
    """What carries gradients: a single process by default, or what accelerate made of a model.

    Attributes:
        backward: adds the gradients of a scalar.
        hold: context in which processes do not yet exchange gradients.
        autocast: context of the forward pass.
        world: the processes; gradients are averaged over them.
    """

    backward: Callable[[Tensor], None] = torch.autograd.backward
    hold: Context = nullcontext
    autocast: Context = nullcontext
    world: World = field(default_factory=World)


def take_step(
    model: Callable[[Chunk], Outputs], inputs: StepInputs, settings: LossSettings, engine: Engine, *, one_pass: bool
) -> StepReport:
    """Add the gradients of one step's loss to the parameters and return its parts.

    Args:
        model: a `RetrieverModule`, or what wraps it.
        inputs: the own texts, on the model's device.
        settings: the objectives.
        engine: carries the gradients.
        one_pass: whether the activations of all chunks are kept, instead of computing every chunk twice.
    """
    states: list[_RandomState] = []
    with nullcontext() if one_pass else torch.no_grad(), engine.autocast():
        outputs = []
        for chunk in inputs.chunks:
            states.append(_RandomState.now())
            outputs.append(model(chunk))
    gradients, factors, report = _gradients(inputs, outputs, settings, engine.world)
    if one_pass:
        engine.backward(
            torch.stack([_surrogate(*parts) for parts in zip(outputs, gradients, factors, strict=True)]).sum()
        )
        return report
    after = _RandomState.now()
    for number, chunk in enumerate(inputs.chunks):
        last = number == len(inputs.chunks) - 1
        with nullcontext() if last else engine.hold():
            states[number].restore()
            with engine.autocast():
                again = model(chunk)
            engine.backward(_surrogate(again, gradients[number], factors[number]))
    after.restore()
    return report


class _RandomState(NamedTuple):
    """The state of the generators, so that a chunk's second pass drops what its first one dropped."""

    cpu: Tensor
    cuda: Tensor | None

    @staticmethod
    def now() -> _RandomState:
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        return _RandomState(torch.get_rng_state(), cuda)

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda)


def _surrogate(outputs: Outputs, gradients: tuple[Tensor, Tensor], factors: Tensor) -> Tensor:
    """Return a scalar whose gradients are those of the loss."""
    dense, weights = gradients
    return (outputs.dense * dense).sum() + (outputs.weights * weights).sum() + (outputs.local * factors).sum()


def _gradients(
    inputs: StepInputs, outputs: Sequence[Outputs], settings: LossSettings, world: World
) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor], StepReport]:
    """Return the gradients of every chunk's representations, the factors of its local losses, and the loss."""
    device = outputs[0].dense.device
    values, gradients = _global_gradients(inputs, outputs, settings, world)
    counts = world.sum(torch.tensor(inputs.counts, dtype=torch.float64, device=device)).tolist()
    means = {side: torch.tensor(_factors(counts, i), device=device) for i, side in enumerate(SIDES)}
    wanted = torch.tensor([getattr(settings, name) for name in LocalLosses._fields], device=device)
    pairs = list(zip(inputs.chunks, outputs, strict=True))
    local = torch.stack([means[c.side] * o.local.detach() for c, o in pairs]).sum(0)
    cosine = sum(losses.slot_cosine((o.dense * o.keep[:, :, None]).detach()) for c, o in pairs if c.side == "passage")
    summed = world.sum(torch.stack([*local, torch.as_tensor(cosine, device=device)]))
    loss = values[0] + (wanted * summed[:-1]).sum()
    numbers = torch.stack([loss, *values[1:], *summed[:-1], summed[-1] / sum(inputs.passage_counts)]).tolist()
    # Gradients are averaged over the processes, and each has the local losses of its own texts alone.
    factors = [means[c.side] * wanted * world.size for c in inputs.chunks]
    return gradients, factors, StepReport(*numbers)


def _global_gradients(
    inputs: StepInputs, outputs: Sequence[Outputs], settings: LossSettings, world: World
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Return the weighted sum and the parts of the global losses, and their gradients by chunk."""
    shared = world if settings.cross_device else World()
    own = [_side(inputs.chunks, outputs, side) for side in SIDES]
    counts = (inputs.query_counts, inputs.passage_counts)
    queries, passages = (gather_side(shared, o, count) for o, count in zip(own, counts, strict=True))
    found = global_losses(queries, passages, inputs.targets, inputs.duplicates, settings)
    total = found.total(settings)
    leaves = [leaf for o in own for leaf in (o.dense, o.weights)]
    # Gathered texts have gradients in their own process alone, and gradients are averaged over the processes.
    grads = torch.autograd.grad(total * shared.size, leaves, allow_unused=True)
    full = [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, grads, strict=True)]
    by_chunk = []
    for chunk, output in zip(inputs.chunks, outputs, strict=True):
        dense, weights = full[:2] if chunk.side == "query" else full[2:]
        rows = torch.tensor(chunk.rows, device=dense.device)
        by_chunk.append((dense[rows], weights[rows][:, : output.weights.shape[1]]))
    values = torch.stack([total, *found]).detach()
    return values if shared.size == world.size else world.sum(values) / world.size, by_chunk


def _factors(counts: Sequence[Sequence[float]], side: int) -> list[float]:
    """Return what makes the sums of a side's local losses a mean: over all words, else over each side by half."""
    query, passage = (LocalLosses(*c) for c in counts)
    own = (query, passage)[side]

    def half(count: float) -> float:
        return 0.5 / count if count else 0.0

    words = query.words + passage.words
    return list(
        LocalLosses(
            vectors=half(own.vectors),
            parts=half(own.parts),
            part_scores=half(own.part_scores),
            words=1 / words if words else 0.0,
            terms=half(own.terms),
            diversity=half(own.diversity),
            denoising=1 / own.denoising if own.denoising else 0.0,
        )
    )


def _side(chunks: Sequence[Chunk], outputs: Sequence[Outputs], side: Side) -> SideTensors:
    """Return the representations of the own texts of one side in order, as leaves that gradients are taken for."""
    pairs = [(c, o) for c, o in zip(chunks, outputs, strict=True) if c.side == side]
    order = torch.tensor([row for c, _ in pairs for row in c.rows])
    device = pairs[0][1].dense.device
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order))
    back = back.to(device)
    width = max(o.weights.shape[1] for _, o in pairs)

    def joined(parts: list[Tensor], value: float | None = None) -> Tensor:
        if value is not None:
            parts = [nn.functional.pad(p, (0, width - p.shape[1]), value=value) for p in parts]
        return torch.cat([p.detach() for p in parts])[back]

    ids = [torch.full(o.weights.shape, -1, device=device) if c.content is None else c.content for c, o in pairs]
    teacher = None
    if pairs[0][0].teacher is not None:
        # A text's parts score better than its mean does, so that the student learns their scores where it has them.
        whole = [c.teacher[:, None] for c, _ in pairs if c.teacher is not None]
        teacher = joined([c.parts for c, _ in pairs if c.parts is not None] or whole)
    return SideTensors(
        joined([o.dense for _, o in pairs]).requires_grad_(),
        joined([o.weights for _, o in pairs], 0.0).requires_grad_(),
        joined(ids, -1),
        teacher,
    )
