"""Dividing money so that nothing is lost."""

from collections.abc import Sequence

WHOLE = 10_000
"""Basis points in one."""


def split(amount: int, weights: Sequence[int]) -> list[int]:
    """Parts of an amount in proportion to the weights; they add up to it exactly.

    Largest remainder (Hamilton): each gets its proportion rounded down, and what is left goes, one by one, to those
    whose proportion was cut most; of equals, to those named first. Amounts are not negative.
    """
    whole = sum(weights)
    parts = [amount * weight // whole for weight in weights]
    cut = [amount * weight % whole for weight in weights]
    for index in sorted(range(len(weights)), key=lambda index: -cut[index])[: amount - sum(parts)]:
        parts[index] += 1
    return parts
