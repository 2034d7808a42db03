"""DiffRetriever: texts in, dense, pooled and sparse representations out, from one forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from typing_extensions import Unpack

from diffretriever.backbones.backbone import Backbone
from diffretriever.checkpoint import RetrieverSettings
from diffretriever.conventions import Protocol, Side, protocol_named
from diffretriever.corpus import Passage
from diffretriever.denoising import Denoising, Stops, kept_slots, read_slots
from diffretriever.encoder import PassageLike
from diffretriever.errors import CheckpointError, InputError
from diffretriever.pretrained import BackboneOptions, open_checkpoint, save_checkpoint
from diffretriever.progress import progress_bar
from diffretriever.prompts import Chat, Prompt
from diffretriever.representations import Provenance, Representations, SlotWords
from diffretriever.sequences import Batch, Frame, batches_by_length, build_frame, collate
from diffretriever.terms import DEFAULT, PAPER_FINE_TUNED, PAPER_ZERO_SHOT, ContentWords, TermRule, term_weights
from diffretriever.version import __version__

# Texts tokenised and sorted by length at once: bounds what is in memory beside the results.
_LOOK_AHEAD = 8192


@dataclass(frozen=True)
class _Part:
    """Encoded texts of one batch and where they stood in the input."""

    rows: list[int]
    representations: Representations


class DiffRetriever:
    """The paper's retriever over any diffusion backbone, zero-shot or tuned (docs/method.md, 1 to 8).

    Example:
        >>> from diffretriever import DiffRetriever
        >>> model = DiffRetriever.from_pretrained("mini")
        >>> queries = model.encode_queries(["what causes the seasons?"])
        >>> queries.vectors(0).shape
        (4, 384)
    """

    def __init__(
        self,
        backbone: Backbone,
        settings: RetrieverSettings,
        *,
        name: str = "",
        slot_embeddings: torch.Tensor | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        """Build a retriever from a loaded backbone; `from_pretrained` is the usual way.

        Args:
            backbone: the language model.
            settings: prompt, K and the rest; what is None is taken from the backbone's row.
            name: name recorded in the provenance.
            slot_embeddings: [2, K_max, D] learned vectors of the query's and the passage's masked positions.
            batch_tokens: tokens per forward pass, padding included; by default 4,096 on a CPU and 32,768 elsewhere.
        """
        spec = backbone.spec
        if spec.attention == "causal":
            raise CheckpointError(f"{name or spec.name}: a causal model has no masked positions to read")
        query_slots = spec.slots[0] if settings.query_slots is None else settings.query_slots
        passage_slots = spec.slots[1] if settings.passage_slots is None else settings.passage_slots
        self.backbone = backbone
        self.protocol: Protocol = protocol_named(settings.protocol)
        self.chat = Chat.load(spec.chat)
        self.prompt = _choose_prompt(settings.prompt, spec.prompt, query_slots, passage_slots)
        self.settings = replace(
            settings, query_slots=query_slots, passage_slots=passage_slots, prompt=self.prompt.to_mapping()
        )
        self.slot_embeddings = _checked_slot_embeddings(slot_embeddings, backbone, max(query_slots, passage_slots))
        self.batch_tokens = batch_tokens or (4096 if backbone.device.type == "cpu" else 32768)
        self.frames: dict[Side, Frame] = {
            "query": self._frame("query", query_slots, settings.max_query_length),
            "passage": self._frame("passage", passage_slots, settings.max_passage_length),
        }
        self.stops: Stops = "none" if settings.tuned else "special"
        self.term_rule = _term_rule(self.protocol, settings.tuned)
        self.denoising = _denoising(settings, self.protocol, spec.shift)
        excluded = frozenset({backbone.special.mask})
        if self.protocol.strict_content:
            excluded |= backbone.tokenizer.special_ids
        self.content = ContentWords(backbone.tokenizer.encode_words, excluded, self.protocol.strict_content)
        self._name = name or spec.name

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = "mini",
        *,
        query_slots: int | None = None,
        passage_slots: int | None = None,
        prompt: str | Path | None = None,
        protocol: str | None = None,
        readout: str | None = None,
        steps: int | None = None,
        max_query_length: int | None = None,
        max_passage_length: int | None = None,
        batch_tokens: int | None = None,
        **backbone_options: Unpack[BackboneOptions],
    ) -> DiffRetriever:
        """Return the retriever of a checkpoint; options that are None are those the checkpoint records.

        Args:
            name_or_path: "mini" (shipped), a folder, an alias ("dream-7b", "llada-8b") or a hub id. A folder may hold
                a full model, a LoRA adapter in PEFT's layout, or a checkpoint of the paper's code.
            query_slots: K_q.
            passage_slots: K_p.
            prompt: name of a template or path of a JSON file.
            protocol: "default" or "paper".
            readout: "slot", or "aligned" to read shifted backbones one position earlier.
            steps: denoising steps S.
            max_query_length: longest query in tokens.
            max_passage_length: longest passage in tokens.
            batch_tokens: tokens per forward pass.
            backbone_options: base, device, dtype, attention, device_map: see `open_checkpoint`.

        Raises:
            CheckpointError: files are missing, foreign or do not fit.
            InputError: an option is out of range.
        """
        given = {
            "query_slots": query_slots,
            "passage_slots": passage_slots,
            "prompt": None if prompt is None else str(prompt),
            "protocol": protocol,
            "readout": readout,
            "steps": steps,
            "max_query_length": max_query_length,
            "max_passage_length": max_passage_length,
        }
        checkpoint = open_checkpoint(name_or_path, given, **backbone_options)
        return cls(
            checkpoint.backbone,
            checkpoint.settings,
            name=str(name_or_path),
            slot_embeddings=checkpoint.slot_embeddings,
            batch_tokens=batch_tokens,
        )

    @property
    def provenance(self) -> Provenance:
        """Everything that must agree between two encodings for their scores to mean something."""
        s = self.settings
        return Provenance(
            model=self._name,
            fingerprint=self.backbone.fingerprint,
            prompt=self.prompt.name,
            prompt_hash=self.prompt.digest(self.chat, self.frames["query"].slots, self.frames["passage"].slots),
            protocol=s.protocol,
            readout=s.readout,
            query_slots=self.frames["query"].slots,
            passage_slots=self.frames["passage"].slots,
            steps=s.steps,
            max_query_length=s.max_query_length,
            max_passage_length=s.max_passage_length,
            dtype=str(self.backbone.dtype).removeprefix("torch."),
            version=__version__,
            stops=self.stops,
        )

    @property
    def dim(self) -> int:
        """Width D of the dense vectors."""
        return self.backbone.hidden_size

    @property
    def vocabulary_size(self) -> int:
        """Number V of columns of the sparse representations."""
        return self.backbone.vocabulary_size

    def term(self, term_id: int) -> str:
        """Return the readable text of a vocabulary id."""
        return self.backbone.tokenizer.text_of(term_id)

    def encode_queries(
        self, queries: str | Sequence[str], *, words: int = 0, progress: bool = False
    ) -> Representations:
        """Return the representations of N queries, row i for query i.

        Args:
            queries: texts; an empty one is represented by the prompt around it.
            words: how many predicted words to keep per slot.
            progress: whether to show a progress bar on a terminal.
        """
        texts = [queries] if isinstance(queries, str) else list(queries)
        return self._encode(_checked(texts), "query", words, progress)

    def encode_passages(
        self, passages: str | Sequence[PassageLike], *, words: int = 0, progress: bool = False
    ) -> Representations:
        """Return the representations of N passages, row i for passage i.

        Args:
            passages: texts, `Passage` objects, or mappings with "text" and perhaps "title". A title is written
                before its text as "title. text".
            words: how many predicted words to keep per slot.
            progress: whether to show a progress bar on a terminal.
        """
        given = [passages] if isinstance(passages, str) else list(passages)
        return self._encode(_checked([_passage_text(p) for p in given]), "passage", words, progress)

    def save_pretrained(self, path: str | Path) -> None:
        """Write a folder that `from_pretrained` reads: config, weights, tokeniser, slot embeddings, settings."""
        save_checkpoint(Path(path), self.backbone, self.settings, self.slot_embeddings)

    def _encode(self, texts: list[str], side: Side, words: int, progress: bool) -> Representations:
        parts: list[_Part] = []
        label = "queries" if side == "query" else "passages"
        with progress_bar(f"encoding {label}", len(texts), enabled=progress) as advance:
            for start in range(0, len(texts), _LOOK_AHEAD):
                for part in self._encode_window(texts[start : start + _LOOK_AHEAD], side, words):
                    parts.append(replace(part, rows=[start + r for r in part.rows]))
                    advance(len(part.rows))
        if not parts:
            return self._empty(words)
        order = np.argsort(np.concatenate([p.rows for p in parts]), kind="stable")
        return Representations.concatenate([p.representations for p in parts]).select(order)

    def _encode_window(self, texts: list[str], side: Side, words: int) -> Iterator[_Part]:
        frame = self.frames[side]
        ids = self.backbone.tokenizer.encode(texts, parse_special_tokens=self.protocol.parse_special_tokens)
        sequences = [frame.wrap(i) for i in ids]
        for rows in batches_by_length([len(s.ids) for s in sequences], self.batch_tokens):
            batch = collate([sequences[r] for r in rows], frame.slots, self.backbone.special.pad)
            content = torch.from_numpy(self.content.rows([texts[r] for r in rows]))
            yield _Part(rows, self._forward(batch.to(self.backbone.device), content, side, words))

    @torch.inference_mode()
    def _forward(self, batch: Batch, content: torch.Tensor, side: Side, words: int) -> Representations:
        readings = read_slots(
            self.backbone,
            batch,
            self._slot_embeddings(side),
            self.denoising,
            words=words,
            predict=self.stops != "none",
        )
        hidden = readings.hidden
        keep = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        if self.stops != "none" and readings.predictions is not None:
            keep = self._kept(readings.predictions.tokens)
        unit = torch.nn.functional.normalize(hidden.float(), dim=-1)
        count = keep.sum(1, keepdim=True)
        pooled = (unit * keep[:, :, None]).sum(1) / count.clamp(min=1)
        logits = self.backbone.logits_of_rows(hidden, content)
        slot_words = None
        if words and readings.predictions is not None:
            slot_words = self._slot_words(
                readings.predictions.word_ids[keep], readings.predictions.word_probabilities[keep]
            )
        return Representations(
            dense=unit[keep].cpu().numpy(),
            offsets=np.concatenate([[0], np.cumsum(count.flatten().cpu().numpy())]).astype(np.int64),
            pooled=pooled.cpu().numpy(),
            sparse=term_weights(logits, content, keep, self.term_rule, self.vocabulary_size),
            words=slot_words,
            provenance=self.provenance,
        )

    def _kept(self, tokens: torch.Tensor) -> torch.Tensor:
        special = self.backbone.tokenizer.special_ids - {self.backbone.special.mask}
        stop_ids = torch.tensor(sorted(special), device=tokens.device)
        quotes = torch.tensor(self._quote_ids, device=tokens.device) if self.stops == "structural" else None
        return kept_slots(tokens, stop_ids, quotes)

    @cached_property
    def _quote_ids(self) -> list[int]:
        return [i for i in range(len(self.backbone.tokenizer)) if '"' in self.term(i)]

    def _slot_words(self, ids: torch.Tensor, probabilities: torch.Tensor) -> SlotWords:
        array = ids.cpu().numpy().astype(np.int32)
        strings = {int(i): self.term(int(i)) for i in np.unique(array)}
        return SlotWords(array, probabilities.float().cpu().numpy(), strings)

    def _slot_embeddings(self, side: Side) -> torch.Tensor | None:
        if self.slot_embeddings is None:
            return None
        rows = self.slot_embeddings[0 if side == "query" else 1, : self.frames[side].slots]
        return rows.to(self.backbone.device)

    def _frame(self, side: Side, slots: int, max_length: int) -> Frame:
        b = self.backbone
        return build_frame(side, self.prompt, self.chat, b.tokenizer, b.special, self.protocol, slots, max_length)

    def _empty(self, words: int) -> Representations:
        none = np.zeros((0, words), dtype=np.int32)
        return Representations(
            dense=np.zeros((0, self.backbone.hidden_size), dtype=np.float32),
            offsets=np.zeros(1, dtype=np.int64),
            pooled=np.zeros((0, self.backbone.hidden_size), dtype=np.float32),
            sparse=sp.csr_matrix((0, self.vocabulary_size), dtype=np.float32),
            words=SlotWords(none, none.astype(np.float32), {}) if words else None,
            provenance=self.provenance,
        )


def _choose_prompt(
    wanted: str | Mapping[str, object] | None, default: str, query_slots: int, passage_slots: int
) -> Prompt:
    """Return the template asked for; by default the paper's: "one" for one slot on both sides, else "few"."""
    if isinstance(wanted, Mapping):
        return Prompt.from_mapping(wanted)
    if wanted is None and default == "few" and query_slots == passage_slots == 1:
        return Prompt.load("one")
    return Prompt.load(wanted or default)


