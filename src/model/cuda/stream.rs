//! The linears of the blocks on their way from files to a GPU, one after the other.
//!
//! ```text
//! a thread of its own: reads and checks the next linear ─→ this one: uploads, and on the GPU quantises or rounds to bf16
//! ```
//!
//! Invariant: at most two linears are in the machine's memory and one in the GPU's in its own dtype, whatever the size of the
//! model; what stays is what loading on the CPU and copying would give, bit for bit (`tests.rs`).

use super::layer::to_bf16;
use crate::error::{Error, Result};
use crate::model::layer::Weight;
use crate::model::source::TensorSource;
use crate::model::weights::check_finite;
use crate::model::ModelConfig;
use crate::ops::gpu::{Buffer, Gpu};
use crate::ops::linear::cuda::GpuWeight;
use crate::quant::cuda::{stored, GpuNf4, Quantizer};
use crate::quant::file::RawTensor;
use crate::quant::{Nf4Matrix, QuantConfig, Scales};
use std::sync::mpsc::{sync_channel, Receiver};
use std::sync::Arc;

/// A linear as it is stored.
enum Stored {
    Nf4(Nf4Matrix),
    Values(RawTensor),
}

/// Linears in the model's order, each in GPU memory when it is asked for.
pub(in crate::model) struct LinearStream<'a> {
    gpu: &'a Gpu,
    incoming: Receiver<Result<Stored>>,
    quantize: Option<QuantConfig>,
    quantizer: Quantizer,
    /// Values of the largest linear.
    largest: usize,
    /// Where values arrive, in their own dtype.
    staging: Option<Buffer<u8>>,
}

/// Calls `load` with the linears of a model, which it takes in order; their values are quantised if asked.
pub(in crate::model) fn with_linears<T>(
    gpu: &Gpu,
    (config, source): (&ModelConfig, &dyn TensorSource),
    quantize: Option<QuantConfig>,
    load: impl FnOnce(LinearStream<'_>) -> Result<T>,
) -> Result<T> {
    let shapes = || (0..config.layers).flat_map(|layer| config.linear_shapes(layer));
    let largest = shapes().map(|(_, [rows, cols])| rows * cols).max().unwrap_or(0);
    std::thread::scope(|scope| {
        // Without room in it: one linear is read while another is uploaded, and no more.
        let (outgoing, incoming) = sync_channel(0);
        scope.spawn(move || {
            for (name, [rows, cols]) in shapes() {
                if outgoing.send(read(source, &name, rows, cols)).is_err() {
                    return; // loading ended early
                }
            }
        });
        load(LinearStream { gpu, incoming, quantize, quantizer: Quantizer::new(gpu), largest, staging: None })
    })
}

/// Reads a linear whole: that the values are finite is found by looking at each of them.
fn read(source: &dyn TensorSource, name: &str, rows: usize, cols: usize) -> Result<Stored> {
    if let Some(matrix) = source.nf4(name, rows, cols)? {
        return Ok(Stored::Nf4(matrix));
    }
    let tensor = source.tensor(name, &[rows, cols])?;
    check_finite(name, &tensor).map_err(|error| error.at(source.place()))?;
    Ok(Stored::Values(tensor))
}

impl LinearStream<'_> {
    /// The next linear, which is that of this name.
    ///
    /// # Errors
    /// What reading it said; values of another kind than floating point; the GPU's memory.
    pub(in crate::model) fn next(&mut self, name: &str, [rows, cols]: [usize; 2]) -> Result<Weight> {
        let ended = |_| Error::failed("the thread that reads the model ended early").at(name);
        let weight = match self.incoming.recv().map_err(ended)?? {
            Stored::Nf4(matrix) => {
                let weight = GpuNf4::new(self.gpu, &matrix)?;
                matrix.codes.release();
                let (Scales::Plain(bytes) | Scales::Double { codes: bytes, .. }) = &matrix.scales;
                bytes.release();
                GpuWeight::Nf4(Box::new(weight))
            }
            Stored::Values(tensor) => {
                let weight = self.place(&tensor, [rows, cols]).map_err(|error| error.at(name))?;
                tensor.bytes.release();
                weight
            }
        };
        if (weight.rows(), weight.cols()) != (rows, cols) {
            let found = (weight.rows(), weight.cols());
            return Err(Error::failed(format!("{name}: expected {rows} x {cols}, found {found:?}")));
        }
        Ok(Weight::OnGpu(Arc::new(weight)))
    }

    fn place(&mut self, tensor: &RawTensor, shape: [usize; 2]) -> Result<GpuWeight> {
        let Some(values) = tensor.values() else {
            crate::bail!("expected F32, F16 or BF16, found bytes");
        };
        let needed = self.largest * tensor.dtype.size();
        let staging = match self.staging.take().filter(|staging| staging.len() >= needed) {
            Some(staging) => staging,
            None => self.gpu.buffer(1, needed)?,
        };
        let weight = match self.quantize {
            Some(config) => GpuWeight::Nf4(Box::new(self.quantizer.quantize(values, shape, config, &staging)?)),
            None => {
                let source = staging.part(0, tensor.bytes.len());
                source.write(&tensor.bytes)?;
                GpuWeight::Dense(to_bf16(&source, stored(values.dtype()), shape)?)
            }
        };
        self.staging = Some(staging);
        Ok(weight)
    }
}
