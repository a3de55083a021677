//! Trainable tensors: named f32 master values and their gradients, addressed by [`ParamId`].
//!
//! The model holds ids, the store holds values, [`Gradients`] holds gradients of the same shapes, and the optimizer
//! keeps its state in the same order. Gradients accumulate (`+=`) over the micro-steps of an optimizer step.

/// Index of a parameter in its [`ParamStore`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParamId(pub usize);

/// What a parameter is: decides its learning-rate group and its weight decay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParamKind {
    /// LoRA A, `[r, in]`.
    LoraA,
    /// LoRA B, `[out, r]`.
    LoraB,
    /// DoRA magnitude, `[1, out]`.
    Magnitude,
    /// A linear's own weight, `[out, in]`.
    Weight,
    /// A linear's own bias, `[1, out]`.
    Bias,
    /// A norm's weight, `[1, hidden]`.
    Norm,
    /// Token embeddings, `[vocab, hidden]`.
    Embedding,
    /// Output head, `[vocab, hidden]`.
    Head,
}

/// One trainable tensor.
#[derive(Debug, Clone)]
pub struct Param {
    /// Unique name: the model's own tensor name, for adapters with `.lora_A.weight`, `.lora_B.weight` or
    /// `.lora_magnitude_vector.weight` in place of `.weight`.
    pub name: String,
    /// What it is.
    pub kind: ParamKind,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// f32 master values, row-major.
    pub value: Vec<f32>,
}

/// All trainable tensors of a run, in a fixed order.
#[derive(Debug, Clone, Default)]
pub struct ParamStore {
    params: Vec<Param>,
}

impl ParamStore {
    /// Adds a parameter and returns its id.
    pub fn add(&mut self, param: Param) -> ParamId {
        assert_eq!(param.value.len(), param.rows * param.cols, "{}: wrong number of values", param.name);
        self.params.push(param);
        ParamId(self.params.len() - 1)
    }

    /// Values of a parameter.
    pub fn value(&self, id: ParamId) -> &[f32] {
        &self.params[id.0].value
    }

    /// A parameter.
    pub fn get(&self, id: ParamId) -> &Param {
        &self.params[id.0]
    }

    /// All parameters, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Param> {
        self.params.iter()
    }

    /// All parameters, in order, to change.
    pub fn iter_mut(&mut self) -> impl ExactSizeIterator<Item = &mut Param> {
        self.params.iter_mut()
    }

    /// Number of parameters (tensors).
    pub fn len(&self) -> usize {
        self.params.len()
    }

    /// Whether nothing is trainable.
    pub fn is_empty(&self) -> bool {
        self.params.is_empty()
    }

    /// Number of values in all parameters.
    pub fn numel(&self) -> usize {
        self.params.iter().map(|p| p.value.len()).sum()
    }
}

/// Gradients of all parameters of a store, in its order.
#[derive(Debug, Clone, Default)]
pub struct Gradients {
    values: Vec<Vec<f32>>,
}

impl Gradients {
    /// Zeros for every parameter.
    pub fn zeros(store: &ParamStore) -> Gradients {
        Gradients { values: store.iter().map(|p| vec![0.0; p.value.len()]).collect() }
    }

    /// The gradient of a parameter.
    pub fn get(&self, id: ParamId) -> &[f32] {
        &self.values[id.0]
    }

    /// The gradient of a parameter, to add to.
    pub fn get_mut(&mut self, id: ParamId) -> &mut [f32] {
        &mut self.values[id.0]
    }

    /// Takes a gradient out, so that several can be added to at once; [`Gradients::put`] brings it back.
    pub fn take(&mut self, id: ParamId) -> Vec<f32> {
        std::mem::take(&mut self.values[id.0])
    }

    /// Brings back what [`Gradients::take`] took.
    pub fn put(&mut self, id: ParamId, values: Vec<f32>) {
        self.values[id.0] = values;
    }

    /// All gradients, in the store's order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.iter().map(Vec::as_slice)
    }

    /// All gradients, in the store's order, to change.
    pub fn iter_mut(&mut self) -> impl ExactSizeIterator<Item = &mut [f32]> {
        self.values.iter_mut().map(Vec::as_mut_slice)
    }

    /// Sets all gradients to zero.
    pub fn clear(&mut self) {
        self.values.iter_mut().for_each(|v| v.fill(0.0));
    }
}
