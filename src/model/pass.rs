//! What one pass through the model needs beside the model: parameter values, memory, number format, randomness, rows.

use crate::device::Compute;
use crate::ops::{Arena, ParamStore};
use std::ops::Range;

/// One forward (and backward) pass.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    /// Values of everything trained.
    pub params: &'a ParamStore,
    /// DoRA's column factors for these values.
    pub dora: &'a DoraScales,
    /// Memory of the activations.
    pub arena: &'a Arena,
    /// Operand format of the matrix products.
    pub compute: Compute,
    /// Names the random masks of this micro-step; None in evaluation: no dropout, no noise.
    pub noise: Option<Noise>,
}

/// Names the random masks of a micro-step.
#[derive(Debug, Clone, Copy)]
pub struct Noise {
    /// Seed of the run.
    pub seed: u64,
    /// Optimizer step.
    pub step: u64,
    /// Micro-step within it.
    pub micro_step: u64,
    /// Bound of NEFTune's uniform noise on the embeddings; 0 for none.
    pub embedding_bound: f32,
}

/// Column factors of one DoRA layer.
pub struct DoraColumns {
    /// `m[n] / norm[n]`.
    pub factor: Vec<f32>,
    /// `‖W + s·B·A‖` of each output row.
    pub norm: Vec<f32>,
}

/// Column factors of all layers, by the layer's index. They follow A, B and m, so they are made anew after each
/// optimizer step; without DoRA this is empty.
#[derive(Default)]
pub struct DoraScales {
    layers: Vec<Option<DoraColumns>>,
}

impl DoraScales {
    /// Wraps the columns of each layer.
    pub fn new(layers: Vec<Option<DoraColumns>>) -> DoraScales {
        DoraScales { layers }
    }

    /// The columns of a layer, if it has any.
    pub fn get(&self, index: usize) -> Option<&DoraColumns> {
        self.layers.get(index)?.as_ref()
    }
}

/// The tokens of a pass: any number of documents, one row a token, no padding.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// Token ids, `[T]`.
    pub ids: &'a [u32],
    /// Position of each token in its document, `[T]`.
    pub positions: &'a [u32],
    /// Row ranges of the documents, ascending and disjoint: a row attends to earlier rows of its own document.
    pub segments: &'a [Range<usize>],
}
