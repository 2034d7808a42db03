"""Recipes: YAML files, and `key=value` overrides, made into `TrainingSettings`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import fields, is_dataclass
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from diffretriever.errors import InputError, MissingExtraError
from diffretriever.training.settings import TrainingSettings

T = TypeVar("T")

#: Where a built package holds the recipes, and where they are in its repository.
_SHIPPED = (Path("data", "recipes"), Path("..", "..", "recipes"))


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> TrainingSettings:
    """Return the settings of a YAML file, with `key=value` overrides (`loss.words=0.2`) applied; see `find_recipe`.

    Raises:
        InputError: the file cannot be read, or a key or value cannot be used; the message names it.
        MissingExtraError: PyYAML is not installed.
    """
    return build(TrainingSettings, read_mapping(path, overrides), "")


def read_stages(path: str | Path, overrides: Sequence[str] = ()) -> list[TrainingSettings]:
    """Return the settings of the runs that a YAML file asks for, one after the other; most files ask for one.

    Each mapping under `stages` holds what is its own beside, or in place of, the file's other keys. A stage starts from
    the finished model of the one before, in `output`/stage-N, and the last one's is that of the whole. Overrides hold
    for all stages, `model.base` and `model.sha256` for the first.

    Raises:
        InputError: as `read_recipe`.
        MissingExtraError: PyYAML is not installed.
    """
    common = read_mapping(path)
    own = common.pop("stages", [{}])
    if not isinstance(own, list) or not own or not all(isinstance(stage, dict) for stage in own):
        raise InputError(f"{path}: `stages` must be a list of keys and values, one per stage, got {own!r}")
    stages: list[TrainingSettings] = []
    for number, stage in enumerate(own, 1):
        raw = common
        if stages:
            _check_base(stage, f"{path}: stage {number}")
            # What makes a base of another model is done, and must not be done to it again.
            raw = _merged(raw, {"model": {"slot_start": "auto", "pooling_layer": False}})
        raw = _overridden(_merged(raw, stage), overrides)
        if stages:
            base = str(Path(stages[-1].output) / "model")
            raw = _merged(raw, {"model": {"base": base, "sha256": None}})
        if number < len(own):
            output = raw.get("output", TrainingSettings.output)
            raw = _merged(raw, {"output": str(Path(str(output)) / f"stage-{number}")})
        stages.append(build(TrainingSettings, raw, ""))
    for number, (before, after) in enumerate(pairwise(stages), 1):
        if all(s.model.lora is not None and not s.model.lora.merge for s in (before, after)):
            raise InputError(
                f"{path}: stage {number} ends as an adapter, and stage {number + 1} cannot put another on it; set "
                f"model.lora.merge to true, for stage {number} at least"
            )
    return stages


def _check_base(stage: Mapping[str, Any], name: str) -> None:
    """Raise InputError where a stage after the first says what it starts from."""
    model = stage.get("model")
    for key in ("base", "sha256"):
        if isinstance(model, Mapping) and key in model:
            raise InputError(
                f"{name} sets model.{key} to {model[key]!r}, but starts from the model of the stage before; leave it "
                "out, or make a recipe of its own"
            )


def find_recipe(name: str | Path) -> Path:
    """Return the file of a recipe: the one of that path, else the shipped one, as "mini" or "recipes/mini.yaml".

    Raises:
        InputError: there is neither; the message names those that are shipped.
    """
    path = Path(name)
    if path.exists() and not path.is_dir():
        return path
    shipped = {file.stem: file for file in _shipped_folder().glob("*.yaml")}
    asked = path.name.removesuffix(".yaml")
    if path.parent in (Path(), Path("recipes")) and asked in shipped:
        return shipped[asked]
    raise InputError(f"{name}: no such recipe; give a YAML file, or one that is shipped: {', '.join(sorted(shipped))}")


def _shipped_folder() -> Path:
    package = Path(str(files("diffretriever")))
    built, repository = ((package / place).resolve() for place in _SHIPPED)
    return built if built.is_dir() else repository


def read_mapping(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return what a recipe (see `find_recipe`) holds, with overrides applied and nothing checked."""
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError("pyyaml", "train", "reading a recipe") from error
    path = find_recipe(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: not a readable recipe: {error}") from error
    if not isinstance(raw, dict):
        raise InputError(f"{path}: must hold keys and values, got {type(raw).__name__}")
    return _overridden(raw, overrides)


def _merged(raw: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping with the values of another in place of its own, section by section; lists are replaced whole."""
    whole = dict(raw)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(whole.get(key), Mapping)
        whole[key] = _merged(whole[key], value) if both else value
    return whole


def _overridden(raw: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a mapping with `key=value` texts applied to it."""
    import yaml

    whole = deepcopy(dict(raw))
    for item in overrides:
        key, sign, value = item.partition("=")
        if not sign or not key:
            raise InputError(f"an override reads key=value, got {item!r}")
        if key.split(".")[0] == "stages":
            raise InputError(
                f"an override holds for all stages, and none can set one, got {item!r}; give the key as it stands in a "
                "stage (seed=3), or change the file"
            )
        target = whole
        *parents, leaf = key.split(".")
        for parent in parents:
            if not isinstance(target.get(parent), dict):
                target[parent] = {}
            target = target[parent]
        target[leaf] = yaml.safe_load(value)
    return whole


def build(cls: type[T], raw: object, where: str) -> T:
    """Return the dataclass that a parsed mapping describes, nested ones included.

    Args:
        cls: a dataclass of settings.
        raw: the mapping.
        where: the keys that lead to it, as messages name them.

    Raises:
        InputError: a key is unknown or missing, or a value is of another type.
    """
    place = f"`{where}`" if where else "the recipe"
    if not isinstance(raw, Mapping):
        raise InputError(f"{place} must hold keys and values, got {raw!r}")
    known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    if unknown := sorted(set(map(str, raw)) - set(known)):
        raise InputError(f"{place}: unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}")
    hints = get_type_hints(cls)
    values = {name: _value(hints[name], raw[name], f"{where}.{name}".lstrip(".")) for name in raw}
    try:
        return cls(**values)
    except TypeError as error:
        missing = str(error).partition("argument")[2].lstrip("s: ")
        raise InputError(f"{place} lacks {missing}; known keys are {', '.join(sorted(known))}") from error


def _value(hint: Any, raw: object, where: str) -> object:  # noqa: ANN401  (a type annotation)
    """Return a value as its annotation wants it."""
    origin, options = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if raw is None and type(None) in options:
            return None
        return _value(next(o for o in options if o is not type(None)), raw, where)
    if is_dataclass(hint):
        return build(hint, raw, where)  # type: ignore[arg-type]
    if origin is Literal:
        return str(raw)
    if origin is tuple:
        items = raw if isinstance(raw, list | tuple) else [raw]
        if options[-1] is not Ellipsis and len(items) != len(options):
            raise InputError(f"`{where}` must be {len(options)} values, got {raw!r}")
        return tuple(_value(options[0], item, f"{where}[{i}]") for i, item in enumerate(items))
    if origin is not None:
        if not isinstance(raw, Mapping):
            raise InputError(f"`{where}` must hold keys and values, got {raw!r}")
        return dict(raw)
    return _scalar(hint, raw, where)


def _scalar(kind: type, raw: object, where: str) -> object:
    # YAML 1.1 takes 1e-4 for a text, since it wants a point in a number.
    if kind is float and isinstance(raw, str | int) and not isinstance(raw, bool):
        try:
            return float(raw)
        except ValueError:
            pass
    if not isinstance(raw, kind) or (isinstance(raw, bool) and kind is not bool):
        names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
        raise InputError(f"`{where}` must be {names.get(kind, kind.__name__)}, got {raw!r}")
    return raw
