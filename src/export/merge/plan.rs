//! What a merged model is made of: each tensor with its source, and how it is read.
//!
//! Invariant: an item that was planned is there in the base or the adapter, with the model's shape.

use super::tensor::{self, Merged};
use super::MergeDtype;
use crate::adapter::peft::{LinearAdapter, PeftAdapter, SavedWeight, EMBEDDING, HEAD};
use crate::error::{Error, Result};
use crate::export::quantize::natural_key;
use crate::export::safetensors::{PieceTensor, ShardWriter, TensorSpec};
use crate::model::weights::check_finite;
use crate::model::{ModelConfig, RawTensor, StoredDtype, StoredTensors};
use crate::ops::{MatRef, WeightRef};
use crate::quant::file::PART_SUFFIXES;
use std::collections::BTreeMap;
use std::path::Path;

/// Every tensor of the merged model.
pub struct Plan<'a> {
    /// The base.
    pub base: &'a dyn StoredTensors,
    /// The tensors, in natural order of their names.
    pub items: Vec<Item<'a>>,
    /// Whether the base's head was its embedding, and the merged model's is not.
    pub unties: bool,
}

/// One of them.
pub struct Item<'a> {
    /// Its name.
    pub name: String,
    /// Where it comes from.
    pub source: Source<'a>,
    /// Its dimensions, outermost first.
    pub shape: Vec<usize>,
    /// `None`: not floating-point, copied as it is.
    dtype: Option<MergeDtype>,
}

/// Where a merged tensor comes from.
pub enum Source<'a> {
    /// A tensor of the base, of this name.
    Stored(String),
    /// A linear's weight, with its adapter.
    Linear { shape: [usize; 2], adapter: Option<&'a LinearAdapter> },
    /// A weight trained as a whole.
    Saved(&'a SavedWeight),
}

impl Source<'_> {
    /// Whether an adapter changes or replaces it.
    pub fn is_merged(&self) -> bool {
        matches!(self, Source::Linear { adapter: Some(_), .. } | Source::Saved(_))
    }
}

impl<'a> Plan<'a> {
    /// Plans the tensors of `base` with `adapter`, or without one. `dtype` as in [`super::MergeJob`].
    ///
    /// # Errors
    /// Anything of the adapter that does not fit the base; a tensor that is missing or of another shape.
    pub fn new(
        config: &ModelConfig,
        base: &'a dyn StoredTensors,
        adapter: Option<&'a PeftAdapter>,
        dtype: Option<MergeDtype>,
    ) -> Result<Plan<'a>> {
        let mut linears = linears(config, adapter)?;
        let (rows, cols) = (config.vocab_size, config.hidden_size);
        let saved = |name: &str| match adapter {
            Some(adapter) => adapter.for_weight(name, rows, cols),
            None => Ok(None),
        };
        let (embedding, head) = (saved(EMBEDDING)?, saved(HEAD)?);
        // Under PEFT saved copies are not tied; two equal ones are as good as tied.
        let unties = config.tie_word_embeddings && embedding != head;
        let mut names = base.names();
        names.retain(|name| !is_part(name, base));
        if unties && !base.contains(HEAD) {
            names.push(HEAD);
        }
        let mut source = |name: &str| match (linears.remove(name), name, embedding, head) {
            (Some(linear), ..) => linear,
            (_, EMBEDDING, Some(weight), _) | (_, HEAD, _, Some(weight)) => Source::Saved(weight),
            (_, HEAD, ..) if unties => Source::Stored(EMBEDDING.into()),
            _ => Source::Stored(name.into()),
        };
        names.sort_by_cached_key(|name| natural_key(name));
        let items = names.into_iter().map(|name| Item::new(name, source(name), base, dtype));
        let items = items.collect::<Result<_>>()?;
        match linears.keys().next() {
            Some(name) => Err(Error::file(Path::new(&base.place()), format!("tensor {name} is missing"))),
            None => Ok(Plan { base, items, unties }),
        }
    }
}

/// The linears of the blocks, each with its adapter, by the name of its weight.
fn linears<'a>(config: &ModelConfig, adapter: Option<&'a PeftAdapter>) -> Result<BTreeMap<String, Source<'a>>> {
    let mut linears = BTreeMap::new();
    let mut names = Vec::new();
    for (weight, shape) in (0..config.layers).flat_map(|layer| config.linear_shapes(layer)) {
        let name = weight.strip_suffix(".weight").unwrap_or(&weight).to_string();
        let adapter = match adapter {
            Some(adapter) => adapter.for_linear(&name, shape[0], shape[1])?,
            None => None,
        };
        names.push(name);
        linears.insert(weight, Source::Linear { shape, adapter });
    }
    if let Some(adapter) = adapter {
        adapter.check_names(names.iter().map(String::as_str))?;
    }
    Ok(linears)
}

/// Whether a tensor belongs to a 4-bit weight of another name.
fn is_part(name: &str, base: &dyn StoredTensors) -> bool {
    PART_SUFFIXES.iter().any(|suffix| name.strip_suffix(suffix).is_some_and(|weight| base.is_nf4(weight)))
}

