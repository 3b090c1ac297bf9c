"""CAMEO event codes: what is valid, and how codes that lost their leading zeros are told apart.

The taxonomy is three levels deep: two digits of root, a third for the base code, sometimes a fourth.
"""

import re

# third digits in use below each root
_BASES = {
    "01": "0123456789",
    "02": "012345678",
    "03": "0123456789",
    "04": "0123456",
    "05": "01234567",
    "06": "01234",
    "07": "012345",
    "08": "01234567",
    "09": "01234",
    "10": "012345678",
    "11": "0123456",
    "12": "0123456789",
    "13": "0123456789",
    "14": "012345",
    "15": "012345",
    "16": "0123456",
    "17": "0123456",
    "18": "0123456",
    "19": "0123456",
    "20": "01234",
}
# fourth digits in use below some base codes
_DETAILS = {
    "12": "084 171 195 204",
    "123": "086 131 162 166 182",
    "1234": "021 023 024 031 033 034 081 083 087 101 103 104 121 122 123 132 141 142 143 144 145 172 183",
    "12345": "112 138",
    "123456": "025 035 105 124",
}
_DIGITS = re.compile(r"(\d{1,4})(\.0*)?")


def _all_codes() -> frozenset[str]:
    codes = {root + digit for root, digits in _BASES.items() for digit in digits}
    for digits, bases in _DETAILS.items():
        codes |= {base + digit for base in bases.split() for digit in digits}
    return frozenset(codes)


EVENT_CODES = _all_codes()
ROOT_CODES = frozenset(_BASES)


def clean_event_code(text: str | None) -> str | None:
    """The code with its leading zeros restored; None where there is none (``X``, ``---``, no CAMEO code)."""
    match = _DIGITS.fullmatch(text.strip()) if text else None
    if match is None:
        return None
    code = match[1].zfill(3)
    if code not in EVENT_CODES:
        code = "0" + code
    return code if code in EVENT_CODES else None


def clean_root_code(text: str | None) -> str | None:
    """The two digits of a root code; None where there is none."""
    match = _DIGITS.fullmatch(text.strip()) if text else None
    code = match[1].zfill(2) if match else None
    return code if code in ROOT_CODES else None


def quad_class(code: str) -> int:
    """1 verbal cooperation, 2 material cooperation, 3 verbal conflict, 4 material conflict."""
    root = int(code[:2])
    return 1 if root <= 5 else 2 if root <= 9 else 3 if root <= 14 else 4
