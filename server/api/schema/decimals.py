"""Whole numbers up to a bound as a regular expression, for keys: JSON Schema bounds values only."""

from __future__ import annotations


def decimals_up_to(most: int) -> str:
    """Matches the decimal of every number from 0 to ``most``, with as many digits as it needs.
    To be used between anchors."""
    digits = str(most)
    length = len(digits)
    forms = ["[0-9]"] if length > 1 else [f"[0-{most}]"]
    forms += [f"[1-9][0-9]{{{size - 1}}}" for size in range(2, length)]
    if length > 1:
        for at, digit in enumerate(digits):  # a shorter prefix of the bound, then less, then any
            low = 1 if at == 0 else 0
            if int(digit) > low:
                forms.append(f"{digits[:at]}[{low}-{int(digit) - 1}][0-9]{{{length - at - 1}}}")
        forms.append(digits)
    return f"({'|'.join(forms)})"
