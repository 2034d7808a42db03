"""The latency study: encoding against the length of the text, searching against the size of the index."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from diffretriever.evaluation.collections import scifact
from diffretriever.studies.contenders import Contender
from diffretriever.studies.latency_results import Check, EncodingPoint
from diffretriever.studies.published import published
from diffretriever.studies.timing import Call, Schedule, Timing, interleaved, paired_ratio

#: Different texts of one length, taken in turn.
_TEXTS = 8
#: A call of many texts takes a multiple of the time of one; so many rounds are enough for a median.
_BATCH_ROUNDS = 3
#: Most a DLM's K > 1 may cost over K = 1 by the paper's claim of flat latency.
FLAT = 1.15


@dataclass(frozen=True)
class EncodingPlan:
    """What is encoded.

    Attributes:
        lengths: tokens of the texts.
        batch: texts of a larger call.
        seed: seed of the choice of texts.
    """

    lengths: tuple[int, ...]
    batch: int
    seed: int


def measure_encoding(
    contenders: Sequence[Contender],
    plan: EncodingPlan,
    schedule: Schedule,
    skipped: list[str],
) -> Iterator[tuple[list[EncodingPoint], list[Check]]]:
    """Yield, length after length, one point per contender and the ratios between contenders.

    At each length all contenders take turns, text by text, then batch by batch.

    Args:
        contenders: the systems.
        plan: what they encode.
        schedule: how often.
        skipped: gets a line per length that a model has no room for.
    """
    words = _words(plan.seed)
    device = contenders[0].encoder.backbone.device
    for length in plan.lengths:
        texts: dict[str, list[str]] = {}
        for contender in contenders:
            key, room = contender.about.key, contender.encoder.frames["passage"].text_room
            if length <= room:
                texts[key] = texts_of_length(contender, words, length)
            else:
                skipped.append(f"{key}, texts of {length} tokens: the model has room for {room}")
        taking_part = [c for c in contenders if c.about.key in texts]
        if taking_part:
            ones, manys = _durations(taking_part, texts, plan.batch, schedule, device)
            points = [_point(c, length, texts[c.about.key], plan.batch, ones, manys) for c in taking_part]
            yield points, _checks(taking_part, length, ones, on_gpu=device.type == "cuda")


def _durations(
    contenders: Sequence[Contender],
    texts: dict[str, list[str]],
    batch: int,
    schedule: Schedule,
    device: torch.device,
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return the durations of single texts and of batches."""
    ones: dict[str, Call] = {}
    manys: dict[str, Call] = {}
    for c in contenders:
        own = texts[c.about.key]
        ones[c.about.key] = partial(_encode_one, c, own)
        manys[c.about.key] = partial(_encode_many, c, (own * -(-batch // len(own)))[:batch])
    few = Schedule(min(_BATCH_ROUNDS, schedule.rounds), min(1, schedule.warm_up), schedule.seconds)
    if device.type == "cuda":
        # A GPU records a graph per range of lengths: every text is seen once before the clock runs.
        schedule = replace(schedule, warm_up=max(schedule.warm_up, _TEXTS))
    return interleaved(ones, schedule, device), interleaved(manys, few, device)


def _encode_one(contender: Contender, texts: Sequence[str], number: int) -> object:
    return contender.encoder.encode_passages([texts[number % len(texts)]])


def _encode_many(contender: Contender, texts: Sequence[str], _: int) -> object:
    return contender.encoder.encode_passages(texts)


def _point(
    contender: Contender,
    length: int,
    texts: list[str],
    batch: int,
    ones: dict[str, list[float]],
    manys: dict[str, list[float]],
) -> EncodingPoint:
    key, encoder = contender.about.key, contender.encoder
    encoded = encoder.encode_passages(texts)
    return EncodingPoint(
        key=key,
        length=length,
        text_tokens=float(np.mean([len(ids) for ids in encoder.tokenise(texts, "passage")])),
        one=Timing.of(ones[key]),
        batch=batch,
        texts_per_second=1000 * batch / Timing.of(manys[key]).median_ms,
        vectors=len(encoded.dense) / len(encoded),
    )


def _checks(contenders: Sequence[Contender], length: int, ones: dict[str, list[float]], *, on_gpu: bool) -> list[Check]:
    """Return the ratio of each contender to the single-vector one of its model."""
    checks = []
    singles = {(c.about.system, c.about.model): c.about.key for c in contenders if c.about.vectors == 1}
    for c in contenders:
        about = c.about
        single = singles.get((about.system, about.model))
        if single is None or about.vectors == 1:
            continue
        value = paired_ratio(ones[about.key], ones[single])
        if about.system == "promptreps":
            name = f"PromptReps N={about.vectors} / N=1"
            known = [r for r in published().ratios if r.name == name]
            expected = f"{known[0].low:g} to {known[0].high:g} (paper)" if known else "not in the paper"
            checks.append(Check(f"{about.model}: N={about.vectors} / N=1", length, value, expected, None))
        else:
            passed = value <= FLAT if on_gpu else None
            name = f"{about.model}: K={about.vectors} / K=1"
            checks.append(Check(name, length, value, f"at most {FLAT:g} on a GPU (paper: flat)", passed))
    return checks


def estimate_seconds(contenders: Sequence[Contender], plan: EncodingPlan, schedule: Schedule) -> float:
    """Return about how long the encoding will take, from one warm call per contender at the longest length it takes.

    A call of a batch is taken to cost as much as its texts one by one, so the estimate errs on the safe side.
    """
    words = _words(plan.seed)
    total = 0.0
    for c in contenders:
        lengths = [n for n in plan.lengths if n <= c.encoder.frames["passage"].text_room]
        if not lengths:
            continue
        texts = texts_of_length(c, words, max(lengths))
        _encode_one(c, texts, 0)
        started = time.perf_counter()
        _encode_one(c, texts, 1)
        longest = time.perf_counter() - started
        overhead = max(lengths) / 4
        calls = schedule.rounds + schedule.warm_up + plan.batch * (1 + _BATCH_ROUNDS) + _TEXTS
        total += sum(longest * (n + overhead) / (max(lengths) + overhead) for n in lengths) * calls
    return total


def texts_of_length(contender: Contender, words: Sequence[str], length: int) -> list[str]:
    """Return different texts of real words, each the longest of at most `length` tokens."""
    encoder = contender.encoder
    texts = []
    for number in range(_TEXTS):
        start = number * len(words) // _TEXTS
        own = [words[(start + i) % len(words)] for i in range(length)]
        low, high = 1, len(own)
        while low < high:
            middle = (low + high + 1) // 2
            fits = len(encoder.tokenise([" ".join(own[:middle])], "passage")[0]) <= length
            low, high = (middle, high) if fits else (low, middle - 1)
        texts.append(" ".join(own[:low]))
    return texts


def _words(seed: int) -> list[str]:
    """Return the words of some abstracts of the bundled collection."""
    passages = list(scifact().passages)
    chosen = random.Random(seed).sample(passages, 64)  # noqa: S311  (no secret)
    return [word for passage in chosen for word in passage.text.split()]
