//! Vector registers, in which hashes and ciphers leave their state.
//!
//! A thread that sleeps afterwards keeps them for as long as it sleeps, and a core file shows the registers of every
//! thread: without this, a file key's hash state was found there.
//!
//! Why there is `unsafe` here: no safe code names a register. Elsewhere than on x86-64 registers stay as they are, and
//! `docs/THREATS.md` says so.

#[cfg(all(target_arch = "x86_64", not(miri)))]
use std::arch::asm;

/// Overwrite the vector registers that a called function may change: all of them. A few cycles.
#[cfg(all(target_arch = "x86_64", not(miri)))]
pub(crate) fn clear_vector_registers() {
    if std::arch::is_x86_feature_detected!("avx512f") {
        // What the C library copies with, where it can.
        clear_high_registers();
    }
    if std::arch::is_x86_feature_detected!("avx") {
        // SAFETY: the CPU has the instruction, and all sixteen registers that it changes are declared as changed.
        unsafe { asm!("vzeroall", clobber_abi("sysv64"), options(nomem, nostack, preserves_flags)) }
    } else {
        clear_low_halves();
    }
}

/// The sixteen registers that came with AVX-512, which the CPU must have.
#[cfg(all(target_arch = "x86_64", not(miri)))]
fn clear_high_registers() {
    // SAFETY: the caller has seen that the CPU has these instructions, and the registers that they change are declared as changed.
    unsafe {
        asm!(
            "vpxorq zmm16, zmm16, zmm16",
            "vpxorq zmm17, zmm17, zmm17",
            "vpxorq zmm18, zmm18, zmm18",
            "vpxorq zmm19, zmm19, zmm19",
            "vpxorq zmm20, zmm20, zmm20",
            "vpxorq zmm21, zmm21, zmm21",
            "vpxorq zmm22, zmm22, zmm22",
            "vpxorq zmm23, zmm23, zmm23",
            "vpxorq zmm24, zmm24, zmm24",
            "vpxorq zmm25, zmm25, zmm25",
            "vpxorq zmm26, zmm26, zmm26",
            "vpxorq zmm27, zmm27, zmm27",
            "vpxorq zmm28, zmm28, zmm28",
            "vpxorq zmm29, zmm29, zmm29",
            "vpxorq zmm30, zmm30, zmm30",
            "vpxorq zmm31, zmm31, zmm31",
            clobber_abi("sysv64"),
            options(nomem, nostack, preserves_flags)
        )
    }
}

/// What there is of the registers on a CPU without AVX.
#[cfg(all(target_arch = "x86_64", not(miri)))]
fn clear_low_halves() {
    // SAFETY: every x86-64 CPU has these instructions, and the registers that they change are declared as changed.
    unsafe {
        asm!(
            "xorps xmm0, xmm0",
            "xorps xmm1, xmm1",
            "xorps xmm2, xmm2",
            "xorps xmm3, xmm3",
            "xorps xmm4, xmm4",
            "xorps xmm5, xmm5",
            "xorps xmm6, xmm6",
            "xorps xmm7, xmm7",
            "xorps xmm8, xmm8",
            "xorps xmm9, xmm9",
            "xorps xmm10, xmm10",
            "xorps xmm11, xmm11",
            "xorps xmm12, xmm12",
            "xorps xmm13, xmm13",
            "xorps xmm14, xmm14",
            "xorps xmm15, xmm15",
            clobber_abi("sysv64"),
            options(nomem, nostack, preserves_flags)
        )
    }
}

/// Nothing that we know how to do here.
#[cfg(not(all(target_arch = "x86_64", not(miri))))]
pub(crate) fn clear_vector_registers() {}
