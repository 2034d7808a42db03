from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from diffretriever.encoder import Encoder
from diffretriever.errors import CheckpointError, InputError
from diffretriever.prompted import PromptedEncoder
from diffretriever.prompts import Chat
from diffretriever.representations import Representations
from diffretriever.retriever import DiffRetriever
from diffretriever.sequences import collate
from diffretriever.systems.diffembed import DiffEmbed, mean_hidden
from diffretriever.systems.opening import open_system
from diffretriever.systems.promptreps import PromptReps
from diffretriever.systems.repllama import RepLLaMA
from diffretriever.training.base import recompute_layers
from tests.backbones.published import native_model, published_tensors, write
from tests.conftest import CHECKPOINTS, Inputs

#: Every system over every kind of backbone it reads: folder, system, K.
CASES = [
    ("tiny-dream", "diffembed", 1),
    ("tiny-llada", "diffembed", 1),
    ("tiny-qwen2", "repllama", 1),
    ("tiny-llama", "repllama", 1),
    ("tiny-qwen2", "promptreps", 1),
    ("tiny-qwen2", "promptreps", 4),
    ("tiny-llama", "promptreps", 20),
]


def load(folder: str | Path, system: str | None = None, slots: int | None = None, **options: object) -> PromptedEncoder:
    given = {"device": "cpu", "dtype": "float32", "query_slots": slots, "passage_slots": slots, **options}
    return open_system(CHECKPOINTS / folder, system, **given)  # type: ignore[arg-type]


def same(one: Representations, other: Representations, atol: float = 1e-5) -> None:
    np.testing.assert_array_equal(one.offsets, other.offsets)
    np.testing.assert_allclose(one.dense, other.dense, atol=atol)
    np.testing.assert_allclose(one.pooled, other.pooled, atol=atol)
    np.testing.assert_allclose(one.sparse.toarray(), other.sparse.toarray(), atol=atol)


@pytest.mark.parametrize(("folder", "system", "slots"), CASES)
def test_a_vector_does_not_depend_on_its_batch(folder: str, system: str, slots: int, inputs: Inputs) -> None:
    model = load(folder, system, slots)
    together = model.encode_passages(inputs.passages)
    assert together.dim == 64
    for row, text in enumerate(inputs.passages):
        same(model.encode_passages(text), together.select([row]))


def test_qwen3_decodes_the_same_in_any_batch(tmp_path: Path, inputs: Inputs) -> None:
    write("qwen3", tmp_path, native_model("qwen3"))
    model = load(tmp_path, "promptreps", 6)
    assert model.chat.name == "llada"  # the format whose tokens this vocabulary holds
    together = model.encode_passages(inputs.passages)
    for row in range(0, 20, 5):
        same(model.encode_passages(inputs.passages[row]), together.select([row]))


@pytest.mark.parametrize("folder", ["tiny-qwen2", "tiny-llama"])
def test_answers_are_those_of_decoding_without_a_cache(folder: str, inputs: Inputs) -> None:
    model = load(folder, "promptreps", 5)
    assert isinstance(model, PromptReps)
    frame, backbone = model.frames["query"], model.backbone
    got = model.encode_queries(inputs.queries, words=1)
    for row, ids in enumerate(model.tokenise(inputs.queries, "query")):
        sequence = list(frame.wrap(ids).ids)
        states = []
        for _ in range(5):
            context = torch.tensor([sequence])
            with torch.inference_mode():
                states.append(backbone.hidden_states(context, torch.ones_like(context).bool())[0, -1])
                sequence.append(int(backbone.logits(states[-1]).argmax()))
        want = torch.nn.functional.normalize(torch.stack(states), dim=-1).numpy()
        np.testing.assert_allclose(got.vectors(row), want, atol=1e-5)
        assert got.words is not None
        assert got.words.ids[5 * row : 5 * row + 5, 0].tolist() == sequence[-5:]


@pytest.mark.parametrize("stop", ["<|im_end|>", '"'])
def test_an_answer_ends_at_a_stop_but_not_at_its_first_token(stop: str, tmp_path: Path, inputs: Inputs) -> None:
    before = load("tiny-qwen2", "promptreps", 4)
    answers = before.encode_queries(inputs.queries, words=1)
    assert answers.words is not None
    tokens = answers.words.ids.reshape(-1, 4)
    # The head's rows of the stop and of the first query's third token change places.
    third, stop_id = int(tokens[0, 2]), before.backbone.tokenizer.id_of(stop)
    assert third not in tokens[0, :2]
    swapped = swap_head_rows("tiny-qwen2", tmp_path / "third", third, stop_id)
    cut = load(swapped, "promptreps", 4).encode_queries(inputs.queries[0])
    assert len(cut.vectors(0)) == 2
    np.testing.assert_allclose(cut.vectors(0), answers.vectors(0)[:2], atol=1e-5)
    mean = answers.vectors(0)[:2].mean(0)
    np.testing.assert_allclose(cut.pooled[0], mean / np.linalg.norm(mean), atol=1e-5)
    first = swap_head_rows("tiny-qwen2", tmp_path / "first", int(tokens[0, 0]), stop_id)
    assert len(load(first, "promptreps", 4).encode_queries(inputs.queries[0]).vectors(0)) > 1


