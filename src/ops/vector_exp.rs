//! `exp` for vectorised loops: branch-free scalar code that the compiler vectorises inside a
//! [`kernel!`](super::vector::kernel) body, with the same bits on every CPU path.
//!
//! `e^x = 2^n · e^r`, `n = round(x / ln 2)`, `r = x − n·ln 2` in two parts (the first has 9 bits, so `n` times it is
//! exact), `e^r ≈ 1 + r + r²·P(r)` with P of degree 4: the minimax fit of the relative error on `|r| ≤ ln 2 / 2`
//! (Remez exchange; its own error is 0.06 units in the last place).
//!
//! Error: at most 1 unit in the last place where the result is a normal number. Results below 2⁻¹²⁶ are 0, above the
//! largest f32 they are infinite, NaN stays NaN.

/// The largest argument with a finite result.
const LARGEST: f32 = 88.722_83;
/// ln 2⁻¹²⁶: below it results are subnormal and become 0.
const SMALLEST: f32 = -87.336_54;
/// 1.5 · 2²³: adding it rounds to an integer, which is left in the low bits.
const ROUND: f32 = 12_582_912.0;
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;
const P: [f32; 5] = [0.499_999_94, 0.166_665_21, 0.041_668_39, 0.008_368_745, 0.001_381_454];

/// e^x.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let p = (((P[4] * r + P[3]) * r + P[2]) * r + P[1]) * r + P[0];
    let mantissa = 1.0 + (r + r * r * p);
    // Adding n to the exponent bits multiplies by 2^n without the overflow of 2^128 and the underflow of 2^-127.
    let value = f32::from_bits(mantissa.to_bits().wrapping_add(shifted.to_bits() << 23));
    let value = if x < SMALLEST { 0.0 } else { value };
    let value = if x > LARGEST { f32::INFINITY } else { value };
    if x.is_nan() {
        x
    } else {
        value
    }
}

/// The logistic function `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::CpuPath;
    use crate::ops::vector::kernel;

    kernel! {
        fn exp_all(x: &[f32], out: &mut [f32]) {
            for (out, &x) in out.iter_mut().zip(x) {
                *out = exp(x);
            }
        }
    }

    /// Distance to the true value in units of the last place of the result.
    fn error_in_ulp(x: f32, value: f32) -> f64 {
        let truth = f64::from(x).exp();
        let exponent = (truth.log2().floor() as i32).clamp(-126, 127);
        (f64::from(value) - truth).abs() / 2f64.powi(exponent - 23)
    }

    #[test]
    fn error_is_at_most_one_ulp_over_the_whole_normal_range() {
        // Every 97th float in [2^-30, 88.72283] and its negative: about 6 million arguments.
        let grid = (0x3080_0000..=LARGEST.to_bits()).step_by(97).map(f32::from_bits);
        let mut worst = (0.0, 0.0);
        for x in grid.flat_map(|x| [x, -x]).filter(|&x| x >= SMALLEST) {
            let error = error_in_ulp(x, exp(x));
            if error > worst.0 {
                worst = (error, x);
            }
        }
        assert!(worst.0 <= 1.0, "{} ulp at {}", worst.0, worst.1);
    }

    #[test]
    fn borders_are_exact() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::MAX), f32::INFINITY);
        assert_eq!(exp(f32::MIN), 0.0);
        assert_eq!(exp(f32::MIN_POSITIVE), 1.0);
        assert!(exp(f32::NAN).is_nan() && exp(-f32::NAN).is_nan());
        // The neighbours of both thresholds: finite below, infinite above; normal above, zero below.
        assert!(exp(LARGEST).is_finite() && f64::from(LARGEST).exp() <= f64::from(f32::MAX));
        assert_eq!(exp(LARGEST.next_up()), f32::INFINITY);
        assert!(f64::from(LARGEST.next_up()).exp() > f64::from(f32::MAX));
        assert!(exp(SMALLEST) >= f32::MIN_POSITIVE);
        assert_eq!(exp(SMALLEST.next_down()), 0.0);
        for bits in (0..1000).map(|i| SMALLEST.to_bits() - i) {
            assert!(exp(f32::from_bits(bits)) >= f32::MIN_POSITIVE);
        }
        for bits in (0..1000).map(|i| LARGEST.to_bits() - i) {
            assert!(exp(f32::from_bits(bits)).is_finite());
        }
    }

    #[test]
    fn every_path_gives_the_same_bits() {
        let mut x: Vec<f32> = (0..40_003).map(|i| (i as f32 - 20_000.0) * 0.0052).collect();
        x.extend([f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, 1e-40, LARGEST, SMALLEST]);
        let expected: Vec<u32> = x.iter().map(|&x| exp(x).to_bits()).collect();
        for path in CpuPath::available() {
            let mut out = vec![0.0; x.len()];
            exp_all(path, &x, &mut out);
            assert_eq!(out.iter().map(|v| v.to_bits()).collect::<Vec<_>>(), expected, "{}", path.name());
        }
    }

    #[test]
    fn sigmoid_keeps_its_limits() {
        assert_eq!(sigmoid(0.0), 0.5);
        assert_eq!(sigmoid(f32::INFINITY), 1.0);
        assert_eq!(sigmoid(-1e4), 0.0);
        assert!((f64::from(sigmoid(-3.0)) - 1.0 / (1.0 + 3f64.exp())).abs() < 1e-8);
    }
}
