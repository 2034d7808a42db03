"""TextFrame: what surrounds a text that is read without masked positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diffretriever.conventions import Side
from diffretriever.errors import InputError
from diffretriever.sequences import Frame, MaskedSequence


@dataclass(frozen=True)
class TextFrame(Frame):
    """`prefix + text + suffix`, with the last token of the sequence in the place of the masked positions.

    Attributes:
        blank: id that stands for a text without any token where nothing surrounds it.
    """

    blank: int

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return len(self.prefix) + self.text_room + len(self.suffix)

    def wrap(self, text_ids: Sequence[int]) -> MaskedSequence:
        """Return the sequence of one tokenised text; its one slot is the last token."""
        ids = (*self.prefix, *text_ids[: self.text_room], *self.suffix) or (self.blank,)
        return MaskedSequence(ids, len(ids) - 1)


def text_frame(side: Side, prefix: Sequence[int], suffix: Sequence[int], blank: int, max_length: int) -> TextFrame:
    """Return a frame that gives the text all of `max_length` that the tokens around it leave.

    Raises:
        InputError: they leave nothing.
    """
    overhead = len(prefix) + len(suffix)
    if max_length <= overhead:
        raise InputError(
            f"max_length {max_length} leaves no room for {side} text: the tokens around it are {overhead}; raise it to "
            f"at least {overhead + 1}"
        )
    return TextFrame(side, tuple(prefix), tuple(suffix), (), -1, 1, max_length - overhead, False, blank)
