"""WordTargets: what the vocabulary head should say of a text, from how frequent words are in the training texts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffretriever.backbones.backbone import Backbone
from diffretriever.conventions import Side
from diffretriever.training.rows import RowFile
from diffretriever.training.salience import (
    TermStatistics,
    is_whole_word,
    log_prior,
    part_words,
    passage_weights,
    query_weights,
    salient_words,
    term_logits,
)
from diffretriever.training.settings import WordOrder
from diffretriever.training.texts import PreparedText

#: Passages of each file that document frequencies are counted on.
SAMPLE = 2000


@dataclass(frozen=True)
class WordTargets:
    """What slots should say and terms should weigh.

    Attributes:
        statistics: document frequencies.
        offsets: [V] each: what is added to the word logits in training, before and after `loss.match_from`.
        rare: [V] what is added for good to the logits of words that slots hardly ever say, 0 or below.
    """

    statistics: TermStatistics
    offsets: tuple[Tensor, Tensor]
    rare: Tensor

    @staticmethod
    def count(
        texts: Iterable[PreparedText], backbone: Backbone, slots: int, prior: float, support: int = 1
    ) -> WordTargets:
        """Return the targets that follow from a sample of passages.

        Args:
            texts: the sample.
            backbone: gives the vocabulary.
            slots: K_p.
            prior: share of the words' log prior in the offsets.
            support: how many texts must have a slot say a word for it not to be rare.
        """
        words = [text.words for text in texts]
        statistics = TermStatistics.count(words)
        said = (salient_words(w, statistics, slots) for w in words)
        size = backbone.vocabulary_size
        priors = torch.tensor(log_prior(said, size))
        offset = prior * priors
        # log(count + 1) - log(support), as far as it is below 0; the least prior is that of ids that no slot says,
        # of which special tokens are always some
        rare = (priors - priors.min() - math.log(support)).clamp(max=0.0)
        no_word = torch.tensor([not is_whole_word(backbone.tokenizer.text_of(i)) for i in range(size)])
        return WordTargets(statistics, (offset, offset.masked_fill(no_word, float(offset.max()))), rare)

    @torch.no_grad()
    def start(self, backbone: Backbone, scale: float) -> None:
        """Set the term bias of a backbone to what a term weighs by its document frequency alone.

        A weight w comes from a logit of exp(w) - 1; slots then need only say what is particular to a text. What a word
        that is hardly ever said loses in the head's bias the term bias gives back: terms are the same without it.
        """
        if backbone.term_bias is None:
            return
        logits = term_logits(self.statistics, backbone.vocabulary_size, scale=scale)
        backbone.term_bias.copy_(torch.tensor(logits))
        if (bias := backbone.head_bias) is not None:
            bias.add_(self.rare.to(bias.device))
            backbone.term_bias.sub_(self.rare.to(bias.device))

    def weights(self, texts: Sequence[PreparedText], side: Side, content: Tensor, scale: float) -> Tensor:
        """Return the lexical weight [B, R] of every content id [B, R] of texts of one side."""
        weigh = query_weights if side == "query" else passage_weights
        weights = torch.zeros(content.shape)
        for row, ids, text in zip(weights, content.tolist(), texts, strict=True):
            found = weigh(text.words, self.statistics, scale=scale)
            own = [i for i in ids if i >= 0]
            row[: len(own)] = torch.tensor([found[i] for i in own])
        return weights

    def words(self, texts: Sequence[PreparedText], slots: int, order: WordOrder = "salience") -> Tensor:
        """Return the vocabulary id [B, slots] that each slot should say, -100 for none.

        Args:
            texts: the texts.
            slots: K.
            order: what word is a slot's; see `LossSettings.words_by`.
        """
        words = torch.full((len(texts), slots), -100)
        for row, text in zip(words, texts, strict=True):
            if order == "part":
                said = [-100 if i is None else i for i in part_words(text.words, self.statistics, slots)]
            else:
                said = salient_words(text.words, self.statistics, slots)
            row[: len(said)] = torch.tensor(said, dtype=torch.long)
        return words


def sampled_passages(files: Sequence[RowFile]) -> list[str]:
    """Return passages spread evenly over each file."""
    return [file[i].positives[0] for file in files for i in range(0, len(file), max(1, len(file) // SAMPLE))]
