"""WordTargets: what the vocabulary head should say of a text, from how frequent words are in the training texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import LayerNorm

from diffretriever.backbones.backbone import Backbone
from diffretriever.conventions import Side
from diffretriever.errors import InputError
from diffretriever.training.rows import RowFile
from diffretriever.training.salience import (
    TermStatistics,
    is_whole_word,
    log_prior,
    part_words,
    passage_weights,
    query_weights,
    salient_words,
    term_prior,
)
from diffretriever.training.settings import WordOrder
from diffretriever.training.texts import PreparedText

#: Passages of each file that document frequencies are counted on.
SAMPLE = 2000
#: Factor of a head's own voice where it starts from a prior.
_QUIET = 0.5


@dataclass(frozen=True)
class WordTargets:
    """What slots should say and terms should weigh.

    Attributes:
        statistics: document frequencies.
        offsets: [V] each: what is added to the word logits in training, before and after `loss.match_from`.
    """

    statistics: TermStatistics
    offsets: tuple[Tensor, Tensor]

    @staticmethod
    def count(texts: Iterable[PreparedText], backbone: Backbone, slots: int, prior: float) -> WordTargets:
        """Return the targets that follow from a sample of passages.

        Args:
            texts: the sample.
            backbone: gives the vocabulary.
            slots: K_p.
            prior: share of the words' log prior in the offsets.
        """
        words = [text.words for text in texts]
        statistics = TermStatistics.count(words)
        said = (salient_words(w, statistics, slots) for w in words)
        size = backbone.vocabulary_size
        offset = prior * torch.tensor(log_prior(said, size))
        no_word = torch.tensor([not is_whole_word(backbone.tokenizer.text_of(i)) for i in range(size)])
        return WordTargets(statistics, (offset, offset.masked_fill(no_word, float(offset.max()))))

    def beside(self, biases: Tensor) -> WordTargets:
        """Return the targets of a head that starts with biases [V], which the words' cross entropy then leaves out.

        They say that a rare term weighs more where it stands, not that it is likely to stand here.
        """
        return replace(self, offsets=(self.offsets[0] - biases, self.offsets[1] - biases))

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


@torch.no_grad()
def start_from_prior(backbone: Backbone, statistics: TermStatistics, scale: float) -> Tensor:
    """Set the biases of a BERT head, in place, to what a term of that frequency weighs in general, and return them [V].

    What the head says of a text itself is quietened, so that it adds to the prior instead of hiding it.

    Args:
        backbone: its vocabulary head has biases and a transform that ends in a norm.
        statistics: document frequencies.
        scale: of the term weights, `loss.term_scale`.

    Raises:
        InputError: the head is of another kind.
    """
    bias = getattr(backbone.model.get_output_embeddings(), "bias", None)  # type: ignore[operator]
    if bias is None or not backbone.spec.transform:
        raise InputError("loss.term_prior is on; it is for the vocabulary heads of BERT encoders, set it to false")
    biases = torch.tensor(term_prior(statistics, len(bias), scale=scale))
    bias.copy_(biases)
    norm = next(m for m in backbone.model.get_submodule(backbone.spec.transform).modules() if isinstance(m, LayerNorm))
    norm.weight.mul_(_QUIET)
    return biases


def sampled_passages(files: Sequence[RowFile]) -> list[str]:
    """Return passages spread evenly over each file."""
    return [file[i].positives[0] for file in files for i in range(0, len(file), max(1, len(file) // SAMPLE))]
