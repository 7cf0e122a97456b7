"""The models and the lengths of a walk, the smallest first."""

from __future__ import annotations

from benchmarks.scale.chinchilla import Model

_SMALL = [
    Model(128, 4, 4, vocabulary=512),
    Model(192, 6, 4, vocabulary=512),
    Model(256, 8, 5, vocabulary=1024),
    Model(384, 6, 6, vocabulary=2048),
    Model(512, 8, 6, vocabulary=4096),
    Model(512, 8, 8, vocabulary=8192),
]
"""From 1 M parameters up."""

_CHINCHILLA = [
    Model(512, 8, 8),
    Model(576, 9, 9),
    Model(640, 10, 10),
    Model(640, 10, 13),
    Model(640, 10, 16),
    Model(768, 12, 12),
    Model(768, 12, 15),
    Model(768, 12, 18),
    Model(896, 14, 14),
    Model(896, 14, 16),
    Model(896, 14, 18),
    Model(1024, 16, 16),
    Model(1024, 16, 18),
    Model(1024, 16, 20),
    Model(1280, 10, 18),
    Model(1280, 10, 21),
]
"""44 M to 489 M parameters."""

MODELS = {"cpu": [*_SMALL, *_CHINCHILLA[:3]], "gpu": _CHINCHILLA}
TOKENS = {"cpu": 256, "gpu": 2048}
"""The length at which models are walked; at the first model, lengths are."""
LENGTHS = {
    "cpu": [256, 384, 512, 768, 1024, 1536, 2048, 3072],
    "gpu": [512, 1024, 2048, 4096, 8192, 16384, 32768],
}
MEMORY = {"cpu": "4GB", "gpu": "70GB"}
STEPS = (2, 4, 8)
