"""What was done to a published configuration, as lines for a person."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

HEADINGS = {
    "translated": "a published configuration, translated",
    "mended": "mended (as it is, the original could not build or run it)",
    "otherwise": "done in another way here",
    "idle": "WITHOUT EFFECT in the original, and not used here",
}


class Notes:
    """An account in four kinds (``HEADINGS``).

    Args:
        given: dotted keys set on the command line: what a person has just typed is never dropped.
    """

    def __init__(self, given: set[str]) -> None:
        self.entries: list[tuple[str, str, str]] = []  # kind, key, text
        self._given = given

    def add(self, kind: str, key: str, text: str) -> None:
        """One note on ``key``."""
        self.entries.append((kind, key, text))

    def keys(self, kind: str) -> list[str]:
        """Of what keys there are notes of that kind."""
        return [key for found, key, _ in self.entries if found == kind]

    def given(self, key: str) -> bool:
        """Whether ``key``, a part of it or a section it is in was set on the command line."""
        return any(f"{key}.".startswith(f"{typed}.") or f"{typed}.".startswith(f"{key}.") for typed in self._given)

    def drop_unread(self, node: dict[str, Any], known: Mapping[str, Any], path: str, silent: set[str]) -> None:
        """Take out of ``node`` what neither ``known`` nor the command line has; sections of ``known`` are looked into.

        Keys in ``silent`` (dotted) are not mentioned.
        """
        for key in list(node):
            here = f"{path}.{key}" if path else str(key)
            below = known.get(key)
            if key in known:
                if isinstance(below, dict) and isinstance(node[key], dict):
                    self.drop_unread(node[key], below, here, silent)
            elif not self.given(here):
                del node[key]
                if here not in silent:
                    near = get_close_matches(str(key), map(str, known), n=1, cutoff=0.8)
                    self.add("idle", here, f"never read; {near[0]} is" if near else "never read")

    def lines(self) -> list[str]:
        """A heading per kind and a line per text; keys with the same text share one."""
        out = []
        for kind, heading in HEADINGS.items():
            texts: dict[str, list[str]] = {}
            for found, key, text in self.entries:
                if found == kind:
                    texts.setdefault(text, []).append(key)
            out += [f"{heading}:"] if texts else []
            out += [f"  {', '.join(found)}: {text}" for text, found in texts.items()]
        return out
