"""What mixflow raises on its own account."""


class MixflowError(Exception):
    """The common base."""


class InputError(MixflowError):
    """The call or the input was wrong: one line that says what, where, and what to do."""


class VerificationError(MixflowError):
    """`verify=True` found a difference between the original and the optimised program."""


class BudgetError(MixflowError):
    """The program does not fit the memory budget."""
