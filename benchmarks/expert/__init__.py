"""The reference program as somebody who knows the MixFlow-MG paper writes it by hand, no mixflow.

The same arguments and the same numbers as `benchmarks.reference`. Four things are added there by
hand, and each can be left out to see what it is worth: `Annotations` lists them.
"""

from benchmarks.expert.program import Annotations, meta_loss

__all__ = ["Annotations", "meta_loss"]
