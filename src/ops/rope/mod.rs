//! Rotary position embedding.

/// How positions turn a head.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeConfig {
    /// Base of the geometric series of wavelengths.
    pub theta: f64,
    /// Width of a head, even.
    pub head_dim: usize,
    /// How the series is stretched for long contexts.
    pub scaling: RopeScaling,
}

/// Stretching of the wavelengths.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// None.
    Default,
    /// Every position divided by `factor`.
    Linear {
        /// At least 1.
        factor: f64,
    },
    /// LLaMA 3.1: long wavelengths stretched, short ones kept, a ramp between.
    Llama3 {
        /// Stretch of the long wavelengths.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are stretched.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context length before stretching.
        original_max_position_embeddings: usize,
    },
}
