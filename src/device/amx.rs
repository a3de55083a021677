//! Whether AMX's tile registers may be used: the processor has them and the system lets this process use them.
//!
//! Linux gives the 8 KB of tile state only to a process that asks for it, once, for all its threads. Elsewhere nothing
//! is known of how to ask, so there is no AMX.
//!
//! Reference: Intel's Architecture Instruction Set Extensions, chapter 3 (CPUID leaf 7, EDX bits 22 and 24), and
//! Linux' `Documentation/arch/x86/xstate.rst` (`ARCH_REQ_XCOMP_PERM`).

/// Asks the processor and the system, the first time it is called.
pub(super) fn is_usable() -> bool {
    #[cfg(target_os = "linux")]
    {
        static USABLE: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
        *USABLE.get_or_init(|| linux::has_tiles() && linux::permitted())
    }
    #[cfg(not(target_os = "linux"))]
    false
}

#[cfg(target_os = "linux")]
mod linux {
    use std::arch::x86_64::{__cpuid, __cpuid_count};

    /// `arch_prctl`'s request for a component of the extended state.
    const REQUEST_PERMISSION: libc::c_long = 0x1023;

    /// The component: data of the tiles.
    const TILE_DATA: libc::c_long = 18;

    /// `amx-bf16` and `amx-tile`.
    pub fn has_tiles() -> bool {
        const BF16_AND_TILE: u32 = 1 << 22 | 1 << 24;
        #[allow(unused_unsafe)] // Not everywhere are these safe to call.
        // SAFETY: every x86-64 processor has CPUID; leaf 7 is asked for only where there is one.
        unsafe {
            __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & BF16_AND_TILE == BF16_AND_TILE
        }
    }

    /// Whether Linux grants the tiles to this process (5.16 and newer do).
    pub fn permitted() -> bool {
        // SAFETY: this request takes two numbers and touches no memory.
        unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0 }
    }
}
