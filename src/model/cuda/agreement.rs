//! How far a step on a GPU may lie from the CPU's in f32: the bounds that the tests of the GPU's model and `bench gpu` share.
//!
//! A GPU rounds operands and activations to bf16, a relative error of 2⁻⁹ each time.

/// Largest relative distance of two losses.
pub const LOSS: f64 = 1e-3;

/// Largest [`distance`] of two gradients: twice what bf16 gradients of the golden vectors (`tests/golden`) lie from those
/// in f64.
pub const GRADIENT: f32 = 7e-2;

/// Largest distance of two gradients, relative to the largest value of the expected one; infinite where a value is not a
/// number or the lengths differ.
pub fn distance(expected: &[f32], found: &[f32]) -> f32 {
    if expected.len() != found.len() || expected.iter().chain(found).any(|value| !value.is_finite()) {
        return f32::INFINITY;
    }
    let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    let error = expected.iter().zip(found).map(|(e, f)| (e - f).abs()).fold(0f32, f32::max);
    error / largest.max(f32::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_compared_is_far_away() {
        assert_eq!(distance(&[1.0, -2.0], &[1.0, -1.0]), 0.5);
        assert_eq!(distance(&[0.0], &[0.0]), 0.0);
        for (expected, found) in
            [([1.0, 2.0], [1.0, f32::NAN]), ([f32::NAN, 0.0], [0.0; 2]), ([1.0; 2], [f32::INFINITY; 2])]
        {
            assert_eq!(distance(&expected, &found), f32::INFINITY);
        }
        assert_eq!(distance(&[1.0], &[1.0, 1.0]), f32::INFINITY);
        assert!(distance(&[0.0], &[1.0]) > GRADIENT, "a gradient that must be zero is not");
    }
}
