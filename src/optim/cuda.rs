//! AdamW on a GPU: masters and moments there, one launch a step for all parameters; see `adamw.cu`.
//!
//! Invariant: norm, masters and moments are those of [`super::clip`] and [`super::AdamW`] bit for bit, so that a run may go
//! from the one to the other between any two steps. What a checkpoint keeps is copied into the machine's store and
//! optimizer when one is written ([`GpuAdamW::save`]) and out of them when a run goes on ([`GpuAdamW::load`]).

use super::adamw::Factors;
use super::{clip, LearningRates, Optimizer, OptimizerConfig, OptimizerState, StateValues, CHUNK};
use crate::error::{Error, Result};
use crate::ops::gpu::{count, Buffer, Gpu, THREADS};
use crate::ops::{ParamKind, ParamStore};
use half::bf16;
use std::collections::HashMap;
use std::sync::Arc;

/// Values of a piece: what the CPU adds the squares of together.
pub const PIECE: usize = CHUNK;

/// Words that describe a piece to the kernels.
pub const PIECE_WORDS: usize = 6;

/// Factors of a kind of parameter.
pub const FACTORS: usize = 8;

/// A parameter's bf16 values, which the passes read, and its gradient, which they add to.
#[derive(Clone)]
pub struct Trained {
    /// As many as the parameter has.
    pub values: Arc<Buffer<bf16>>,
    /// As many.
    pub gradient: Arc<Buffer<f32>>,
}

/// A parameter on the GPU.
struct Slot {
    name: String,
    masters: Buffer<f32>,
    first: Buffer<f32>,
    second: Buffer<f32>,
    trained: Trained,
}

/// Masters and moments of all parameters in GPU memory.
pub struct GpuAdamW {
    config: OptimizerConfig,
    steps: u64,
    slots: Vec<Slot>,
    /// The kinds of parameters there are; each has factors of its own.
    kinds: Vec<ParamKind>,
    /// [`PIECE_WORDS`] for each piece.
    pieces: Buffer<u64>,
    /// `[kinds, FACTORS]`.
    factors: Buffer<f32>,
    /// Squares of each piece.
    sums: Buffer<f64>,
}

impl GpuAdamW {
    /// For the parameters of `store`, whose buffers `trained` are in its order; their moments are zero.
    ///
    /// # Errors
    /// The GPU's memory.
    pub fn new(gpu: &Gpu, config: &OptimizerConfig, store: &ParamStore, trained: Vec<Trained>) -> Result<GpuAdamW> {
        assert_eq!(store.len(), trained.len(), "buffers of another store");
        let mut kinds: Vec<ParamKind> = Vec::new();
        let (mut slots, mut words) = (Vec::with_capacity(store.len()), Vec::new());
        for (param, trained) in store.iter().zip(trained) {
            let len = param.value.len();
            assert_eq!((trained.values.len(), trained.gradient.len()), (len, len), "{}", param.name);
            let group = kinds.iter().position(|kind| *kind == param.kind).unwrap_or(kinds.len());
            if group == kinds.len() {
                kinds.push(param.kind);
            }
            let masters = gpu.upload(&param.value, 1, len)?;
            let slot = Slot {
                name: param.name.clone(),
                masters,
                first: gpu.zeros(1, len)?,
                second: gpu.zeros(1, len)?,
                trained,
            };
            words.extend(slot.pieces(group));
            slots.push(slot);
        }
        let pieces = words.len() / PIECE_WORDS;
        Ok(GpuAdamW {
            config: config.clone(),
            steps: 0,
            slots,
            pieces: gpu.upload(&words, pieces, PIECE_WORDS)?,
            factors: gpu.buffer(kinds.len(), FACTORS)?,
            sums: gpu.buffer(1, pieces)?,
            kinds,
        })
    }

    fn gpu(&self) -> &Gpu {
        self.pieces.gpu()
    }

    /// Sets all gradients to zero.
    ///
    /// # Errors
    /// What the driver says.
    pub fn clear_gradients(&self) -> Result<()> {
        self.gpu().rows("clear_gradients", self.pieces.rows(), THREADS, &[self.pieces.pointer()])
    }

    /// Waits for the gradients and returns their norm, all together; not finite when any of them is not.
    ///
    /// # Errors
    /// What the driver says.
    pub fn norm(&self) -> Result<f64> {
        let pieces = self.pieces.rows();
        let arguments = [self.pieces.pointer(), count(pieces)?.into(), self.sums.pointer()];
        self.gpu().rows("gradient_squares", pieces.div_ceil(THREADS as usize / 32), THREADS, &arguments)?;
        Ok(clip::norm_of(&self.sums.read()?))
    }

