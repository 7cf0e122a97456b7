"""The helper itself: filecheck says no when it should."""

import pytest
from checking import check

TEXT = "one two\nthree four\nfive\n"


def test_right_lines_pass():
    check(TEXT, "CHECK: two\nCHECK-NEXT: three {{f.*r}}\nCHECK-NOT: six\n")


@pytest.mark.parametrize(
    "lines",
    [
        "CHECK: six",
        "CHECK: three\nCHECK: two",
        "CHECK: one\nCHECK-NEXT: five",
        "CHECK-NOT: three",
        "CHECK: one\nCHECK-NOT: five",
        "no directive at all",
    ],
)
def test_wrong_lines_fail(lines):
    with pytest.raises(AssertionError, match="one two"):
        check(TEXT, lines)
