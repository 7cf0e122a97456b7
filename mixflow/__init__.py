"""mixflow: a compiler for differentiating through gradient steps."""

from mixflow.compiler import vjp_batching as _vjp_batching  # registers the batching rules
from mixflow.compiler.explicit import grad, value_and_grad, vjp

__all__ = ["grad", "value_and_grad", "vjp"]
