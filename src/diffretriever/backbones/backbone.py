"""Backbone: a loaded language model as the retriever sees it: hidden states at chosen positions, logits of them."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import nn

from diffretriever.backbones.attention import attention_mask
from diffretriever.backbones.graphs import Inputs, Recorder, SequenceGraphs
from diffretriever.backbones.packing import IMPLEMENTATION, packed_forward
from diffretriever.backbones.specs import BackboneSpec
from diffretriever.sequences import Batch, SpecialIds
from diffretriever.tokenizer import Tokenizer

# Columns of the vocabulary matrix gathered at once by `logits_of_rows`, which bounds its memory.
_ROW_BLOCK = 512


class _Places(NamedTuple):
    """Where the T real tokens of a padded [B, L] stand, sequence after sequence.

    Attributes:
        rows: [T] row of each token.
        columns: [T] where it stands in the row.
        positions: [T] where the model is told it stands.
        starts: [B] place of each sequence's first token among the T.
        lengths: tokens of each sequence.
    """

    rows: torch.Tensor
    columns: torch.Tensor
    positions: torch.Tensor
    starts: torch.Tensor
    lengths: tuple[int, ...]


class Backbone(nn.Module):
    """A masked-position predictor (or a causal model, for the baselines).

    Attributes:
        model: the native transformers model with its vocabulary head.
        spec: its registry row.
        tokenizer: its tokeniser.
        special: ids of its mask, end-of-sequence and padding tokens.
        fingerprint: digest of weights and tokeniser; of an opened checkpoint, with what it learned beside its weights.
        weights_dtype: what the layers' weights are rounded to, where that is not `dtype`; "" where it is.
        graphs: runs single sequences in inference mode, on devices where that is faster; None for none.
        term_bias: [V] learned part of the logits that term weights come from; the words that slots predict do without.
            None for none.
    """

    term_bias: nn.Parameter | None

    def __init__(
        self,
        model: nn.Module,
        spec: BackboneSpec,
        tokenizer: Tokenizer,
        special: SpecialIds,
        fingerprint: str,
    ) -> None:
        super().__init__()
        self.model = model
        self.spec = spec
        self.tokenizer = tokenizer
        self.special = special
        self.fingerprint = fingerprint
        self.weights_dtype = ""
        self.graphs: SequenceGraphs | None = None
        self.register_parameter("term_bias", None)

    @property
    def device(self) -> torch.device:
        """Device of the embeddings, where inputs go."""
        return self._embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the embeddings and of what passes between layers."""
        return self._embedding.weight.dtype

    @property
    def dtype_name(self) -> str:
        """Name of what the forward pass computes in, such as "bfloat16" or "float8", as the provenance records it."""
        return self.weights_dtype or str(self.dtype).removeprefix("torch.")

    @property
    def hidden_size(self) -> int:
        """Width D of a hidden state."""
        return int(self.model.config.hidden_size)  # type: ignore[union-attr,arg-type]

    @property
    def vocabulary_size(self) -> int:
        """Number V of rows of the vocabulary matrix; may exceed the tokeniser's."""
        return self._embedding.num_embeddings

    @property
    def position_count(self) -> int | None:
        """Positions that a model has a learned vector for; None where any position can be computed."""
        learned = self.spec.architecture == "BertForMaskedLM"
        return int(self.model.config.max_position_embeddings) if learned else None  # type: ignore[union-attr,arg-type]

    @property
    def block_length(self) -> int:
        """Tokens per block of a block-attention model."""
        return int(getattr(self.model.config, "block_length", None) or self.spec.block_length)

    @property
    def _embedding(self) -> nn.Embedding:
        return cast(nn.Embedding, self.model.get_input_embeddings())  # type: ignore[operator]

    @property
    def _decoder(self) -> nn.Linear:
        return cast(nn.Linear, self.model.get_output_embeddings())  # type: ignore[operator]

    @property
    def head_bias(self) -> nn.Parameter | None:
        """Bias [V] of the vocabulary head; None where it has none."""
        return self._decoder.bias

    def use_graphs(self, record: Recorder | None = None) -> None:
        """Run single sequences through recorded graphs from now on; for models whose sequences may be packed.

        Args:
            record: makes a call repeatable; as a CUDA graph by default.
        """
        self.graphs = SequenceGraphs(self._padded_at, self.special.pad, self.position_count, record)

    @property
    def packs(self) -> bool:
        """Whether sequences of a batch go through without padding."""
        return str(self.model.config._attn_implementation) == IMPLEMENTATION  # type: ignore[union-attr]

    def hidden_states(
        self, ids: torch.Tensor, mask: torch.Tensor, *, positions: torch.Tensor | None = None, padded: bool = False
    ) -> torch.Tensor:
        """Return the last hidden states after the final norm, [B, L, D]; without meaning where `mask` is False.

        Args:
            ids: [B, L] token ids.
            mask: [B, L] True where a token is real: padding is on the right.
            positions: [B, L] of the tokens; 0, 1, 2 ... by default.
            padded: whether padding goes through the model, also where the model could do without.
        """
        mask = mask.to(ids.device)
        if padded or not self.packs:
            return self._padded(self._embedding(ids), mask, positions)
        place = _places(tuple(mask.sum(1).tolist()), ids.device, positions)
        hidden = self._packed(self._embedding(ids[place.rows, place.columns]), place, None)
        return hidden.new_zeros((*ids.shape, hidden.shape[-1])).index_put((place.rows, place.columns), hidden)

    def hidden_at(self, batch: Batch, slot_embeddings: torch.Tensor | None = None, *, offset: int = 0) -> torch.Tensor:
        """Return the hidden states [B, K, D] at the masked positions, moved by `offset` (-1: the aligned readout).

        Args:
            batch: sequences of K masked positions each.
            slot_embeddings: [K, D] learned vectors added to the input embeddings of the masked positions.
            offset: added to each position before reading.
        """
        batch = batch.to(self.device)
        if self.graphs is not None and len(batch.lengths) == 1 and torch.is_inference_mode_enabled():
            found = self.graphs(batch.ids, batch.slots, slot_embeddings, batch.positions, offset)
            if found is not None:
                return found
        wanted = batch.slots + offset
        if not self.packs:
            return self._padded_at(Inputs(batch.ids, batch.mask, batch.slots, slot_embeddings, batch.positions, offset))
        place = _places(batch.lengths, self.device, batch.positions)
        embeddings = self._embedding(batch.ids[place.rows, place.columns])
        embeddings = _with_slots(embeddings, (place.starts[:, None] + batch.slots,), slot_embeddings)
        return self._packed(embeddings, place, place.starts[:, None] + wanted).view(*wanted.shape, -1)

    def _padded_at(self, inputs: Inputs) -> torch.Tensor:
        """Return the hidden states [B, K, D] at the slots of padded sequences."""
        rows = torch.arange(len(inputs.ids), device=inputs.ids.device)[:, None]
        embeddings = _with_slots(self._embedding(inputs.ids), (rows, inputs.slots), inputs.added)
        hidden = self._padded(embeddings, inputs.mask, inputs.positions)
        index = (inputs.slots + inputs.offset)[:, :, None].expand(-1, -1, hidden.shape[-1])
        return hidden.gather(1, index.to(hidden.device))

    def _padded(self, embeddings: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
        """Return the hidden states [B, L, D] of padded sequences, given as input embeddings."""
        implementation = str(self.model.config._attn_implementation)  # type: ignore[union-attr]
        output = self.model.base_model(  # type: ignore[operator]
            inputs_embeds=embeddings,
            attention_mask=attention_mask(self.spec, mask, implementation, self.block_length),
            **({} if positions is None else {"position_ids": positions}),
        )
        return cast(torch.Tensor, output.last_hidden_state)

    def _packed(self, embeddings: torch.Tensor, place: _Places, wanted: torch.Tensor | None) -> torch.Tensor:
        """Return the hidden states [T, D] of packed sequences, or [B * K, D] at the wanted places [B, K] only."""
        return packed_forward(self.spec, self.model, embeddings, place.positions, place.lengths, wanted)

    def before_vocabulary(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return what the vocabulary matrix is multiplied with: the head's transform of `hidden`, if it has one."""
        if not self.spec.transform:
            return hidden
        return cast(torch.Tensor, self.model.get_submodule(self.spec.transform)(hidden))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits [..., V] of hidden states [..., D] over the full vocabulary."""
        decoder = self._decoder
        return F.linear(self.before_vocabulary(hidden.to(decoder.weight.device)), decoder.weight, decoder.bias)

    def logits_of_rows(self, hidden: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return the logits [B, K, R] of hidden states [B, K, D] for each text's own vocabulary rows [B, R].

        These are for term weights, and have the term bias added if there is one. Only those rows of the vocabulary
        matrix are multiplied, since the sparse representation keeps no others (docs/method.md, 7); padding rows (-1)
        give the logit of id 0, to be ignored.
        """
        decoder = self._decoder
        x = self.before_vocabulary(hidden.to(decoder.weight.device))
        rows = rows.to(decoder.weight.device).clamp(min=0)
        blocks = []
        for ids in torch.split(rows, _ROW_BLOCK, dim=1):
            block = x @ decoder.weight[ids].transpose(1, 2)
            for bias in (decoder.bias, self.term_bias):
                block = block if bias is None else block + bias.to(block.device)[ids][:, None, :].to(block.dtype)
            blocks.append(block)
        return torch.cat(blocks, dim=-1) if blocks else x.new_zeros((*x.shape[:2], 0))


def _places(lengths: tuple[int, ...], device: torch.device, positions: torch.Tensor | None) -> _Places:
    """Return the places of right-padded tokens; nothing waits for the device.

    Args:
        lengths: tokens of each sequence.
        device: where they are wanted.
        positions: [B, L] that the model is told; None for the columns.
    """
    total = sum(lengths)
    counts = torch.tensor(lengths).to(device, non_blocking=True)
    rows = torch.repeat_interleave(torch.arange(len(lengths), device=device), counts, output_size=total)
    starts = counts.cumsum(0) - counts
    columns = torch.arange(total, device=device) - starts[rows]
    return _Places(rows, columns, columns if positions is None else positions[rows, columns], starts, lengths)


def _with_slots(
    embeddings: torch.Tensor, places: tuple[torch.Tensor, ...], slot_embeddings: torch.Tensor | None
) -> torch.Tensor:
    """Return input embeddings with [K, D] learned vectors added at B x K places."""
    if slot_embeddings is None:
        return embeddings
    added = slot_embeddings.to(embeddings.device, embeddings.dtype).expand(len(places[-1]), -1, -1)
    return embeddings.index_put(places, added, accumulate=True)
