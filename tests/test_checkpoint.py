from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffretriever.checkpoint import RetrieverSettings, checkpoint_folders, locate
from diffretriever.errors import CheckpointError
from diffretriever.pretrained import SLOTS_FILE, TERMS_FILE
from diffretriever.representations import Provenance
from diffretriever.retriever import DiffRetriever
from tests.conftest import CHECKPOINTS


def test_settings_of_the_papers_code() -> None:
    settings = RetrieverSettings.load(CHECKPOINTS / "tiny-llada-lora-k4")
    assert (settings.query_slots, settings.passage_slots, settings.tuned) == (4, 4, True)
    assert settings.max_passage_length == 256


def test_settings_round_trip(tmp_path: Path) -> None:
    settings = RetrieverSettings(prompt="plain", query_slots=4, passage_slots=16, tuned=True)
    settings.save(tmp_path)
    assert RetrieverSettings.load(tmp_path) == settings
    assert RetrieverSettings.load(CHECKPOINTS) == RetrieverSettings()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ('{"format": 2}', "newer version"),
        ('{"format": 1, "colour": 1}', "unknown setting 'colour'"),
        ("{", "not JSON"),
        ('{"slot_positions": "left"}', "slot_positions is 'left', not one of after, spread"),
        ('{"terms": "words"}', "terms is 'words', not one of pieces, stems"),
        ('{"mean_words": 0}', "mean_words is 0; it must be above 0, or null"),
        ('{"mean_words": "40"}', "mean_words is '40'; it must be above 0"),
    ],
)
def test_bad_settings(raw: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "retriever_config.json").write_text(raw)
    with pytest.raises(CheckpointError, match=message):
        RetrieverSettings.load(tmp_path)


def test_an_adapter_finds_its_base(tmp_path: Path) -> None:
    folder = CHECKPOINTS / "tiny-dream-lora-k4"
    parts = checkpoint_folders(folder)
    assert parts.base.resolve() == (CHECKPOINTS / "tiny-dream").resolve()
    assert (parts.adapter, parts.tokenizer) == (folder, folder)
    alone = Path(shutil.copytree(folder, tmp_path / "alone"))
    assert checkpoint_folders(alone, CHECKPOINTS / "tiny-dream").base == CHECKPOINTS / "tiny-dream"
    with pytest.raises(CheckpointError, match=r"no folder '\.\./tiny-dream'"):
        checkpoint_folders(alone)


def test_a_prompt_that_is_not_bundled_is_refused(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(CHECKPOINTS / "tiny-dream-lora-k4", tmp_path / "odd"))
    raw = json.loads((folder / "retriever_config.json").read_text())
    raw["query_suffix_ids"][3] += 1
    (folder / "retriever_config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="none of the bundled ones"):
        DiffRetriever.from_pretrained(folder, base=CHECKPOINTS / "tiny-dream", device="cpu")
    raw["use_k_adapter"] = True
    (folder / "retriever_config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="use_k_adapter is set"):
        DiffRetriever.from_pretrained(folder, base=CHECKPOINTS / "tiny-dream", device="cpu")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "nonsense", "a/b/c"])
def test_no_such_folder(name: str) -> None:
    with pytest.raises(CheckpointError, match="no folder"):
        locate(name)


@pytest.mark.parametrize("name", ["dream-7b", "GSAI-ML/LLaDA-8B-Instruct"])
def test_a_hub_id_offline_says_what_to_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="go online, or copy its files to a folder") as caught:
        locate(name)
    assert "\n" not in str(caught.value)


def test_the_fingerprint_follows_what_is_learned_beside_the_weights(tmp_path: Path) -> None:
    """Indexes of two checkpoints that differ in slot embeddings, term bias or mean length alone must not mix."""
    folder = tmp_path / "model"
    shutil.copytree(CHECKPOINTS / "tiny-dream", folder)

    def provenance(dtype: str = "float32") -> Provenance:
        return DiffRetriever.from_pretrained(folder, query_slots=2, passage_slots=2, dtype=dtype).provenance

    plain = provenance()
    model = DiffRetriever.from_pretrained(folder)
    assert plain.fingerprint == model.backbone.fingerprint, "a model without any is its weights"
    generator = torch.Generator().manual_seed(0)
    slots = torch.randn(2, 2, model.backbone.hidden_size, generator=generator)
    bias = torch.randn(len(model.backbone.tokenizer), generator=generator)
    seen = [plain]
    for changed in (slots, slots * 0.999):
        save_file({"slot_embeddings": changed}, str(folder / SLOTS_FILE))
        seen.append(provenance())
    save_file({"term_bias": bias}, str(folder / TERMS_FILE))
    seen.append(provenance())
    for mean_words in (40.0, 41.0):
        RetrieverSettings(mean_words=mean_words).save(folder)
        seen.append(provenance())
    assert len({p.fingerprint for p in seen}) == len(seen)
    assert "fingerprint" in seen[-1].differences(seen[-2])[0]
    assert provenance("bfloat16").fingerprint == provenance().fingerprint == seen[-1].fingerprint