def swap_head_rows(source: str, target: Path, one: int, other: int | None) -> Path:
    target.mkdir()
    for file in (CHECKPOINTS / source).iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    tensors = load_file(target / "model.safetensors")
    assert other is not None
    tensors["lm_head.weight"][[one, other]] = tensors["lm_head.weight"][[other, one]]
    save_file(tensors, target / "model.safetensors")
    return target


def test_mean_is_over_all_positions_and_the_head_is_not_needed(tmp_path: Path) -> None:
    native = native_model("bert")
    tensors = {k: v for k, v in published_tensors("bert", native).items() if not k.startswith("cls.")}
    folder = write("bert", tmp_path / "whole", native)
    for name, prefix in (("named", ""), ("bare", "bert.")):
        renamed = {k.removeprefix(prefix): v for k, v in tensors.items()}
        bare = write("bert", tmp_path / name, native, {**renamed, "pooler.dense.bias": torch.zeros(32)})
        same(
            load(bare, "diffembed").encode_queries("of seasons"), load(folder, "diffembed").encode_queries("of seasons")
        )
        with pytest.raises(CheckpointError, match=r"no vocabulary head.*diffembed"):
            load(bare)
    model = load(folder, "diffembed")
    ids = model.tokenise(["of seasons"], "query")[0]
    with torch.inference_mode():
        want = native.bert(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(0)
    want = torch.nn.functional.normalize(want, dim=0).numpy()
    np.testing.assert_allclose(model.encode_queries("of seasons").vectors(0)[0], want, atol=1e-5)


def test_a_missing_body_is_an_error_with_and_without_head(tmp_path: Path) -> None:
    native = native_model("bert")
    tensors = published_tensors("bert", native)
    del tensors["bert.encoder.layer.0.output.dense.bias"]
    write("bert", tmp_path, native, {k: v for k, v in tensors.items() if not k.startswith("cls.")})
    with pytest.raises(CheckpointError, match="is missing"):
        load(tmp_path, "diffembed")


def test_readouts_are_differentiable(inputs: Inputs) -> None:
    for folder, system, slots in (
        ("tiny-dream", "diffembed", 1),
        ("tiny-llama", "repllama", 1),
        ("tiny-llama", "promptreps", 3),
    ):
        model = load(folder, system, slots)
        weight = next(p for n, p in model.backbone.named_parameters() if "layers.0" in n and p.dim() == 2)
        weight.requires_grad_(True)
        frame = model.frames["query"]
        sequences = [frame.wrap(ids) for ids in model.tokenise(inputs.queries[:3], "query")]
        batch = collate(sequences, frame.slots, model.backbone.special.pad)
        model.read(batch, "query", 0).hidden.square().sum().backward()
        assert weight.grad is not None
        assert weight.grad.abs().max() > 0


def test_any_text_has_a_vector() -> None:
    for folder, system, slots in CASES:
        encoded = load(folder, system, slots).encode_passages(["", " ", "\u2603 \ud800"])
        assert np.isfinite(encoded.dense).all()
        assert (np.diff(encoded.offsets) >= 1).all()
    assert len(load("tiny-dream", "diffembed").encode_queries([])) == 0


def test_lengths_bound_the_whole_sequence(inputs: Inputs) -> None:
    for folder, system, slots in CASES:
        for protocol in ("default", "paper"):
            model = load(folder, system, slots, max_passage_length=180, protocol=protocol)
            frame = model.frames["passage"]
            length = len(frame.wrap(range(500)).ids)
            answer = slots - 1 if system == "promptreps" and protocol == "default" else 0
            assert length == 180 - answer
    with pytest.raises(InputError, match="leaves no room for query text"):
        load("tiny-llama", "repllama", max_query_length=2)


def test_opening_by_what_a_checkpoint_is(tmp_path: Path) -> None:
    assert isinstance(load("tiny-dream"), DiffRetriever)
    assert isinstance(load("tiny-llama"), PromptReps)
    assert isinstance(load("tiny-llama", "repllama"), RepLLaMA)
    load("tiny-llama", "repllama", max_query_length=140).save_pretrained(tmp_path / "saved")
    again = open_system(tmp_path / "saved", device="cpu")
    assert isinstance(again, RepLLaMA)
    assert again.settings.max_query_length == 140
    same(again.encode_queries("of the seasons"), load("tiny-llama", "repllama").encode_queries("of the seasons"))
    assert isinstance(open_system(tmp_path / "saved", "promptreps", device="cpu"), PromptReps)
    mini = open_system("mini", "diffembed", device="cpu")
    assert isinstance(mini, DiffEmbed)
    assert mini.prompt.name == "bare"
    assert isinstance(mini, Encoder)


def test_provenance_names_the_system() -> None:
    one, other = load("tiny-llama", "repllama"), load("tiny-llama", "promptreps")
    assert (one.provenance.system, one.provenance.readout, one.provenance.stops) == ("repllama", "last", "none")
    assert any(d.startswith("system:") for d in one.provenance.differences(other.provenance))
    assert replace(one.provenance, model="elsewhere").differences(one.provenance) == []


@pytest.mark.parametrize(
    ("folder", "system", "options", "message"),
    [
        ("tiny-llama", "diffembed", {}, "diffembed needs full or block attention, the backbone's is causal"),
        ("tiny-dream", "repllama", {}, "repllama needs causal attention"),
        ("tiny-dream", "promptreps", {}, "needs causal attention"),
        ("tiny-llama", "diffretriever", {}, "no masked positions"),
        ("tiny-llama", "colbert", {}, "no system 'colbert'; choose one of diffretriever, diffembed"),
        ("tiny-llama", "repllama", {"query_slots": 4}, "query_slots is 4; repllama makes one vector"),
        ("tiny-llama", "promptreps", {"steps": 2}, "steps is 2; promptreps has no masked positions"),
        ("tiny-dream", "diffembed", {"readout": "aligned"}, "readout is 'aligned'; diffembed reads at 'mean' only"),
        ("tiny-qwen2", "promptreps", {"query_slots": 0}, "query_slots is 0"),
    ],
)
def test_what_does_not_go_together(folder: str, system: str, options: dict[str, object], message: str) -> None:
    with pytest.raises((CheckpointError, InputError), match=message):
        load(folder, system, **options)


def test_the_chat_format_is_the_one_the_vocabulary_speaks() -> None:
    assert Chat.fitting("llama3", {"<|im_end|>": 3}.get).name == "chatml"
    assert Chat.fitting("llama3", {"<|im_end|>": 3, "<|eot_id|>": 4}.get).name == "llama3"


def test_mean_of_a_padded_batch_ignores_padding(inputs: Inputs) -> None:
    model = load("tiny-dream", "diffembed")
    frame = model.frames["query"]
    sequences = [frame.wrap(ids) for ids in model.tokenise(inputs.queries, "query")]
    with torch.inference_mode():
        zero, other = (mean_hidden(model.backbone, collate(sequences, 1, pad)) for pad in (0, 77))
    torch.testing.assert_close(zero, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("recompute", [False, True])
def test_answers_in_training_are_those_of_encoding(recompute: bool, tmp_path: Path, inputs: Inputs) -> None:
    """With layers that are computed again and keep no cache, and an answer that ends early."""
    tokens = load("tiny-qwen2", "promptreps", 4).encode_queries(inputs.queries, words=1).words
    assert tokens is not None
    stop_id = load("tiny-qwen2", "promptreps", 4).backbone.tokenizer.id_of('"')
    folder = swap_head_rows("tiny-qwen2", tmp_path / "stops", int(tokens.ids[2, 0]), stop_id)
    model = load(folder, "promptreps", 4)
    sequences = [model.frames["query"].wrap(ids) for ids in model.tokenise(inputs.queries, "query")]
    batch = collate(sequences, 1, model.backbone.special.pad)
    with torch.inference_mode():
        want = model.read(batch, "query", 0)
    assert not want.keep.all()
    if recompute:
        recompute_layers(model.backbone)
    model.backbone.model.train().requires_grad_(True)
    got = model.read(batch, "query", 0)
    assert model.backbone.model.training
    assert torch.equal(got.keep, want.keep)
    torch.testing.assert_close(got.hidden[got.keep], want.hidden[want.keep], atol=1e-4, rtol=1e-3)
    got.hidden[got.keep].sum().backward()
    assert all(p.grad is not None for n, p in model.backbone.model.named_parameters() if "layers" in n)
