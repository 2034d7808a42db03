from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from diffretriever.errors import InputError
from diffretriever.representations import Provenance, Representations, SlotWords


def provenance(**changes: object) -> Provenance:
    values = {
        "model": "m", "fingerprint": "f", "prompt": "few", "prompt_hash": "h", "protocol": "default",
        "readout": "slot", "query_slots": 2, "passage_slots": 3, "steps": 1, "max_query_length": 64,
        "max_passage_length": 256, "dtype": "float32", "version": "0", **changes,
    }  # fmt: skip
    return Provenance(**values)  # type: ignore[arg-type]


def example(seed: int = 0, lengths: tuple[int, ...] = (3, 0, 2), **changes: object) -> Representations:
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    total = int(offsets[-1])
    ids = rng.integers(0, 50, (total, 2)).astype(np.int32)
    return Representations(
        dense=rng.standard_normal((total, 4)).astype(np.float32),
        offsets=offsets,
        pooled=rng.standard_normal((len(lengths), 4)).astype(np.float32),
        sparse=sp.random_array((len(lengths), 50), density=0.1, format="csr", dtype=np.float32, rng=rng),
        words=SlotWords(ids, rng.random((total, 2)).astype(np.float32), {int(i): f"w{i}" for i in ids.ravel()}),
        provenance=provenance(**changes),
    )


def equal(one: Representations, other: Representations) -> None:
    np.testing.assert_array_equal(one.dense, other.dense)
    np.testing.assert_array_equal(one.offsets, other.offsets)
    np.testing.assert_array_equal(one.pooled, other.pooled)
    np.testing.assert_array_equal(one.sparse.toarray(), other.sparse.toarray())
    assert [one.slot_words(i) for i in range(len(one))] == [other.slot_words(i) for i in range(len(other))]
    assert one.provenance == other.provenance


def test_save_and_load(tmp_path: Path) -> None:
    reps = example()
    reps.save(tmp_path / "r")
    equal(reps, Representations.load(tmp_path / "r"))
    with pytest.raises(InputError, match=r"no representations\.json"):
        Representations.load(tmp_path)


def test_select_and_concatenate() -> None:
    reps = example()
    equal(reps, Representations.concatenate([reps.select([0]), reps.select(slice(1, 3))]))
    swapped = reps.select([2, 0])
    np.testing.assert_array_equal(swapped.vectors(0), reps.vectors(2))
    np.testing.assert_array_equal(swapped.vectors(1), reps.vectors(0))
    assert swapped.slot_words(0) == reps.slot_words(2)
    assert len(reps.select([])) == 0
    equal(reps.select(np.array([1])), reps.select([-2]))


def test_concatenate_refuses_what_was_made_otherwise() -> None:
    with pytest.raises(InputError, match="readout: 'slot' against 'aligned'"):
        Representations.concatenate([example(), example(readout="aligned")])
    with pytest.raises(InputError, match="at least one"):
        Representations.concatenate([])


def test_arrays_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="read-only"):
        example().dense[0, 0] = 1.0


def test_offsets_are_checked() -> None:
    reps = example()
    with pytest.raises(InputError, match="offsets must rise from 0 to 5"):
        Representations(reps.dense, reps.offsets[:-1], reps.pooled, reps.sparse, None, reps.provenance)
    with pytest.raises(InputError, match="3 texts by offsets, 2 pooled"):
        Representations(reps.dense, reps.offsets, reps.pooled[:2], reps.sparse, None, reps.provenance)


def test_what_may_differ_between_comparable_encodings() -> None:
    assert provenance().differences(provenance(dtype="bfloat16", version="9", model="copy")) == []
    assert provenance().differences(provenance(passage_slots=4)) == ["passage_slots: 3 against 4"]
