//! AdamW with 8-bit state: moments live as codes of a dynamic map with one scale for 256 values.
//!
//! Each step widens a block to f32, does the arithmetic of [`super::adamw`], updates the parameter with the unrounded
//! moments and rounds them back: scale = max |x|, code of x/scale by [`super::dynamic_map`]. Tensors under 4096 values keep
//! f32 moments. A block of zeros has scale 0. Reference: `bitsandbytes.optim.AdamW8bit`.

use super::adamw::{Chunk, Factors, Moments};
use super::dynamic_map::{DynamicMap, SIGNED, UNSIGNED};
use super::{
    vectorized, AdamW, LearningRates, Optimizer, OptimizerConfig, OptimizerState, StateTensor, StateValues, CHUNK,
};
use crate::error::Result;
use crate::ops::{Gradients, ParamStore};
use rayon::prelude::*;

/// Values that share a scale.
const BLOCK: usize = 256;
/// Smallest tensor with 8-bit state.
const SMALLEST: usize = 4096;

/// One moment of a parameter: a code a value, a scale a block.
#[derive(Debug, Clone, PartialEq)]
struct Codes {
    codes: Vec<u8>,
    scales: Vec<f32>,
}

impl Codes {
    fn zeros(len: usize) -> Codes {
        Codes { codes: vec![0; len], scales: vec![0.0; len.div_ceil(BLOCK)] }
    }

    fn take(state: &mut OptimizerState, name: &str, number: u8, len: usize) -> Result<Codes> {
        let codes = state.take_u8(&format!("{name}.state{number}"), len)?;
        let scales = state.take_f32(&format!("{name}.absmax{number}"), len.div_ceil(BLOCK))?;
        Ok(Codes { codes, scales })
    }

    fn chunks(&mut self) -> impl Iterator<Item = CodesChunk<'_>> {
        let scales = self.scales.chunks_mut(CHUNK / BLOCK);
        self.codes.chunks_mut(CHUNK).zip(scales).map(|(codes, scales)| CodesChunk { codes, scales })
    }
}

/// The state of one parameter.
#[derive(Debug, Clone, PartialEq)]
enum Slot {
    Full(Moments),
    Small { first: Codes, second: Codes },
}

impl Slot {
    fn zeros(len: usize) -> Slot {
        if len < SMALLEST {
            return Slot::Full(Moments::zeros(len));
        }
        Slot::Small { first: Codes::zeros(len), second: Codes::zeros(len) }
    }

    fn take(state: &mut OptimizerState, name: &str, len: usize) -> Result<Slot> {
        if len < SMALLEST {
            return Moments::take(state, name, len).map(Slot::Full);
        }
        Ok(Slot::Small { first: Codes::take(state, name, 1, len)?, second: Codes::take(state, name, 2, len)? })
    }

    fn bytes(&self) -> usize {
        match self {
            Slot::Full(moments) => moments.bytes(),
            Slot::Small { first, second } => {
                [first, second].iter().map(|m| m.codes.len() + m.scales.len() * size_of::<f32>()).sum()
            }
        }
    }

    fn state<'a>(&'a self, name: &str, out: &mut Vec<StateTensor<'a>>) {
        match self {
            Slot::Full(moments) => moments.state(name, out),
            Slot::Small { first, second } => {
                for (number, moment) in [(1, first), (2, second)] {
                    let codes = StateValues::U8(moment.codes.as_slice());
                    out.push(StateTensor { name: format!("{name}.state{number}"), values: codes });
                    let scales = StateValues::F32(moment.scales.as_slice());
                    out.push(StateTensor { name: format!("{name}.absmax{number}"), values: scales });
                }
            }
        }
    }
}

struct CodesChunk<'a> {
    codes: &'a mut [u8],
    scales: &'a mut [f32],
}

/// A run of whole blocks of one parameter (the last may be short).
struct SmallChunk<'a> {
    values: &'a mut [f32],
    gradients: &'a [f32],
    first: CodesChunk<'a>,
    second: CodesChunk<'a>,
}

