"""mixflow: a compiler for differentiating through gradient steps."""

from mixflow.compiler.capture.explicit import grad, value_and_grad, vjp
from mixflow.compiler.rules.symmetry import check_symmetry
from mixflow.errors import BudgetError, InputError, MixflowError, VerificationError
from mixflow.runtime.artifact.loaded import Artifact, load
from mixflow.runtime.backend import compiler_options
from mixflow.runtime.compile import compile
from mixflow.runtime.function import CompiledFunction

__all__ = [
    "Artifact",
    "BudgetError",
    "CompiledFunction",
    "InputError",
    "MixflowError",
    "VerificationError",
    "check_symmetry",
    "compile",
    "compiler_options",
    "grad",
    "load",
    "value_and_grad",
    "vjp",
]
