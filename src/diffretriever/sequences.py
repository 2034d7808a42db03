"""Sequence: prefix, text, suffix, K masked positions and tail as token ids; and batches of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from diffretriever.conventions import Protocol, Side
from diffretriever.errors import InputError, PromptError
from diffretriever.prompts import Chat, Prompt
from diffretriever.tokenizer import Tokenizer

MAX_SLOTS = 256


class MaskedSequence(NamedTuple):
    """One input of the backbone.

    Attributes:
        ids: token ids of the whole sequence.
        first_slot: position of the first masked position; the others follow it without a gap.
        slot_positions: positions that the model is told of the masked positions; None for where they stand.
    """

    ids: tuple[int, ...]
    first_slot: int
    slot_positions: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Frame:
    """What surrounds the texts of one side: `prefix + text + suffix + [MASK] * slots + tail` (docs/method.md, 1).

    Attributes:
        side: "query" or "passage".
        prefix: ids before the text.
        suffix: ids after the text, up to the first masked position.
        tail: ids after the last masked position; real tokens, not masks.
        mask_id: id of the mask token.
        slots: K, number of masked positions.
        text_room: how many tokens a text may have; the rest of it is cut off.
        spread: whether the model is told that masked position k stands in the middle of the k-th of K equal parts of
            the text, instead of after it, so that each looks at a part of its own.
    """

    side: Side
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    tail: tuple[int, ...]
    mask_id: int
    slots: int
    text_room: int
    spread: bool

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return len(self.prefix) + self.text_room + len(self.suffix) + self.slots + len(self.tail)

    def wrap(self, text_ids: Sequence[int]) -> MaskedSequence:
        """Return the sequence of one tokenised text."""
        text = text_ids[: self.text_room]
        before = (*self.prefix, *text, *self.suffix)
        ids = (*before, *([self.mask_id] * self.slots), *self.tail)
        if not self.spread:
            return MaskedSequence(ids, len(before))
        middles = ((2 * k + 1) * len(text) // (2 * self.slots) for k in range(self.slots))
        return MaskedSequence(ids, len(before), tuple(len(self.prefix) + m for m in middles))


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the tokens a frame needs, as the backbone's row and the folder's files give them."""

    mask: int
    end_of_sequence: int
    pad: int


def build_frame(
    side: Side,
    prompt: Prompt,
    chat: Chat,
    tokenizer: Tokenizer,
    special: SpecialIds,
    protocol: Protocol,
    slots: int,
    max_length: int,
    *,
    spread: bool = False,
) -> Frame:
    """Return the frame of one side.

    Prefix, text and suffix are tokenised separately, so that no token spans their borders.

    Raises:
        InputError: `slots` is out of range, or `max_length` leaves no room for text.
        PromptError: a token of the tail is not one token of this vocabulary.
    """
    if not 1 <= slots <= MAX_SLOTS:
        raise InputError(f"{side}_slots is {slots}; it must be from 1 to {MAX_SLOTS}")
    affixes = prompt.affixes(side, chat, slots)
    prefix, suffix = tokenizer.encode(list(affixes), parse_special_tokens=True)
    tail = tuple(_tail_id(t, chat, tokenizer, special) for t in prompt.tail)
    overhead = len(prefix) + len(suffix)
    if protocol.length_includes_slots:
        overhead += slots + len(tail)
    if max_length <= overhead:
        raise InputError(
            f"max_length {max_length} leaves no room for {side} text: prompt {prompt.name!r} with {slots} masked "
            f"positions takes {overhead} tokens; raise it to at least {overhead + 1}"
        )
    return Frame(side, tuple(prefix), tuple(suffix), tail, special.mask, slots, max_length - overhead, spread)


def _tail_id(token: str, chat: Chat, tokenizer: Tokenizer, special: SpecialIds) -> int:
    """Return the id of one tail token; one that the vocabulary lacks becomes the end-of-sequence token."""
    if token == "{end_of_sequence}":  # noqa: S105
        return special.end_of_sequence
    if token == "{end_of_turn}":  # noqa: S105
        found = tokenizer.id_of(chat.end_of_turn)
        return special.end_of_sequence if found is None else found
    ids = tokenizer.encode([token], parse_special_tokens=True)[0]
    if len(ids) > 1:
        raise PromptError(f"the tail token {token!r} is {len(ids)} tokens of this vocabulary; a tail token must be one")
    return ids[0] if ids else special.end_of_sequence


@dataclass(frozen=True)
class Batch:
    """Sequences padded on the right to a common length.

    Attributes:
        ids: [B, L] token ids.
        mask: [B, L] True where a token is real.
        slots: [B, K] positions of the masked positions.
        lengths: number of real tokens of each sequence, known without asking a device.
        positions: [B, L] positions that the model is told; None for 0, 1, 2 ...
    """

    ids: torch.Tensor
    mask: torch.Tensor
    slots: torch.Tensor
    lengths: tuple[int, ...]
    positions: torch.Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        ids, mask, slots = (t.to(device, non_blocking=True) for t in (self.ids, self.mask, self.slots))
        positions = None if self.positions is None else self.positions.to(device, non_blocking=True)
        return Batch(ids, mask, slots, self.lengths, positions)


def collate(sequences: Sequence[MaskedSequence], slots: int, pad_id: int) -> Batch:
    """Return a batch of sequences that have `slots` masked positions each."""
    lengths = tuple(len(s.ids) for s in sequences)
    longest = max(lengths)
    ids = torch.full((len(sequences), longest), pad_id, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence.ids)] = torch.tensor(sequence.ids)
    first = torch.tensor([s.first_slot for s in sequences])
    positions = None
    if any(s.slot_positions is not None for s in sequences):
        positions = torch.arange(longest).repeat(len(sequences), 1)
        for row, s in zip(positions, sequences, strict=True):
            if s.slot_positions is not None:
                row[s.first_slot : s.first_slot + len(s.slot_positions)] = torch.tensor(s.slot_positions)
    return Batch(
        ids=ids,
        mask=torch.arange(longest)[None, :] < torch.tensor(lengths)[:, None],
        slots=first[:, None] + torch.arange(slots)[None, :],
        lengths=lengths,
        positions=positions,
    )


def batches_by_length(lengths: Sequence[int], tokens: int, *, padded: bool = True) -> Iterator[list[int]]:
    """Yield positions of sequences, longest first, in batches of at most `tokens` tokens, or of one sequence.

    Longest first shows at once whether memory suffices, and makes a time estimate err on the safe side.

    Args:
        lengths: tokens of each sequence.
        tokens: tokens of a batch.
        padded: whether every sequence counts as long as the longest of its batch.
    """
    batch: list[int] = []
    used = 0
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        cost = lengths[batch[0]] if padded and batch else lengths[i]
        if batch and used + cost > tokens:
            yield batch
            batch, used, cost = [], 0, lengths[i]
        batch.append(i)
        used += cost
    if batch:
        yield batch
