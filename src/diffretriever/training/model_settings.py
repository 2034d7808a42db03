"""ModelSettings: what is trained, and how it reads a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from diffretriever.checkpoint import RetrieverSettings
from diffretriever.conventions import SlotPositions, System, Terms
from diffretriever.errors import InputError
from diffretriever.training.checks import at_least, one_of, share

DType = Literal["auto", "float32", "bfloat16", "float16"]
Attention = Literal["auto", "eager", "sdpa", "flash_attention_2", "packed"]


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adaptation (Hu et al. 2022); the base weights stay as they are.

    Attributes:
        r: rank of the updates.
        alpha: an update counts `alpha / r`.
        dropout: share of an adapter's inputs that is dropped.
        targets: names of the adapted layers; those of the backbone's row by default, never the vocabulary head.
        merge: whether the finished model holds the base with the updates added, instead of the adapters alone.
    """

    r: int = 16
    alpha: float = 64.0
    dropout: float = 0.05
    targets: tuple[str, ...] | None = None
    merge: bool = False

    def __post_init__(self) -> None:
        at_least(1, r=self.r)
        share(dropout=self.dropout)


@dataclass(frozen=True)
class ModelSettings:
    """What is trained, and how it reads a text.

    Attributes:
        base: what `DiffRetriever.from_pretrained` takes: "minilm", a folder, an alias or a hub id.
        sha256: digest that the base's `model.safetensors` must have; None for any.
        system: "diffretriever", or a system to compare with: "diffembed" (mean), "repllama" (end token, causal) or
            "promptreps" (last token of the prompt, causal).
        query_slots: K_q; the backbone's usual number by default.
        passage_slots: K_p.
        prompt: name of a template or path of a JSON file; the backbone's usual one by default.
        protocol: "default" or "paper".
        readout: "slot" or "aligned"; DiffRetriever only.
        max_query_length: longest query sequence of the finished model, in tokens.
        max_passage_length: longest passage sequence of the finished model, in tokens.
        slot_embeddings: whether a learned vector per slot and side is added to the masked positions' inputs.
        slot_start: what these vectors are at first: those of the base if it has any, else random ("auto"), "random",
            or an item of the vocabulary: its embedding minus that of the mask, so that every slot starts as that token.
            Function words ("of") do well in encoders, whose tokens gather what stands around them; the vectors then
            learn at `optimisation.learning_rate`, not at the head's rate.
        slot_positions: "after" the text or "spread" over it, as `Frame.spread` says; that of the base by default.
        terms: whether a text weights the "pieces" of its words or their "stems", see `stems.StemPieces`; that of the
            base by default.
        term_counts: whether the term weights of passages are multiplied by BM25's factor for counts and length, see
            `terms.count_factors`; those of a base that does so always are.
        term_bias: whether term weights have a learned bias per vocabulary id, which starts as what a term weighs by its
            document frequency alone. The words that slots say are read without it.
        slot_noise: standard deviation of the random part.
        pooling_layer: whether a BERT encoder gets one more layer, whose every position starts as the average of the
            last hidden states; see `pooling_layer.append_pooling_layer`.
        lora: low-rank adaptation; None trains all weights.
        dtype: dtype of the weights that are trained; "auto" is fp32, and bf16 under LoRA with `optimisation.bf16`.
        attention: "auto" is plain products on a CPU, whose backward pass is four times as fast there as that of the
            fused kernel, and "sdpa" elsewhere; or "eager", "sdpa", "flash_attention_2", "packed" (no padding).
        dropout: of the backbone's own layers that have one.
    """

    base: str = "minilm"
    sha256: str | None = None
    system: System = "diffretriever"
    query_slots: int | None = None
    passage_slots: int | None = None
    prompt: str | None = None
    protocol: str = "default"
    readout: str = "slot"
    max_query_length: int = 512
    max_passage_length: int = 512
    slot_embeddings: bool = False
    slot_start: str = "auto"
    slot_positions: SlotPositions | None = None
    terms: Terms | None = None
    term_counts: bool = False
    term_bias: bool = False
    slot_noise: float = 0.05
    pooling_layer: bool = False
    lora: LoraSettings | None = None
    dtype: DType = "auto"
    attention: Attention = "auto"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        one_of(
            system=(self.system, get_args(System)),
            dtype=(self.dtype, get_args(DType)),
            attention=(self.attention, get_args(Attention)),
            terms=(self.terms or "pieces", get_args(Terms)),
        )
        share(dropout=self.dropout)
        if self.slot_positions is not None:
            one_of(slot_positions=(self.slot_positions, get_args(SlotPositions)))
            if self.system != "diffretriever":
                raise InputError(f"model.slot_positions is set; {self.system} has no masked positions, leave it out")
        if self.slot_embeddings and self.system != "diffretriever":
            raise InputError(f"model.slot_embeddings is on; {self.system} has no masked positions, set it to false")

    @property
    def slots_start_as_a_token(self) -> bool:
        """Whether slot embeddings start as an item of the vocabulary."""
        return self.slot_embeddings and self.slot_start not in ("auto", "random")

    def checkpoint_settings(self) -> RetrieverSettings:
        """Return what the finished checkpoint records beside its weights."""
        return RetrieverSettings(
            prompt=self.prompt,
            query_slots=self.query_slots,
            passage_slots=self.passage_slots,
            max_query_length=self.max_query_length,
            max_passage_length=self.max_passage_length,
            readout=self.readout,
            protocol=self.protocol,
            tuned=True,
            system=self.system,
            slot_positions=self.slot_positions,
            terms=self.terms,
        )