enum Work<'a> {
    Full(Chunk<'a>),
    Small(SmallChunk<'a>),
}

vectorized! {
    /// Updates a chunk of whole blocks.
    fn update(chunk: SmallChunk<'_>, factors: &Factors) = update_body;
}

#[inline(always)]
fn update_body(chunk: SmallChunk<'_>, factors: &Factors) {
    let (signed, unsigned) = (&*SIGNED, &*UNSIGNED);
    let data = chunk.values.chunks_mut(BLOCK).zip(chunk.gradients.chunks(BLOCK));
    let first = chunk.first.codes.chunks_mut(BLOCK).zip(chunk.first.scales);
    let second = chunk.second.codes.chunks_mut(BLOCK).zip(chunk.second.scales);
    let (mut first_values, mut second_values) = ([0.0f32; BLOCK], [0.0f32; BLOCK]);
    for ((values, gradients), ((codes1, scale1), (codes2, scale2))) in data.zip(first.zip(second)) {
        let len = values.len();
        let (m, v, gradients) = (&mut first_values[..len], &mut second_values[..len], &gradients[..len]);
        widen(signed, codes1, *scale1, m);
        widen(unsigned, codes2, *scale2, v);
        for i in 0..len {
            (values[i], m[i], v[i]) = factors.update(values[i], gradients[i], m[i], v[i]);
        }
        *scale1 = narrow(signed, m, codes1);
        *scale2 = narrow(unsigned, v, codes2);
    }
}

/// Values of a block.
#[inline(always)]
fn widen(map: &DynamicMap, codes: &[u8], scale: f32, values: &mut [f32]) {
    for (value, &code) in values.iter_mut().zip(codes) {
        *value = map.values[code as usize] * scale;
    }
}

/// Rounds a block to codes and returns its scale.
#[inline(always)]
fn narrow(map: &DynamicMap, values: &[f32], codes: &mut [u8]) -> f32 {
    // Magnitudes order like their bits, and a maximum of integers vectorises.
    let largest = values.iter().fold(0u32, |largest, value| largest.max(value.abs().to_bits()));
    let scale = f32::from_bits(largest);
    // Where the reciprocal overflows (zeros, or below 3e-39) there is nothing that could be told from zero.
    let inverse = if (1.0 / scale).is_finite() { 1.0 / scale } else { 0.0 };
    let mut points = [0u16; BLOCK];
    for (point, &value) in points.iter_mut().zip(values) {
        *point = DynamicMap::point(value * inverse);
    }
    for (code, &point) in codes.iter_mut().zip(&points) {
        *code = map.code(point);
    }
    scale
}

/// AdamW with 8-bit moments.
#[derive(Debug, Clone)]
pub struct AdamW8 {
    config: OptimizerConfig,
    steps: u64,
    names: Vec<String>,
    lens: Vec<usize>,
    slots: Vec<Slot>,
}

impl AdamW8 {
    /// Bytes of state for a parameter of so many values.
    pub fn state_bytes_of(values: usize) -> usize {
        match values < SMALLEST {
            true => AdamW::state_bytes_of(values),
            false => 2 * (values + values.div_ceil(BLOCK) * size_of::<f32>()),
        }
    }

    /// Zero state for every parameter of `store`.
    pub fn new(config: &OptimizerConfig, store: &ParamStore) -> AdamW8 {
        let lens: Vec<usize> = store.iter().map(|param| param.value.len()).collect();
        AdamW8 {
            config: config.clone(),
            steps: 0,
            names: store.iter().map(|param| param.name.clone()).collect(),
            slots: lens.iter().map(|&len| Slot::zeros(len)).collect(),
            lens,
        }
    }
}

impl Optimizer for AdamW8 {
    fn step(&mut self, store: &mut ParamStore, gradients: &Gradients, rates: &LearningRates, gradient_scale: f32) {
        assert_eq!(store.len(), self.slots.len(), "the optimizer was made for another store");
        self.steps += 1;
        let mut work = Vec::new();
        for ((param, gradient), slot) in store.iter_mut().zip(gradients.iter()).zip(&mut self.slots) {
            assert_eq!(param.value.len(), gradient.len(), "{}: gradient of another size", param.name);
            let factors = Factors::new(&self.config, self.steps, param.kind, rates, gradient_scale);
            match slot {
                Slot::Full(moments) => {
                    let chunks = moments.chunks(&mut param.value, gradient);
                    work.extend(chunks.map(|chunk| (Work::Full(chunk), factors)));
                }
                Slot::Small { first, second } => {
                    let data = param.value.chunks_mut(CHUNK).zip(gradient.chunks(CHUNK));
                    let chunks = data.zip(first.chunks().zip(second.chunks()));
                    work.extend(chunks.map(|((values, gradients), (first, second))| {
                        (Work::Small(SmallChunk { values, gradients, first, second }), factors)
                    }));
                }
            }
        }
        work.into_par_iter().for_each(|(work, factors)| match work {
            Work::Full(chunk) => chunk.run(&factors),
            Work::Small(chunk) => update(chunk, &factors),
        });
    }

    fn steps(&self) -> u64 {
        self.steps
    }

    fn state_bytes(&self) -> usize {
        self.slots.iter().map(Slot::bytes).sum()
    }

    fn state(&self) -> Vec<StateTensor<'_>> {
        let mut out = Vec::with_capacity(4 * self.names.len());
        self.names.iter().zip(&self.slots).for_each(|(name, slot)| slot.state(name, &mut out));
        out
    }

    fn restore(&mut self, mut state: OptimizerState) -> Result<()> {
        let params = self.names.iter().zip(&self.lens);
        let slots: Result<Vec<_>> = params.map(|(name, &len)| Slot::take(&mut state, name, len)).collect();
        let slots = slots?;
        state.finish()?;
        (self.slots, self.steps) = (slots, state.steps);
        Ok(())
    }
}
