"""Card: README.md of a finished model, written from the facts of its run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffretriever.json_files import read_json_object
from diffretriever.training.dev import DEV_SCORES
from diffretriever.training.store import RunFolder

#: Steps at each end of the log that a loss is averaged over.
_WINDOW = 20
_CLASSES = {"diffretriever": "DiffRetriever.from_pretrained", "other": "open_system"}


def write_card(folder: RunFolder, about: Mapping[str, Any]) -> None:
    """Write README.md beside the finished model of a run.

    Args:
        folder: of the run.
        about: what `RunFolder.describe` returned.
    """
    log = [json.loads(line) for line in folder.log.read_text(encoding="utf-8").splitlines()]
    dev = folder.path / DEV_SCORES
    scores = read_json_object(dev) if dev.is_file() else None
    (folder.model / "README.md").write_text(model_card(about, log, scores), encoding="utf-8")


def model_card(
    about: Mapping[str, Any], log: Sequence[Mapping[str, float]], scores: Mapping[str, Any] | None = None
) -> str:
    """Return the card, with YAML front matter as model hubs read it.

    Args:
        about: settings, steps, digests of the data, versions and machine of the run.
        log: one mapping of losses per step.
        scores: scores on a development collection, as `DevEvaluation` writes them; None for none.
    """
    model = about["settings"]["model"]
    parts = [
        _front_matter(model),
        f"# {Path(about['settings']['output']).name}",
        _summary(about),
        _use(model["system"]),
        "## Data\n\n" + _table(("file", "sha256"), [(p, f"`{d}`") for p, d in about["data_sha256"].items()]),
        "## Losses\n\n" + _losses(about["settings"]["loss"], log),
        *([] if scores is None else ["## Development scores\n\n" + _dev(scores)]),
        "## Settings\n\n```json\n" + json.dumps(about["settings"], indent=1) + "\n```",
        "## Versions\n\n" + _table(("package", "version"), about["versions"].items()),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(model: Mapping[str, Any]) -> str:
    tags = ["retrieval", "dense", *(["multi-vector", "sparse", "diffusion-language-model"] if _masked(model) else [])]
    lines = ["---", "library_name: diffretriever", "pipeline_tag: feature-extraction"]
    if not Path(model["base"]).is_absolute() and not Path(model["base"]).exists():
        lines += [f"base_model: {json.dumps(_hub_id(model['base']))}"]
        lines += [f"base_model_relation: {'adapter' if _is_adapter(model) else 'finetune'}"]
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def _hub_id(base: str) -> str:
    from diffretriever.checkpoint import ALIASES

    return ALIASES.get(base, base)


def _masked(model: Mapping[str, Any]) -> bool:
    return bool(model["system"] == "diffretriever")


def _is_adapter(model: Mapping[str, Any]) -> bool:
    return model["lora"] is not None and not model["lora"]["merge"]


def _summary(about: Mapping[str, Any]) -> str:
    settings, model = about["settings"], about["settings"]["model"]
    slots = (
        f" with {model['query_slots'] or 'the usual'} query and {model['passage_slots'] or 'the usual'} passage slots"
    )
    lora = model["lora"]
    trained = "all weights" if lora is None else f"LoRA adapters of rank {lora['r']}, alpha {lora['alpha']:g}"
    batch, data = settings["optimisation"]["batch"], settings["data"]
    return (
        f"System `{model['system']}`{slots if _masked(model) else ''}, from the base `{model['base']}`: {trained}, "
        f"{about['steps']:,} steps of {batch} queries with {data['negatives']} hard negatives each, seed "
        f"{settings['seed']}. Written by the training run itself; measured on {about['machine']['processor']}"
        f"{', ' + about['machine']['accelerator'] if about['machine']['accelerator'] else ''}."
    )


def _use(system: str) -> str:
    name = "DiffRetriever" if system == "diffretriever" else "open_system"
    call = _CLASSES["diffretriever" if system == "diffretriever" else "other"]
    return (
        f"## Use\n\n```python\nfrom diffretriever import Index, Passage, {name}\n\n"
        f'model = {call}("FOLDER")\n'
        'with Index.create("my-index", model) as index:\n'
        '    index.add([Passage("p1", "The tilt of the axis causes the seasons.")])\n'
        '    print(index.search("what causes the seasons?", mode="multi")[0])\n```'
    )


def _losses(weights: Mapping[str, Any], log: Sequence[Mapping[str, float]]) -> str:
    names = [n for n in ("loss", *weights) if log and n in log[0] and (n == "loss" or weights[n])]
    rows = [
        (n, "" if n == "loss" else f"{weights[n]:g}", _mean(log[:_WINDOW], n), _mean(log[-_WINDOW:], n)) for n in names
    ]
    return _table(("objective", "weight", f"first {_WINDOW} steps", f"last {_WINDOW} steps"), rows)


def _mean(rows: Sequence[Mapping[str, float]], name: str) -> str:
    return f"{sum(row[name] for row in rows) / len(rows):.4f}"


def _dev(scores: Mapping[str, Any]) -> str:
    asked = scores["settings"]
    name = Path(asked["collection"]).name
    size = f"{scores['queries']:,} queries, {scores['passages']:,} passages"
    head = f"{asked['measure']} of mode {asked['mode']} on {name}: {size}"
    part = " (a part of the collection)" if asked["passages"] is not None or asked["queries"] is not None else ""
    rows = [(f"{row['step']:,}", f"{row['value']:.4f}") for row in scores["scores"]]
    return f"{head}{part}. The best checkpoint is the model.\n\n" + _table(("step", asked["measure"]), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
