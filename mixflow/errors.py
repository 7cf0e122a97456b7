"""What mixflow raises on its own account."""


class MixflowError(Exception):
    """The common base of what mixflow raises on its own account."""


class InputError(MixflowError):
    """The call or the input was wrong: one line that says what, where, and what to do."""


class VerificationError(MixflowError):
    """`verify=True` found a difference between the original and the optimised program.

    The message has the relative error, the dtype, and what is allowed (`docs/how-it-works.md`).
    """


class BudgetError(MixflowError):
    """No plan is within the memory budget; the message names the least that was found, in bytes."""
