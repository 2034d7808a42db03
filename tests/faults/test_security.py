"""Loading a model or an index runs no code of it and leaves its folder alone."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from diffretriever import DiffRetriever
from diffretriever.corpus import Passage
from diffretriever.errors import CheckpointError, DiffRetrieverError, IndexFormatError, InputError
from diffretriever.index import Index, manifest
from diffretriever.representations import Representations
from tests.faults.inspection import make_encoder

NAMES = [
    "../../x",
    "/etc/passwd",
    "..",
    ".",
    "a/b",
    "a\\b",
    "nul\x00",
    "C:\\x",
    "~",
    "x" * 5000,
    "日本語🌙",
    "con",
    "%2e",
]


MODEL_FILES = [
    "model.safetensors",
    "model.safetensors.index.json",
    "slots.safetensors",
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "retriever_config.json",
    "adapter_config.json",
]


class Payload:
    """Pickled, this makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.marker),))


@pytest.fixture
def marker(tmp_path):
    """What appears when code of a loaded file ran; that it works is tested first."""
    path = tmp_path / "code ran"
    pickle.loads(pickle.dumps(Payload(path)))
    assert path.exists()
    path.rmdir()
    yield path
    assert not path.exists(), "code of a loaded file ran"


@pytest.fixture
def model(tmp_path, checkpoints):
    return Path(shutil.copytree(checkpoints / "tiny-llada", tmp_path / "model"))


def add_code(folder, marker):
    """Put Python files into a model folder, and every way in which a config can name them."""
    for name in ("configuration_evil", "modeling_evil", "tokenization_evil", "__init__"):
        (folder / f"{name}.py").write_text(f"import os\nos.mkdir({str(marker)!r})\nclass Evil: pass\n")
    for name in ("config.json", "tokenizer_config.json"):
        about = json.loads((folder / name).read_text())
        about["auto_map"] = {
            "AutoConfig": "configuration_evil.Evil",
            "AutoModel": "modeling_evil.Evil",
            "AutoTokenizer": ["tokenization_evil.Evil", None],
        }
        about["architectures"] = ["modeling_evil.Evil"]
        (folder / name).write_text(json.dumps(about))
    (folder / "chat_template.jinja").write_text(
        "{{ cycler.__init__.__globals__.os.mkdir(" + json.dumps(str(marker)) + ") }}"
    )


