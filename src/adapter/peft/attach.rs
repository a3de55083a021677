//! Between an adapter's files and a model in memory: values into the parameter store, and back out to files.

use super::write::{self, Content, LinearContent};
use super::{read, PeftAdapter, Provenance, SavedWeight, EMBEDDING, HEAD};
use crate::adapter::LoraParams;
use crate::error::{Error, Result};
use crate::model::layer::{LinearLayer, Weight};
use crate::model::Llama;
use crate::ops::{Param, ParamId, ParamKind, ParamStore};
use std::collections::BTreeMap;
use std::path::Path;

impl PeftAdapter {
    /// Puts the adapter's values into a model loaded with this adapter's `config`. Embedding and head that were trained
    /// as a whole replace the model's and become trainable.
    ///
    /// # Errors
    /// The first thing of either side that does not fit the other.
    pub fn apply(mut self, model: &mut Llama, params: &mut ParamStore) -> Result<()> {
        let (rows, cols) = (model.config.vocab_size, model.config.hidden_size);
        self.for_weight(EMBEDDING, rows, cols)?;
        self.for_weight(HEAD, rows, cols)?;
        self.check_names(model.linears().map(|layer| layer.name.as_str()))?;
        let mut values: BTreeMap<ParamId, &[f32]> = BTreeMap::new();
        for layer in model.linears() {
            let [rows, cols] = layer.weight.shape(params);
            let Some(adapter) = self.for_linear(&layer.name, rows, cols)? else { continue };
            let fits = |lora: &&LoraParams| params.get(lora.a).rows == adapter.rank && lora.scale == adapter.scale;
            let Some(lora) = layer.lora.as_ref().filter(fits) else {
                return Err(Error::failed(format!("{}: the model was not loaded for this adapter", layer.name)));
            };
            values.extend([(lora.a, adapter.a.as_slice()), (lora.b, adapter.b.as_slice())]);
            values.extend(lora.magnitude.zip(adapter.magnitude.as_deref()));
        }
        for (index, param) in params.iter_mut().enumerate() {
            if let Some(values) = values.get(&ParamId(index)) {
                param.value.copy_from_slice(values);
            }
        }
        let (embedding, head) = (self.saved.remove(EMBEDDING), self.saved.remove(HEAD));
        replace_weights(model, params, embedding, head);
        Ok(())
    }
}

/// Under PEFT the saved copies are not tied, even if the base's are: an embedding saved alone leaves the head as it was.
/// Two equal copies (a tied model trained by this program) stay one.
fn replace_weights(
    model: &mut Llama,
    params: &mut ParamStore,
    embedding: Option<SavedWeight>,
    head: Option<SavedWeight>,
) {
    let mut add = |name: &str, kind: ParamKind, weight: SavedWeight| {
        let SavedWeight { rows, cols, values } = weight;
        Weight::Trained(params.add(Param { name: name.into(), kind, rows, cols, value: values }))
    };
    let stays_tied = model.head.is_none() && embedding.is_some() && embedding == head;
    if let Some(weight) = embedding {
        let old = std::mem::replace(&mut model.embedding, add(EMBEDDING, ParamKind::Embedding, weight));
        if model.head.is_none() && !stays_tied {
            model.head = Some(old);
        }
    }
    if let Some(weight) = head.filter(|_| !stays_tied) {
        model.head = Some(add(HEAD, ParamKind::Head, weight));
    }
}

/// Writes everything trained in `model` as a PEFT adapter into `folder`, reads it back and compares.
///
/// # Errors
/// The system's, and a trained weight that has no place in an adapter.
pub fn write(folder: &Path, model: &Llama, params: &ParamStore, provenance: &Provenance) -> Result<()> {
    let content = content(model, params)?;
    write::write(folder, &content, provenance)?;
    let stored = read(folder)?;
    let same = |layer: &LinearContent<'_>| {
        stored.linears.get(layer.name).is_some_and(|found| {
            found.a == layer.a && found.b == layer.b && found.magnitude.as_deref() == layer.magnitude
        })
    };
    if !content.linears.iter().all(same) {
        return Err(Error::file(folder, "what was written reads back as something else: the disk is not reliable"));
    }
    Ok(())
}

fn content<'a>(model: &'a Llama, params: &'a ParamStore) -> Result<Content<'a>> {
    let has_place = |kind| !matches!(kind, ParamKind::Weight | ParamKind::Bias | ParamKind::Norm);
    if let Some(param) = params.iter().find(|param| !has_place(param.kind)) {
        return Err(Error::usage(format!("{}: an adapter cannot hold this trained weight", param.name)));
    }
    let trained = |weight: Option<&Weight>| weight.and_then(Weight::id).map(|id| params.get(id));
    let embedding = trained(Some(&model.embedding));
    // PEFT does not tie saved copies: a tied model is the same under it only if both are there.
    let head = trained(Some(model.head.as_ref().unwrap_or(&model.embedding)));
    let saved = [(EMBEDDING, embedding), (HEAD, head)];
    let saved = saved
        .into_iter()
        .filter_map(|(name, param)| param.map(|param| (name, [param.rows, param.cols], param.value.as_slice())));
    let (with, without): (Vec<_>, Vec<_>) = model.linears().partition(|layer| layer.lora.is_some());
    Ok(Content {
        saved: saved.collect(),
        dropout: with.iter().filter_map(|layer| layer.lora.as_ref()).map(|lora| lora.dropout).next().unwrap_or(0.0),
        linears: with.into_iter().filter_map(|layer| linear_content(layer, params)).collect(),
        others: without.into_iter().map(|layer| layer.name.as_str()).collect(),
    })
}

fn linear_content<'a>(layer: &'a LinearLayer, params: &'a ParamStore) -> Option<LinearContent<'a>> {
    let lora = layer.lora.as_ref()?;
    let (a, b) = (params.get(lora.a), params.get(lora.b));
    Some(LinearContent {
        name: &layer.name,
        rank: a.rows,
        alpha: lora.alpha,
        rslora: lora.rslora,
        rows: b.rows,
        cols: a.cols,
        a: &a.value,
        b: &b.value,
        magnitude: lora.magnitude.map(|id| params.value(id)),
    })
}
