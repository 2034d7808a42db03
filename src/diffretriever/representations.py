"""Representations: what one forward pass says of N texts, as plain arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from diffretriever.errors import InputError
from diffretriever.json_files import read_json_object

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


class SlotWord(NamedTuple):
    """One vocabulary item that a masked position predicts."""

    word: str
    probability: float


@dataclass(frozen=True)
class Provenance:
    """Everything that must agree between two encodings for their scores to mean something.

    Attributes:
        model: name or path the model was loaded from.
        fingerprint: digest of the weights, of what was learned beside them (slot embeddings, term bias, mean passage
            length) and of the tokeniser.
        prompt: name of the prompt template.
        prompt_hash: digest of the filled templates of both sides.
        protocol: name of the conventions ("default" or "paper").
        readout: where hidden states are read: "slot" or "aligned" for masked positions, "mean" or "last" for others.
        query_slots: K_q, vectors of a query.
        passage_slots: K_p, vectors of a passage.
        steps: denoising steps S.
        max_query_length: longest query sequence in tokens.
        max_passage_length: longest passage sequence in tokens.
        dtype: dtype of the forward pass.
        version: version of this package.
        stops: which predicted tokens end a text's slots early: "none", "special", "structural" or "quote".
        system: name of the system that reads the backbone (docs/systems.md).
        terms: what a text weights of its words, "pieces" or "stems", and whether their counts matter ("counted stems").
    """

    model: str
    fingerprint: str
    prompt: str
    prompt_hash: str
    protocol: str
    readout: str
    query_slots: int
    passage_slots: int
    steps: int
    max_query_length: int
    max_passage_length: int
    dtype: str
    version: str
    stops: str = "none"
    system: str = "diffretriever"
    terms: str = "pieces"

    def differences(self, other: Provenance) -> list[str]:
        """Return one line per field in which scores would stop being comparable; empty when they are.

        The name, the lengths, the dtype and the package version may differ: they move a vector, not its space.
        """
        free = {"model", "max_query_length", "max_passage_length", "dtype", "version"}
        return [
            f"{f.name}: {getattr(self, f.name)!r} against {getattr(other, f.name)!r}"
            for f in fields(self)
            if f.name not in free and getattr(self, f.name) != getattr(other, f.name)
        ]


@dataclass(frozen=True)
class SlotWords:
    """The most probable vocabulary items of each masked position.

    Attributes:
        ids: [T, n] vocabulary ids, best first, T as in `Representations.dense`.
        probabilities: [T, n] softmax probabilities over the full vocabulary.
        strings: id -> readable text, for every id that occurs.
    """

    ids: npt.NDArray[np.int32]
    probabilities: FloatArray
    strings: dict[int, str]

    def row(self, t: int) -> list[SlotWord]:
        """Return the words of vector t, best first."""
        pairs = zip(self.ids[t].tolist(), self.probabilities[t].tolist(), strict=True)
        return [SlotWord(self.strings[i], p) for i, p in pairs]


@dataclass(frozen=True)
class Representations:
    """Dense, pooled and sparse representations of N texts, immutable.

    Attributes:
        dense: [T, D] unit vectors of all kept slots, text after text.
        offsets: [N + 1]; the vectors of text i are dense[offsets[i]:offsets[i + 1]]. A text may have fewer
            than K vectors (slots after an early stop are dropped), so K is ragged.
        pooled: [N, D] mean of a text's unit vectors (single dense): of length 1, or under the paper protocol as it is.
        sparse: [N, V] term weights, CSR, fp32.
        words: predicted words per vector, or None when not asked for.
        provenance: how the numbers were made.
    """

    dense: FloatArray
    offsets: IntArray
    pooled: FloatArray
    sparse: sp.csr_matrix
    words: SlotWords | None
    provenance: Provenance

    def __post_init__(self) -> None:
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.dense) or (np.diff(self.offsets) < 0).any():
            raise InputError(f"offsets must rise from 0 to {len(self.dense)}, the number of vectors")
        if not len(self.pooled) == self.sparse.shape[0] == len(self):
            raise InputError(
                f"{len(self)} texts by offsets, {len(self.pooled)} pooled rows, {self.sparse.shape[0]} sparse rows"
            )
        for array in (self.dense, self.offsets, self.pooled):
            array.flags.writeable = False

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def dim(self) -> int:
        """Width D of every dense vector."""
        return int(self.dense.shape[1])

    def vectors(self, i: int) -> FloatArray:
        """Return the [k_i, D] unit vectors of text i."""
        return self.dense[self.offsets[i] : self.offsets[i + 1]]

    def slot_words(self, i: int) -> list[list[SlotWord]]:
        """Return, per vector of text i, its predicted words; [] when words were not asked for."""
        if self.words is None:
            return []
        return [self.words.row(t) for t in range(int(self.offsets[i]), int(self.offsets[i + 1]))]

    def select(self, rows: Sequence[int] | npt.NDArray[np.integer] | slice) -> Representations:
        """Return the representations of some texts, in the order given."""
        index = np.arange(len(self))[rows if isinstance(rows, slice) else np.asarray(rows, dtype=np.int64)]
        lengths = np.diff(self.offsets)[index]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        spans = [np.arange(self.offsets[i], self.offsets[i + 1]) for i in index]
        flat = np.concatenate(spans) if spans else np.zeros(0, dtype=np.int64)
        words = self.words and replace(
            self.words, ids=self.words.ids[flat], probabilities=self.words.probabilities[flat]
        )
        return replace(
            self,
            dense=self.dense[flat],
            offsets=offsets,
            pooled=self.pooled[index],
            sparse=self.sparse[index],
            words=words,
        )

    @staticmethod
    def concatenate(parts: Sequence[Representations]) -> Representations:
        """Return all texts of `parts` in order; the parts must have been encoded alike."""
        if not parts:
            raise InputError("concatenate needs at least one part")
        first = parts[0]
        for part in parts[1:]:
            if different := first.provenance.differences(part.provenance):
                raise InputError("cannot concatenate representations made otherwise: " + "; ".join(different))
        lengths = np.concatenate([np.diff(p.offsets) for p in parts])
        return Representations(
            dense=np.concatenate([p.dense for p in parts]),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            pooled=np.concatenate([p.pooled for p in parts]),
            sparse=sp.vstack([p.sparse for p in parts], format="csr"),
            words=_join_words([p.words for p in parts]),
            provenance=first.provenance,
        )

    def save(self, path: str | Path) -> None:
        """Write `representations.safetensors` and `representations.json` into the folder `path`."""
        from safetensors.numpy import save_file

        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, npt.NDArray[np.generic]] = {
            "dense": self.dense,
            "offsets": self.offsets,
            "pooled": self.pooled,
            "sparse.indptr": self.sparse.indptr.astype(np.int64),
            "sparse.indices": self.sparse.indices.astype(np.int32),
            "sparse.data": self.sparse.data.astype(np.float32),
        }
        if self.words is not None:
            tensors |= {"words.ids": self.words.ids, "words.probabilities": self.words.probabilities}
        save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / "representations.safetensors")
        about = {
            "format": 1,
            "vocabulary_size": self.sparse.shape[1],
            "provenance": asdict(self.provenance),
            "strings": {str(i): s for i, s in self.words.strings.items()} if self.words else None,
        }
        (folder / "representations.json").write_text(json.dumps(about, indent=1), encoding="utf-8")

    @staticmethod
    def load(path: str | Path) -> Representations:
        """Read what `save` wrote.

        Raises:
            InputError: a file is missing or damaged.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        folder = Path(path)
        if not (folder / "representations.json").is_file():
            raise InputError(f"{folder} holds no representations.json; give a folder that Representations.save wrote")
        about = read_json_object(folder / "representations.json", InputError)
        try:
            return Representations._read(about, load_file(folder / "representations.safetensors"))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            what = "representations.safetensors and representations.json"
            raise InputError(f"{folder}: {what} are damaged or do not fit ({error}); encode again") from error

    @staticmethod
    def _read(about: Mapping[str, Any], t: Mapping[str, npt.NDArray[Any]]) -> Representations:
        shape = (len(t["offsets"]) - 1, about["vocabulary_size"])
        words = None
        if about["strings"] is not None:
            strings = {int(i): s for i, s in about["strings"].items()}
            words = SlotWords(t["words.ids"], t["words.probabilities"], strings)
        return Representations(
            dense=t["dense"],
            offsets=t["offsets"],
            pooled=t["pooled"],
            sparse=sp.csr_matrix((t["sparse.data"], t["sparse.indices"], t["sparse.indptr"]), shape=shape),
            words=words,
            provenance=Provenance(**about["provenance"]),
        )


def _join_words(parts: Sequence[SlotWords | None]) -> SlotWords | None:
    present = [p for p in parts if p is not None]
    if len(present) < len(parts):
        return None
    return SlotWords(
        ids=np.concatenate([p.ids for p in present]),
        probabilities=np.concatenate([p.probabilities for p in present]),
        strings={i: s for p in present for i, s in p.strings.items()},
    )