def write_pickle(path, marker):
    """Write what torch.save writes: a zip file with a pickle in it."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Payload(marker)))
        file.writestr("archive/version", "3")


def test_python_files_of_a_model_are_never_run(model, marker):
    add_code(model, marker)
    path = list(sys.path)
    retriever = DiffRetriever.from_pretrained(model, device="cpu", query_slots=2, passage_slots=2)
    assert len(retriever.encode_passages(["moon"])) == 1
    assert sys.path == path
    assert not any("evil" in name for name in sys.modules)


def test_pickled_weights_are_passed_over(model, marker):
    for name in ("pytorch_model.bin", "adapter_model.bin", "training_args.bin", "slots.pt", "optimizer.pt"):
        write_pickle(model / name, marker)
    DiffRetriever.from_pretrained(model, device="cpu", query_slots=2, passage_slots=2)
    (model / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="only safetensors are read"):
        DiffRetriever.from_pretrained(model, device="cpu")


@pytest.mark.parametrize("name", MODEL_FILES)
@pytest.mark.parametrize("content", ["zip", "pickle", "nothing", "deep"])
def test_a_pickle_under_another_name_is_refused(model, marker, name, content):
    (model / name).unlink(missing_ok=True)
    if content == "zip":
        write_pickle(model / name, marker)
    else:
        (model / name).write_bytes(
            {"pickle": pickle.dumps(Payload(marker)), "nothing": b"", "deep": b"[" * 10**5}[content]
        )
    with pytest.raises(CheckpointError, match=name):
        DiffRetriever.from_pretrained(model, device="cpu")


def test_a_pickled_adapter_is_refused(tmp_path, checkpoints, marker):
    adapter = Path(shutil.copytree(checkpoints / "tiny-llada-lora-k4", tmp_path / "adapter"))
    write_pickle(adapter / "adapter_model.safetensors", marker)
    write_pickle(adapter / "adapter_model.bin", marker)
    with pytest.raises(CheckpointError, match="adapter_model"):
        DiffRetriever.from_pretrained(adapter, base=checkpoints / "tiny-llada", device="cpu")


@pytest.mark.parametrize("name", ["../outside.safetensors", "/outside.safetensors", "a/../../outside.safetensors"])
def test_weights_outside_the_model_folder_are_refused(model, name):
    shutil.move(model / "model.safetensors", model.parent / "outside.safetensors")
    index = {"weight_map": {"any": name.replace("/outside", f"{model.parent}/outside") if name[0] == "/" else name}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="outside its folder"):
        DiffRetriever.from_pretrained(model, device="cpu")


@pytest.mark.parametrize("name", ["representations.safetensors", "representations.json"])
def test_saved_representations_are_no_pickle(tmp_path, marker, name):
    make_encoder().encode_passages(["moon"]).save(tmp_path / "r")
    write_pickle(tmp_path / "r" / name, marker)
    with pytest.raises(InputError, match=name):
        Representations.load(tmp_path / "r")


@pytest.fixture
def index_folder(tmp_path, backend):
    with Index.create(tmp_path / "index", make_encoder(), backend=backend) as index:
        index.add([Passage("a", "moon"), Passage("b", "sun")])
    return tmp_path / "index"


@pytest.mark.parametrize("backend", ["exact"])
def test_an_array_of_objects_is_refused(index_folder, marker):
    for path in sorted(index_folder.rglob("*.npy")):
        whole = path.read_bytes()
        np.save(path, np.array([Payload(marker)], dtype=object), allow_pickle=True)
        with pytest.raises(IndexFormatError, match="is damaged"):
            Index.open(index_folder)
        path.write_bytes(whole)


@pytest.mark.parametrize("backend", ["exact"])
@pytest.mark.parametrize("name", ["../../other", "{outside}", "..", "", "000001/../000001", 5, None, ["000001"]])
def test_a_log_that_names_a_folder_elsewhere_is_refused(index_folder, name):
    other = index_folder.parent / "other"
    shutil.copytree(next(p for p in (index_folder / "store").iterdir() if p.is_dir()), other)
    before = sorted(p.name for p in other.iterdir())
    name = str(other) if name == "{outside}" else name
    log = index_folder / "store" / "log.jsonl"
    log.write_bytes(log.read_bytes() + json.dumps({"segment": name}).encode() + b"\n")
    with pytest.raises(IndexFormatError):
        Index.open(index_folder)
    assert sorted(p.name for p in other.iterdir()) == before


def forge_manifest(folder, about):
    """Write a manifest with the checksum that belongs to it, as somebody who means harm would."""
    about.pop("checksum", None)
    (folder / "manifest.json").write_text(json.dumps({**about, "checksum": manifest._checksum(about)}))


def test_a_manifest_cannot_lead_elsewhere(index_folder, tmp_path):
    """Whatever paths a manifest holds, only the folder itself is opened and written."""
    about = json.loads((index_folder / "manifest.json").read_text())
    (tmp_path / "elsewhere").mkdir()
    forge_manifest(index_folder, about | {"store": "../elsewhere", "path": "/", "folder": str(tmp_path / "elsewhere")})
    with Index.open(index_folder, make_encoder()) as index:
        index.add([Passage("c", "star")])
        assert len(index) == 3
    assert list((tmp_path / "elsewhere").iterdir()) == []
    for backend in ("../../evil", "os.system", "__import__('os')"):
        forge_manifest(index_folder, about | {"backend": backend})
        with pytest.raises(IndexFormatError, match="damaged"):
            Index.open(index_folder)


def test_overwriting_deletes_nothing_behind_a_link(index_folder, tmp_path, backend):
    work = tmp_path / "work"
    shutil.move(index_folder / "store", work)
    (work / "thesis.tex").write_text("years of work")
    (index_folder / "store").symlink_to(work, target_is_directory=True)
    with pytest.raises((DiffRetrieverError, OSError)):
        Index.create(index_folder, make_encoder(), backend=backend, overwrite=True)
    assert (work / "thesis.tex").exists()


def test_ids_never_become_paths(tmp_path, backend):
    folder = tmp_path / "outer" / "middle" / "index"
    with Index.create(folder, make_encoder(), backend=backend) as index:
        index.add([Passage(name, f"w{i}") for i, name in enumerate(NAMES)])
        for i, name in enumerate(NAMES):
            assert index.get(name).passage.text == f"w{i}"
            assert index.search(f"w{i}", 1)[0].passage_id == name
        assert set(index) == set(NAMES)
        index.delete(NAMES[::2])
    with Index.open(folder, make_encoder()) as index:
        assert set(index) == set(NAMES[1::2])
    assert [p.name for p in (tmp_path / "outer").iterdir()] == ["middle"]
    assert [p.name for p in (tmp_path / "outer" / "middle").iterdir()] == ["index"]
    names = {p.name for p in folder.rglob("*")}
    assert names.isdisjoint({"x", "passwd", "a", "b", "con", "日本語🌙", *NAMES})
