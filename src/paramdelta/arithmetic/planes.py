"""The inner loops of stored Δs, compiled by numba: halves of a Δ as words, and words as floats.

A word holds the bits of a float64 in another order, from the top: the low 8 bits of the exponent,
the sign, the mantissa, the high 3 bits of the exponent. The exponent is renumbered, so that zero
and all normal float32 numbers have zeros in the high bits. The bytes of a word, from the top, are
therefore an exponent, a sign with the leading bits of the mantissa, and bytes that are zero for
nearly all differences of weights. Bytes of one kind compress well together.
"""

from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

from paramdelta.arithmetic.compiled import compiled

U64 = np.uint64


@intrinsic
def _bits(_context: Any, _value: Any) -> Any:
    """The bits of a float64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))

    return types.uint64(types.float64), generate


@numba.njit
def _word(value: Any) -> Any:
    bits = _bits(value)
    exponent = U64(U64(bits >> U64(52)) & U64(0x7FF))
    if exponent > U64(896):
        exponent = U64(exponent - U64(896))
    elif exponent != U64(0):
        exponent = U64(exponent + U64(1151))
    mantissa = U64(U64(bits & U64(0xFFFFFFFFFFFFF)) << U64(3))
    sign = U64(U64(bits >> U64(63)) << U64(55))
    low = U64(U64(exponent & U64(0xFF)) << U64(56))
    return U64(low | sign | mantissa | U64(exponent >> U64(8)))


@compiled
def halve(post: Any, base: Any, one: Any, other: Any) -> Any:
    """Words of two numbers each with ``one − other = post − base``.

    They are the difference and zero, unless the difference is not exact in float64, is not finite,
    or a zero would change its sign (``post`` or ``base`` is a negative zero). In these cases they
    are post and base. ``post`` and ``base``: float64; ``one`` and ``other``: uint64; all of one
    length. Returns the bitwise or of all words of each.
    """
    any_one = any_other = U64(0)
    for i in range(post.size):
        p, b = post[i], base[i]
        x, y = p - b, 0.0
        part = x - p  # Knuth's TwoSum: the error of the difference, NaN if it is not finite
        error = (p - (x - part)) + (-b - part)
        plain = error == 0.0
        if x == 0.0:
            x = 0.0
            plain &= _bits(p) == _bits(b)
        else:
            plain &= (_bits(p) != U64(1) << U64(63)) & (_bits(b) != U64(1) << U64(63))
        if not plain:
            x, y = p, b
        one[i], other[i] = _word(x), _word(y)
        any_one |= one[i]
        any_other |= other[i]
    return any_one, any_other


@compiled
def add_plane(words: Any, plane: Any, shift: int) -> None:
    """Insert a plane of bytes into the words, ``shift`` bits from the bottom."""
    for i in range(words.size):
        words[i] |= U64(U64(plane[i]) << U64(shift))


@compiled
def to_floats(words: Any) -> None:
    """Convert words to the bits of float64, in place."""
    for i in range(words.size):
        word = words[i]
        exponent = U64(U64(word >> U64(56)) | U64(U64(word & U64(7)) << U64(8)))
        if exponent > U64(1151):
            exponent = U64(exponent - U64(1151))
        elif exponent != U64(0):
            exponent = U64(exponent + U64(896))
        mantissa = U64(U64(word >> U64(3)) & U64(0xFFFFFFFFFFFFF))
        sign = U64(U64(U64(word >> U64(55)) & U64(1)) << U64(63))
        words[i] = U64(sign | U64(exponent << U64(52)) | mantissa)