    /// One step, as [`Optimizer::step`]; the bf16 values are the new ones.
    ///
    /// # Errors
    /// What the driver says.
    pub fn step(&mut self, rates: &LearningRates, gradient_scale: f32) -> Result<()> {
        self.steps += 1;
        let of_kind = |kind: &ParamKind| Factors::new(&self.config, self.steps, *kind, rates, gradient_scale).list();
        let factors: Vec<f32> = self.kinds.iter().flat_map(of_kind).collect();
        self.factors.write(&factors)?;
        let arguments = [self.pieces.pointer(), self.factors.pointer()];
        self.gpu().rows("adamw_update", self.pieces.rows(), THREADS, &arguments)
    }

    /// Waits, and copies masters into `store` and moments into `optimizer`.
    ///
    /// # Errors
    /// What the driver says; an optimizer of another kind.
    pub fn save(&self, store: &mut ParamStore, optimizer: &mut dyn Optimizer) -> Result<()> {
        let mut tensors = HashMap::with_capacity(2 * self.slots.len());
        for (slot, param) in self.slots.iter().zip(store.iter_mut()) {
            param.value = slot.masters.read()?;
            for (what, moment) in slot.moments() {
                tensors.insert(format!("{}.{what}", slot.name), StateValues::F32(moment.read()?));
            }
        }
        optimizer.restore(OptimizerState { steps: self.steps, tensors })
    }

    /// Takes over masters from `store` and moments from `optimizer`.
    ///
    /// # Errors
    /// What the driver says; an optimizer of another kind or for another store.
    pub fn load(&mut self, store: &ParamStore, optimizer: &dyn Optimizer) -> Result<()> {
        let state = optimizer.state();
        let tensors: HashMap<&str, &[f32]> = state
            .iter()
            .filter_map(|tensor| match tensor.values {
                StateValues::F32(values) => Some((tensor.name.as_str(), values)),
                StateValues::U8(_) => None,
            })
            .collect();
        for (slot, param) in self.slots.iter().zip(store.iter()) {
            slot.masters.write(&param.value)?;
            for (what, moment) in slot.moments() {
                let name = format!("{}.{what}", slot.name);
                match tensors.get(name.as_str()).filter(|values| values.len() == moment.len()) {
                    Some(values) => moment.write(values)?,
                    None => return Err(Error::failed(format!("optimizer state {name}: missing"))),
                }
            }
            let (values, count) = (&slot.trained.values, param.value.len());
            let arguments = [slot.masters.pointer(), values.pointer(), (count as i64).into()];
            self.gpu().each("floats_to_bf16", count, &arguments)?;
        }
        self.steps = optimizer.steps();
        Ok(())
    }
}