impl<'a> Item<'a> {
    fn new(name: &str, source: Source<'a>, base: &dyn StoredTensors, wanted: Option<MergeDtype>) -> Result<Item<'a>> {
        let stored = |name: &str| base.about(name).map(|(dtype, shape)| (dtype.float(), shape));
        let (dtype, shape) = match &source {
            Source::Linear { shape: [rows, cols], .. } if base.is_nf4(name) => {
                (base.nf4(name, *rows, *cols)?.map(|matrix| matrix.dtype), vec![*rows, *cols])
            }
            Source::Linear { shape, .. } => (Some(base.expect_float(name, shape)?), shape.to_vec()),
            // A head that the base does not store gets the dtype of the embedding that it was.
            Source::Saved(weight) => {
                let like = if base.contains(name) { name } else { EMBEDDING };
                (stored(like)?.0, vec![weight.rows, weight.cols])
            }
            Source::Stored(name) => stored(name)?,
        };
        Ok(Item { name: name.into(), source, shape, dtype: dtype.map(|dtype| wanted.unwrap_or(dtype)) })
    }

    /// What is written of it.
    pub fn spec(&self) -> TensorSpec {
        TensorSpec::new(&self.name, self.dtype.map_or(StoredDtype::U8, StoredDtype::from), self.shape.clone())
    }

    /// Its merged values.
    ///
    /// # Errors
    /// A value that is not finite, or that the dtype cannot hold.
    pub fn read(&self, base: &dyn StoredTensors) -> Result<RawTensor> {
        let place = || format!("{}: tensor {}", base.path_of(&self.name).display(), self.name);
        self.merged(base).map_err(|error| error.at(place()))
    }

    /// Writes its merged values, a few rows at a time where they have to be computed.
    ///
    /// # Errors
    /// As [`Item::read`]; what [`ShardWriter`] finds.
    pub fn write(&self, base: &dyn StoredTensors, writer: &mut ShardWriter) -> Result<()> {
        let place = || format!("{}: tensor {}", base.path_of(&self.name).display(), self.name);
        let mut written = Ok(());
        let read = self.with_merged(base, |found| {
            written = match found {
                Found::Tensor(tensor) => writer.write(&self.name, &tensor),
                Found::Merged(merged) => {
                    let row = merged.row_bytes().max(1);
                    let unit = merged.rows_of_task() * row;
                    let tensor = PieceTensor { dtype: merged.dtype.into(), shape: self.shape.clone(), unit };
                    writer.write_pieces(&self.name, tensor, &|range, piece| {
                        let filled = merged.rows(range.start / row..range.end / row, piece);
                        filled.map_err(|error| error.at(place()))
                    })
                }
            };
            Ok(())
        });
        read.map_err(|error| error.at(place())).and(written)
    }

    /// Lets go of the base's pages that were read for it, once it is written.
    pub fn release(&self, base: &dyn StoredTensors) {
        base.release(match &self.source {
            Source::Stored(name) => name,
            Source::Linear { .. } | Source::Saved(_) => &self.name,
        });
    }

    fn merged(&self, base: &dyn StoredTensors) -> Result<RawTensor> {
        self.with_merged(base, |found| match found {
            Found::Tensor(tensor) => Ok(tensor),
            Found::Merged(merged) => merged.whole(),
        })
    }

    /// Hands its values to `then`: as they are, or as what is to be computed.
    fn with_merged<T>(&self, base: &dyn StoredTensors, then: impl FnOnce(Found<'_>) -> Result<T>) -> Result<T> {
        let Some(dtype) = self.dtype else { return then(Found::Tensor(base.get(&self.name)?)) };
        match &self.source {
            Source::Stored(name) => {
                let tensor = base.get(name)?;
                check_finite(name, &tensor)?;
                then(Found::Tensor(tensor::convert(&tensor, dtype)?))
            }
            Source::Saved(weight) => {
                let weight = WeightRef::F32(MatRef::new(&weight.values, weight.rows, weight.cols));
                then(Found::Merged(Merged { weight, delta: None, dtype }))
            }
            Source::Linear { shape: [rows, cols], adapter } => {
                let delta = adapter.map(LinearAdapter::delta);
                if let Some(matrix) = base.nf4(&self.name, *rows, *cols)? {
                    return then(Found::Merged(Merged { weight: WeightRef::Nf4(&matrix), delta, dtype }));
                }
                let tensor = base.get(&self.name)?;
                match tensor.values() {
                    Some(values) => {
                        let weight = tensor::weight_ref(values, *rows, *cols);
                        then(Found::Merged(Merged { weight, delta, dtype }))
                    }
                    None => then(Found::Tensor(tensor)),
                }
            }
        }
    }
}

/// What an item's source holds.
enum Found<'a> {
    /// Values that are written as they are.
    Tensor(RawTensor),
    /// Values that are computed row by row.
    Merged(Merged<'a>),
}
