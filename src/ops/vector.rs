//! What the element-wise and row-wise kernels share: one body compiled for every [`CpuPath`](crate::device::CpuPath),
//! sums over fixed lanes, and the size of a task.
//!
//! Invariant: no kernel built from these contracts a multiplication and an addition, and every sum runs over
//! [`LANES`] fixed lanes: the bits are the same on every path and with any number of threads.

/// Partial sums of a reduction: element `i` of a row belongs to lane `i % LANES`.
pub(crate) const LANES: usize = 32;

/// Elements of one task: 64 KiB of each operand, so that starting a task costs little and a task stays in the L2 cache.
pub(crate) const TASK: usize = 16 * 1024;

/// Rows of one task over rows of `cols` values. A function of the shape only.
pub(crate) fn rows_per_task(cols: usize) -> usize {
    (TASK / cols.max(1)).max(1)
}

/// Defines `fn name(path: CpuPath, arguments...)`, whose body is compiled once for each instruction set; plain slice
/// loops in it are vectorised by the compiler. The path must be one that the machine has: `device::cpu_path()` or an
/// element of `CpuPath::available()`.
macro_rules! kernel {
    ($(#[$meta:meta])* $visible:vis fn $name:ident($($argument:ident: $kind:ty),* $(,)?) $(-> $output:ty)? $body:block) => {
        $(#[$meta])*
        $visible fn $name(path: $crate::device::CpuPath, $($argument: $kind),*) $(-> $output)? {
            #[inline(always)]
            fn body($($argument: $kind),*) $(-> $output)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
            fn avx512($($argument: $kind),*) $(-> $output)? {
                body($($argument),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($argument: $kind),*) $(-> $output)? {
                body($($argument),*)
            }

            match path {
                #[cfg(target_arch = "x86_64")]
                $crate::device::CpuPath::Avx512 | $crate::device::CpuPath::Avx512Bf16 | $crate::device::CpuPath::Amx => {
                    // SAFETY: callers pass available paths only, and these two are available only with the features.
                    unsafe { avx512($($argument),*) }
                }
                #[cfg(target_arch = "x86_64")]
                $crate::device::CpuPath::Avx2 => {
                    // SAFETY: as above.
                    unsafe { avx2($($argument),*) }
                }
                _ => body($($argument),*),
            }
        }
    };
}
pub(crate) use kernel;

/// `Σ term(x[i], y[i])`, each lane in order, the lanes added pairwise. For use inside a [`kernel!`] body.
#[inline(always)]
pub(crate) fn sum_pairs(x: &[f32], y: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (whole_x, rest_x) = x.as_chunks::<LANES>();
    let (whole_y, rest_y) = y.as_chunks::<LANES>();
    for (x, y) in whole_x.iter().zip(whole_y) {
        for lane in 0..LANES {
            lanes[lane] += term(x[lane], y[lane]);
        }
    }
    for (lane, (x, y)) in lanes.iter_mut().zip(rest_x.iter().zip(rest_y)) {
        *lane += term(*x, *y);
    }
    add_lanes(lanes)
}

/// [`sum_pairs`] over the products of three rows: `Σ x[i] · y[i] · z[i]`.
#[inline(always)]
pub(crate) fn sum_products(x: &[f32], y: &[f32], z: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let (whole_x, rest_x) = x.as_chunks::<LANES>();
    let (whole_y, rest_y) = y.as_chunks::<LANES>();
    let (whole_z, rest_z) = z.as_chunks::<LANES>();
    for ((x, y), z) in whole_x.iter().zip(whole_y).zip(whole_z) {
        for lane in 0..LANES {
            lanes[lane] += x[lane] * y[lane] * z[lane];
        }
    }
    for (lane, ((x, y), z)) in lanes.iter_mut().zip(rest_x.iter().zip(rest_y).zip(rest_z)) {
        *lane += x * y * z;
    }
    add_lanes(lanes)
}

/// The lanes added pairwise: halves onto each other until one is left.
#[inline(always)]
pub(crate) fn add_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}
