"""Checks: numbers and choices of settings that are out of range, named."""

from __future__ import annotations

from diffretriever.errors import InputError


def at_least(least: int, **values: int) -> None:
    """Raise InputError, naming it, if one of the values is below `least`."""
    for name, value in values.items():
        if value < least:
            raise InputError(f"{name} must be at least {least}, got {value}")


def share(**values: float) -> None:
    """Raise InputError, naming it, if one of the values is not from 0 to 1."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise InputError(f"{name} must be from 0 to 1, got {value}")


def one_of(**values: tuple[str, tuple[str, ...]]) -> None:
    """Raise InputError, naming it, if one of the (value, choices) pairs is no choice."""
    for name, (value, known) in values.items():
        if value not in known:
            raise InputError(f"{name} is {value!r}; choose one of {', '.join(known)}")
