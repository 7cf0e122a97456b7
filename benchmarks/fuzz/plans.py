"""Pipelines drawn at random, to be forced on a program beside the planner's choice."""

from __future__ import annotations

from random import Random

from mixflow.passes import DEFAULT_PIPELINE, PASSES
from mixflow.planner.pipeline import PREPARE, ROLLED

RULES = tuple(n for n in ("forward-over-reverse", "reverse-over-forward") if n in PASSES)
"""The passes that choose a derivative rule for a gradient."""

LOOPS_OF_LOOPS = '{levels=1,2 loops="<unknown>","<unknown>#2"}'
"""The first two loops by their names: random programs stand in no file, so lines are unknown."""

OPTIONS = {
    "checkpoint-inner-loop": ("{levels=1}", "{levels=2}", "{levels=3}", LOOPS_OF_LOOPS),
    "save-inner-gradients": ("", "{levels=1}"),
    "segment-loss": ("{slack=0 rerun=1.0}", "{slack=0 rerun=0.5}", "{slack=1000 rerun=2.0}"),
}


def draw_plan(seed: int) -> str:
    """A pipeline: always a derivative rule, the other passes by chance, in mixflow's order."""
    rng = Random(~seed)  # another stream than the program's
    left_out = rng.choice((None, None, *RULES[:-1]))  # where there are two, sometimes the first
    names = [rng.choice((PREPARE, ROLLED))] if rng.random() < 0.9 else []
    for name in _rewrites():
        if name != left_out and (name in RULES or rng.random() < 0.5):
            names.append(name + rng.choice(OPTIONS.get(name, ("",))))
    return ",".join(names)


def _rewrites() -> list[str]:
    """What stands behind the preparation in the default pipeline, and the second rule."""
    names = [*DEFAULT_PIPELINE.removeprefix(f"{ROLLED},").split(",")]
    behind = [name for name in names[names.index("forward-over-reverse") :] if name not in RULES]
    return [*names[: names.index("forward-over-reverse")], *RULES, *behind]
