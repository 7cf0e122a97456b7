"""How a function is compiled."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Options:
    """How a function is compiled; `compile` documents the fields."""

    passes: str | None = None
    memory_budget: str | float | None = None
    autotune: bool = False
    assume_symmetric: str | tuple[str, ...] = ()
    respect_checkpoints: bool = False
    roll: bool = True
    verify: bool = False
    jit: dict[str, Any] = field(default_factory=dict)
    compiler: dict[str, Any] | None = None

    @property
    def static(self) -> dict[str, Any]:
        """The jit options that say what is static: nothing donated, no layout of the results."""
        return {name: value for name, value in self.jit.items() if name.startswith("static_")}
