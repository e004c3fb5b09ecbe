"""Texts of the config that are of the right type, and yet not what they are meant to be."""

import re
from pathlib import Path

_SWITCHES = ("none", "false", "off", "no", "true", "on", "yes")


def one_question(prompt: str) -> str:
    """The prompt; `ValueError` unless it has {question} once, and no other name in braces."""
    if prompt.count("{question}") != 1:
        raise ValueError("must contain {question} exactly once")
    others = [name for name in re.findall(r"\{\w*\}", prompt) if name != "{question}"]
    if others:
        raise ValueError(f"has {others[0]:.80}, where {{question}} alone is filled in")
    return prompt


def no_switch(folder: Path | str | None) -> Path | str | None:
    """The folder of a feature cache; `ValueError` where its name is a word that switches something on or off."""
    if isinstance(folder, Path) and folder.name.lower() in _SWITCHES:
        raise ValueError(f"{folder.name} would be a folder's name; null is for no cache, and auto for one")
    return folder


def each_once(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names; `ValueError` where one of them is there twice."""
    if len(set(names)) < len(names):
        raise ValueError("names one of them twice")
    return names
