//! From gradients to new parameter values: learning-rate [`schedule`], norm [`clip`]ping and the optimizers.
//!
//! [`cuda`] is AdamW on a GPU, with the same bits. A new optimizer is one file with an [`Optimizer`] and one line in [`OptimizerKind::build`]. Everything element-wise
//! works on fixed chunks, so results are the same bits for every number of threads and every kernel path.

pub mod adamw;
pub mod adamw8;
pub mod clip;
mod config;
pub mod cuda;
mod dynamic_map;
pub mod schedule;
mod state;

pub use adamw::AdamW;
pub use adamw8::AdamW8;
pub use config::{LearningRates, OptimizerConfig, OptimizerKind};
pub use schedule::{ScheduleConfig, ScheduleKind};
pub use state::{OptimizerState, StateTensor, StateValues};

use crate::error::Result;
use crate::ops::{Gradients, ParamStore};

/// Turns gradients into new parameter values, one step at a time.
pub trait Optimizer: Send {
    /// One step: `learning_rates` are this step's (schedule applied); every gradient counts times `gradient_scale`
    /// (the clipping factor of [`clip::scale`], 1 without clipping).
    fn step(
        &mut self,
        store: &mut ParamStore,
        gradients: &Gradients,
        learning_rates: &LearningRates,
        gradient_scale: f32,
    );

    /// Number of steps done, which the bias correction depends on.
    fn steps(&self) -> u64;

    /// Bytes held in state.
    fn state_bytes(&self) -> usize;

    /// The state as named tensors, for a checkpoint. [`Optimizer::steps`] is saved beside it.
    fn state(&self) -> Vec<StateTensor<'_>>;

    /// Replaces the state by a saved one.
    ///
    /// # Errors
    /// The first tensor that is missing, unknown, or of another size or type; the optimizer is unchanged then.
    fn restore(&mut self, state: OptimizerState) -> Result<()>;
}

/// Values that a thread updates without giving work away; a multiple of every state block.
const CHUNK: usize = 16_384;

/// Compiles the body of an element-wise loop for the baseline, AVX2 and AVX-512 and calls the one of this machine.
///
/// No path may fuse a multiplication with an addition (Rust never does so by itself), so all give the same bits.
macro_rules! vectorized {
    ($(#[$doc:meta])* fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? = $body:path;) => {
        $(#[$doc])*
        fn $name($($argument: $type),*) $(-> $result)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
                fn avx512($($argument: $type),*) $(-> $result)? {
                    $body($($argument),*)
                }
                #[target_feature(enable = "avx2")]
                fn avx2($($argument: $type),*) $(-> $result)? {
                    $body($($argument),*)
                }
                match $crate::device::cpu_path() {
                    $crate::device::CpuPath::Avx512 | $crate::device::CpuPath::Avx512Bf16 | $crate::device::CpuPath::Amx => {
                        // SAFETY: this path is named only where the CPU has these features.
                        return unsafe { avx512($($argument),*) };
                    }
                    $crate::device::CpuPath::Avx2 => {
                        // SAFETY: as above.
                        return unsafe { avx2($($argument),*) };
                    }
                    _ => {}
                }
            }
            $body($($argument),*)
        }
    };
}
use vectorized;

#[cfg(test)]
mod tests;