def _checked_slot_embeddings(slots: torch.Tensor | None, backbone: Backbone, needed: int) -> torch.Tensor | None:
    if slots is None:
        return None
    if slots.dim() != 3 or slots.shape[0] != 2 or slots.shape[2] != backbone.hidden_size:
        raise CheckpointError(f"slot_embeddings have shape {list(slots.shape)}, not [2, K, {backbone.hidden_size}]")
    if slots.shape[1] < needed:
        raise InputError(f"{needed} masked positions asked for; this model has learned {slots.shape[1]}")
    return slots


def _term_rule(protocol: Protocol, tuned: bool) -> TermRule:
    if not protocol.quantised_terms:
        return DEFAULT
    return PAPER_FINE_TUNED if tuned else PAPER_ZERO_SHOT


def _denoising(settings: RetrieverSettings, protocol: Protocol, shift: int) -> Denoising:
    if settings.steps < 1:
        raise InputError(f"steps is {settings.steps}; at least 1 denoising step is needed")
    if settings.readout not in ("slot", "aligned"):
        raise InputError(f"readout is {settings.readout!r}; choose 'slot' or 'aligned'")
    offset = -shift if settings.readout == "aligned" else 0
    return Denoising(settings.steps, linear=protocol.linear_schedule and settings.tuned, offset=offset)


def _passage_text(passage: PassageLike) -> object:
    if isinstance(passage, Passage):
        title, text = passage.title, passage.text
    elif isinstance(passage, Mapping):
        if "text" not in passage:
            raise InputError(f"a passage given as a mapping needs the key 'text', got {sorted(passage)}")
        title, text = str(passage.get("title") or ""), passage["text"]  # type: ignore[assignment]
    else:
        return passage
    return f"{title}. {text}" if title else text


def _checked(texts: Sequence[object]) -> list[str]:
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"text {i} is {type(text).__name__} ({text!r:.60}); give strings")
    return list(texts)  # type: ignore[arg-type]
