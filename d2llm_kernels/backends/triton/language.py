"""What every kernel here needs besides ``triton.language``: operands, products and stores that mean the same twice.

The same source is compiled for a GPU and, with ``TRITON_INTERPRET=1``, run by Triton's interpreter on CPU tensors. The
interpreter keeps bfloat16 as raw 16-bit integers, so that arithmetic on it is silently wrong and conversions truncate.
There, values are widened right after a load and rounded by hand before they count as half precision; compiled code
gets the plain operation from the same call.
"""

import triton
import triton.language as tl

INTERPRET = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def operand(value, DTYPE: tl.constexpr):
    """``value`` rounded to DTYPE, ready for ``dot``. The interpreter keeps half precision in float32, exactly."""
    if INTERPRET and (DTYPE == tl.bfloat16 or DTYPE == tl.float16):
        if DTYPE == tl.bfloat16 and value.dtype != tl.bfloat16:
            result = _round_to_bfloat16(value.to(tl.float32))
        else:
            result = value.to(DTYPE).to(tl.float32)
    else:
        result = value.to(DTYPE)
    return result


@triton.jit
def dot(a, b, accumulator, PRECISION: tl.constexpr):
    """accumulator + a b, summed in the accumulator's dtype; PRECISION tells how float32 operands are multiplied.

    The interpreter's own product is that of NumPy's BLAS, which may give a row other bits at another place of a tile.
    Elementwise products, added up along an axis between others, have one order for all places.
    """
    if INTERPRET:
        result = accumulator + tl.sum(a[:, :, None] * b[None, :, :], 1).to(accumulator.dtype)
    else:
        result = tl.dot(a, b, accumulator, input_precision=PRECISION, out_dtype=accumulator.dtype)
    return result


@triton.jit
def relu(value):
    """max(value, 0), NaN where the value is NaN, as torch's is; the plain maximum would drop it."""
    return tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def below(index, LIMIT: tl.constexpr, BLOCK: tl.constexpr):
    """index < LIMIT; where blocks of BLOCK divide LIMIT, the constant true, which compiles to no mask at all."""
    return tl.full(index.shape, 1, tl.int1) if LIMIT % BLOCK == 0 else index < LIMIT


@triton.jit
def known_multiple(stride, KNOWN: tl.constexpr):
    """``stride``; where it is KNOWN to be a multiple of 16, in a form that tells the compiler."""
    return stride // 16 * 16 if KNOWN else stride


@triton.jit
def store(pointer, value, mask):
    """Round ``value`` to the pointer's dtype, to nearest even, and store it."""
    tl.store(pointer, operand(value, pointer.dtype.element_ty).to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def _round_to_bfloat16(value):
    """Nearest float32 that bfloat16 can hold, ties to even; the interpreter's own conversion truncates."""
    bits = value.to(tl.uint32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return tl.where(value == value, rounded.to(tl.float32, bitcast=True), value)