impl Slot {
    /// The moments by their names in a checkpoint.
    fn moments(&self) -> [(&'static str, &Buffer<f32>); 2] {
        [("exp_avg", &self.first), ("exp_avg_sq", &self.second)]
    }

    /// The words of its pieces. The buffers they point into live as long as the slot.
    fn pieces(&self, group: usize) -> impl Iterator<Item = u64> + '_ {
        let addresses = [
            self.masters.address(),
            self.trained.gradient.address(),
            self.first.address(),
            self.second.address(),
            self.trained.values.address(),
        ];
        let widths = [4, 4, 4, 4, 2];
        (0..self.masters.len()).step_by(PIECE).flat_map(move |start| {
            let length = PIECE.min(self.masters.len() - start) as u64;
            let at = |i: usize| addresses[i] + widths[i] * start as u64;
            [at(0), at(1), at(2), at(3), at(4), length | (group as u64) << 32]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{bits, emulated_gpu, halves, normal};
    use crate::ops::{Gradients, Param};

    /// Tensors around the borders of pieces, of both kinds that a GPU trains.
    fn store() -> ParamStore {
        let mut store = ParamStore::default();
        for (i, len) in [1, 31, 32, 33, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 100].into_iter().enumerate() {
            let kind = [ParamKind::LoraA, ParamKind::LoraB][i % 2];
            let name = format!("p{i}");
            store.add(Param { kind, rows: 1, cols: len, value: normal(&name, len), name });
        }
        store
    }

    fn gradients(store: &ParamStore, step: u64) -> Gradients {
        let mut gradients = Gradients::zeros(store);
        for (param, gradient) in store.iter().zip(gradients.iter_mut()) {
            gradient.copy_from_slice(&normal(&format!("{} {step}", param.name), gradient.len()));
            gradient[0] = [0.0, 1e-30, -1e4][step as usize % 3];
        }
        gradients
    }

    fn trained(gpu: &Gpu, store: &ParamStore) -> Vec<Trained> {
        let one = |param: &Param| {
            let values = gpu.upload(&halves(&param.value), 1, param.value.len()).unwrap();
            Trained { values: Arc::new(values), gradient: Arc::new(gpu.zeros(1, param.value.len()).unwrap()) }
        };
        store.iter().map(one).collect()
    }

    fn config() -> OptimizerConfig {
        OptimizerConfig { weight_decay: 0.1, lora_plus_ratio: 16.0, ..OptimizerConfig::default() }
    }

    fn assert_same(store: &ParamStore, optimizer: &dyn Optimizer, gpu: (&ParamStore, &dyn Optimizer), what: &str) {
        for (expected, found) in store.iter().zip(gpu.0.iter()) {
            assert_eq!(bits(&found.value), bits(&expected.value), "{what}: {}", expected.name);
        }
        assert!(gpu.1.state() == optimizer.state() && gpu.1.steps() == optimizer.steps(), "{what}");
    }

    #[test]
    fn equals_the_cpu_bit_for_bit_whichever_goes_on() {
        let Some(gpu) = emulated_gpu() else { return };
        let (mut expected, config) = (store(), config());
        let mut optimizer = config.build(&expected);
        let (mut copy, mut copied) = (store(), config.build(&expected));
        let buffers = trained(&gpu, &expected);
        let mut there = GpuAdamW::new(&gpu, &config, &expected, buffers.clone()).unwrap();
        for step in 0..7 {
            let gradients = gradients(&expected, step);
            there.clear_gradients().unwrap();
            for (buffer, gradient) in buffers.iter().zip(gradients.iter()) {
                assert!(buffer.gradient.read().unwrap().iter().all(|value| *value == 0.0));
                buffer.gradient.write(gradient).unwrap();
            }
            let norm = clip::global_norm(&gradients);
            assert_eq!(there.norm().unwrap().to_bits(), norm.to_bits(), "norm of step {step}");
            let (rates, scale) = (config.learning_rates(0.9), clip::scale(norm, 0.3));
            optimizer.step(&mut expected, &gradients, &rates, scale);
            // One step in between is the CPU's.
            if step == 3 {
                there.save(&mut copy, copied.as_mut()).unwrap();
                copied.step(&mut copy, &gradients, &rates, scale);
                there = GpuAdamW::new(&gpu, &config, &copy, buffers.clone()).unwrap();
                there.load(&copy, copied.as_ref()).unwrap();
            } else {
                there.step(&rates, scale).unwrap();
            }
            for (buffer, param) in buffers.iter().zip(expected.iter()) {
                assert_eq!(buffer.values.read().unwrap(), halves(&param.value), "step {step}: {}", param.name);
            }
            there.save(&mut copy, copied.as_mut()).unwrap();
            assert_same(&expected, optimizer.as_ref(), (&copy, copied.as_ref()), &format!("step {step}"));
        }
    }

    #[test]
    fn a_gradient_that_is_not_finite_is_seen() {
        let Some(gpu) = emulated_gpu() else { return };
        let store = store();
        let buffers = trained(&gpu, &store);
        let there = GpuAdamW::new(&gpu, &config(), &store, buffers.clone()).unwrap();
        for (tensor, index) in [(0, 0), (3, 32), (7, 2 * PIECE + 99)] {
            for bad in [f32::NAN, f32::INFINITY] {
                there.clear_gradients().unwrap();
                assert_eq!(there.norm().unwrap(), 0.0);
                buffers[tensor].gradient.part(index, 1).write(&[bad]).unwrap();
                assert!(!there.norm().unwrap().is_finite());
            }
        }
    }

    #[test]
    fn the_state_of_another_optimizer_is_refused() {
        let Some(gpu) = emulated_gpu() else { return };
        let mut store = store();
        let mut there = GpuAdamW::new(&gpu, &config(), &store, trained(&gpu, &store)).unwrap();
        let config = OptimizerConfig { kind: super::super::OptimizerKind::AdamW8, ..config() };
        let mut other = config.build(&store);
        assert!(there.load(&store, other.as_ref()).unwrap_err().message().contains("exp_avg"));
        assert!(there.save(&mut store, other.as_mut()).is_err());
    }
}
