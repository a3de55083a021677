//! The 256-value dynamic maps of 8-bit optimizer state, and the code of a value.
//!
//! Seven decades from 1e-6 to 1; decade i has 2ⁱ (signed) or 2ⁱ⁺¹ (unsigned) values, the middles of a linear division of
//! [0.1, 1]·10ⁱ⁻⁶; then 0 and 1. A value gets the code nearest to it after it was put on a grid of 65536 points from -1 to
//! 1: no point of the grid is 0, so a second moment inside a block that is not all zeros never becomes 0, and the next
//! step never divides by ε alone. References: Dettmers et al., "8-bit optimizers via block-wise quantization" (2022); maps
//! and codes are those of bitsandbytes on a CPU.

use std::sync::LazyLock;

/// The map of first moments, -0.993 to 1.
pub(super) static SIGNED: LazyLock<DynamicMap> = LazyLock::new(|| DynamicMap::new(true));
/// The map of second moments, 0 to 1.
pub(super) static UNSIGNED: LazyLock<DynamicMap> = LazyLock::new(|| DynamicMap::new(false));

/// Last point of the grid.
const LAST: f32 = 65_535.0;

/// An ascending map with the code of every point of the grid.
pub(super) struct DynamicMap {
    /// Value of each code.
    pub values: [f32; 256],
    codes: Box<[u8; 65_536]>,
}

impl DynamicMap {
    fn new(signed: bool) -> DynamicMap {
        let values = values(signed);
        let borders: Vec<f32> = values.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0).collect();
        let mut codes = Box::new([0u8; 65_536]);
        for (point, code) in codes.iter_mut().enumerate() {
            let value = -1.0 + 2.0 * point as f32 / LAST;
            *code = borders.partition_point(|&border| border < value) as u8;
        }
        DynamicMap { values, codes }
    }

    /// The point of the grid for a value in [-1, 1], one rounding more or less; for NaN the first.
    #[inline(always)]
    pub(super) fn point(value: f32) -> u16 {
        ((value + 1.0) * 0.5 * LAST + 0.5) as i32 as u16
    }

    /// The code of a point.
    #[inline(always)]
    pub(super) fn code(&self, point: u16) -> u8 {
        self.codes[usize::from(point)]
    }
}

/// The ascending values of the map.
fn values(signed: bool) -> [f32; 256] {
    let mut values = [0.0f32; 256];
    // The last place stays for 0.
    values[254] = 1.0;
    let mut len = 0;
    for decade in 0..7 {
        let steps = if signed { 1usize << decade } else { 2 << decade };
        let factor = 10f64.powi(decade - 6) as f32;
        let border = |i: usize| linear_point(i, steps + 1);
        for i in 0..steps {
            let value = factor * ((border(i) + border(i + 1)) / 2.0);
            values[len] = value;
            len += 1;
            if signed {
                values[len] = -value;
                len += 1;
            }
        }
    }
    assert_eq!(len, 254);
    values.sort_by(f32::total_cmp);
    values
}

/// Point `i` of `count` from 0.1 to 1 as torch divides: from the nearer end, in one rounding.
fn linear_point(i: usize, count: usize) -> f32 {
    let (low, high) = (f64::from(0.1f32), 1.0f64);
    let step = f64::from((1.0f32 - 0.1f32) / (count - 1) as f32);
    // The f64 product of two f32 is exact, so each expression rounds like a fused multiply-add.
    if i < count / 2 {
        (low + step * i as f64) as f32
    } else {
        (high - step * (count - 1 - i) as f64) as f32
    }
}
