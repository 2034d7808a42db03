"""What an index may hold, given which operations on it were begun and which returned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from diffretriever.corpus import Passage

#: None: the index does not hold the id.
State = Passage | None


@dataclass(frozen=True)
class Operation:
    """One call on an index.

    Attributes:
        kind: "add", "update", "set_metadata", "delete", "maintain", "snapshot", "reopen" or "repair".
        passages: the passages of an add or update.
        metadata: new metadata by id.
        ids: ids to delete.
        folder: name of the snapshot's folder.
    """

    kind: str
    passages: tuple[Passage, ...] = ()
    metadata: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    ids: tuple[str, ...] = ()
    folder: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> Operation:
        passages = tuple(Passage(**p) for p in raw["passages"])
        return Operation(raw["kind"], passages, raw["metadata"], tuple(raw["ids"]), raw["folder"])

    def effects(self) -> dict[str, Callable[[State], State]]:
        """Return what the operation makes of each id it touches."""
        new: dict[str, Callable[[State], State]] = {}
        for passage in self.passages:
            new[passage.passage_id] = lambda old, p=passage: p  # type: ignore[misc]
        for passage_id, metadata in self.metadata.items():
            new[passage_id] = lambda old, m=metadata: None if old is None else replace(old, metadata=m)  # type: ignore[misc]
        for passage_id in self.ids:
            new[passage_id] = lambda old: None
        return new


class Model:
    """The states that each id may be in; an id that is not listed is absent.

    An operation that returned leaves one state. One that was cut short leaves two, the old and the new, for each
    passage by itself, until somebody looks: what was seen once must stay.
    """

    def __init__(self, states: Mapping[str, list[State]] | None = None) -> None:
        self.states: dict[str, list[State]] = {i: list(s) for i, s in (states or {}).items()}

    def copy(self) -> Model:
        return Model(self.states)

    def apply(self, operation: Operation, *, acknowledged: bool) -> None:
        for passage_id, effect in operation.effects().items():
            old = self.states.get(passage_id, [None])
            new = [effect(state) for state in old]
            self.states[passage_id] = _distinct(new if acknowledged else [*old, *new])

    def observe(self, held: Mapping[str, Passage]) -> list[str]:
        """Take the content of an index for the truth, and return a line for each id that cannot be in that state."""
        wrong = []
        for passage_id in sorted(self.states.keys() | held.keys()):
            allowed, found = self.states.get(passage_id, [None]), held.get(passage_id)
            if found not in allowed:
                wrong.append(f"{_verdict(allowed, found)}: {passage_id!r} is {found}, allowed are {allowed}")
        self.states = {passage_id: [passage] for passage_id, passage in held.items()}
        return wrong


def _verdict(allowed: list[State], found: State) -> str:
    if found is None:
        return "lost"
    return "resurrected" if allowed == [None] else "changed"


def _distinct(states: Iterable[State]) -> list[State]:
    kept: list[State] = []
    for state in states:
        if state not in kept:
            kept.append(state)
    return kept
