"""Device functions that the kernels share. Imported only where a kernel is launched or compiled."""

import triton
import triton.language as tl


@triton.jit
def softplus(x):
    return tl.maximum(x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def rounded(value, pointer, EMULATE_BF16: tl.constexpr):
    """fp32 that holds what a store to `pointer` will hold, rounded to nearest even.

    Triton's interpreter truncates to bf16: EMULATE_BF16 rounds by hand there.
    """
    if EMULATE_BF16 and pointer.dtype.element_ty == tl.bfloat16:
        bits = value.to(tl.int32, bitcast=True)
        bits = tl.where(value != value, bits, (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536)
        value = bits.to(tl.float32, bitcast=True)
    else:
        value = value.to(pointer.dtype.element_ty).to(tl.float32)
    return value


@triton.jit
def store_rounded(pointer, value, mask, EMULATE_BF16: tl.constexpr):
    """Store fp32 in the pointer's dtype, rounded to nearest even."""
    tl.store(pointer, rounded(value, pointer, EMULATE_BF16).to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10 (Salmon et al. 2011) on uint32 tensors of one shape."""
    for _ in tl.static_range(10):
        # One wide product gives both halves: apart they are two instructions.
        left, right = c0.to(tl.uint64) * 0xD2511F53, c2.to(tl.uint64) * 0xCD9E8D57
        c0, c2 = (right >> 32).to(tl.uint32) ^ c1 ^ k0, (left >> 32).to(tl.uint32) ^ c3 ^ k1
        c1, c3 = right.to(tl.uint32), left.to(tl.uint32)
        k0, k1 = k0 + 0x9E3779B9, k1 + 0xBB67AE85
    return c0, c1, c2, c3
