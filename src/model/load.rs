//! From tensors on disk to a model in memory: names, shapes, quantisation on load, what is trained.
//!
//! One tensor at a time is in flight: a linear is read from the map, checked for non-finite values, quantised, and only
//! its codes stay in memory, or in a GPU's ([`super::cuda`]). Dense weights stay in the file mapping.
//! Reference for the names: transformers `modeling_llama.py`.

use super::block::Block;
use super::cuda::{self, LinearStream};
use super::hf_config::ModelConfig;
use super::layer::{DenseDtype, LinearLayer, Vector, Weight};
use super::llama::Llama;
use super::source::TensorSource;
use super::weights::check_finite;
use crate::adapter::{self, dora, LoraConfig};
use crate::error::{Error, Result};
use crate::ops::gpu::Gpu;
use crate::ops::rope::RopeTable;
use crate::ops::{Param, ParamKind, ParamStore, WeightRef};
use crate::quant::file::{RawTensor, StoredDtype};
use crate::quant::{quantize, QuantConfig, Values};

/// What a run trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Adapters on a base in NF4.
    #[default]
    Qlora,
    /// Adapters on a base in its own dtype.
    Lora,
    /// Every weight, embeddings and head included.
    Full,
}

/// How to bring a checkpoint into memory.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Quantise the blocks' linears to NF4 (a checkpoint that is NF4 already is taken as it is).
    pub quantize: Option<QuantConfig>,
    /// Train every weight.
    pub train_all: bool,
    /// Train the embeddings and the head beside the adapters (PEFT's `modules_to_save`).
    pub train_embeddings: bool,
    /// Attach fresh adapters.
    pub lora: Option<LoraConfig>,
    /// Names the random initial values.
    pub seed: u64,
    /// Positions that the rotation table covers at first.
    pub positions: usize,
    /// The GPU that is to compute: the blocks' linears go there as they are read, and are quantised there.
    pub gpu: Option<Gpu>,
}

impl LoadOptions {
    /// For inference: the weights as they are stored.
    pub fn frozen(positions: usize) -> LoadOptions {
        LoadOptions {
            quantize: None,
            train_all: false,
            train_embeddings: false,
            lora: None,
            seed: 0,
            positions,
            gpu: None,
        }
    }

    /// For training with `method`.
    pub fn training(method: Method, quantization: QuantConfig, lora: &LoraConfig, seed: u64) -> LoadOptions {
        LoadOptions {
            quantize: (method == Method::Qlora).then_some(quantization),
            train_all: method == Method::Full,
            train_embeddings: false,
            lora: (method != Method::Full).then(|| lora.clone()),
            seed,
            positions: 0,
            gpu: None,
        }
    }
}

/// Loads a model and the store of everything trained in it. `progress` is told each finished layer and their number.
///
/// Errors: tensors that are missing, damaged or of another shape; with a GPU, what it cannot train, and its memory.
pub fn load(
    config: &ModelConfig,
    source: &dyn TensorSource,
    options: &LoadOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(Llama, ParamStore)> {
    let Some(gpu) = &options.gpu else { return Loader::new(config, source, options).load(progress) };
    cuda::check_options(options)?;
    cuda::with_linears(gpu, (config, source), options.quantize, |linears| {
        Loader { linears: Some(linears), ..Loader::new(config, source, options) }.load(progress)
    })
}

struct Loader<'a> {
    config: &'a ModelConfig,
    source: &'a dyn TensorSource,
    options: &'a LoadOptions,
    params: ParamStore,
    row_norms: Vec<Option<Vec<f32>>>,
    /// Linears that come by way of a GPU.
    linears: Option<LinearStream<'a>>,
}

impl<'a> Loader<'a> {
    fn new(config: &'a ModelConfig, source: &'a dyn TensorSource, options: &'a LoadOptions) -> Loader<'a> {
        Loader { config, source, options, params: ParamStore::default(), row_norms: Vec::new(), linears: None }
    }

    fn load(mut self, progress: &mut dyn FnMut(usize, usize)) -> Result<(Llama, ParamStore)> {
        let (config, options) = (self.config, self.options);
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let embedding = self.dense("model.embed_tokens.weight", ParamKind::Embedding, vocab, hidden)?;
        let mut blocks = Vec::with_capacity(config.layers);
        for layer in 0..config.layers {
            blocks.push(self.block(layer)?);
            progress(layer + 1, config.layers);
        }
        let norm = self.vector("model.norm.weight", ParamKind::Norm, hidden)?;
        let head = match config.tie_word_embeddings {
            true => None,
            false => Some(self.dense("lm_head.weight", ParamKind::Head, vocab, hidden)?),
        };
        let rope = RopeTable::new(&config.rope, options.positions.max(1));
        let Loader { params, row_norms, .. } = self;
        let dora = options.lora.as_ref().is_some_and(|lora| lora.dora);
        let row_norms = if dora { row_norms } else { Vec::new() };
        Ok((
            Llama { config: config.clone(), embedding, blocks, norm, head, coarse_head: None, rope, row_norms },
            params,
        ))
    }

    fn block(&mut self, layer: usize) -> Result<Block> {
        let config = self.config;
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let queries = config.query_width();
        let keys = config.kv_width();
        let prefix = format!("model.layers.{layer}");
        let attention = |name: &str| format!("{prefix}.self_attn.{name}");
        let mlp = |name: &str| format!("{prefix}.mlp.{name}");
        let (bias, mlp_bias) = (config.attention_bias, config.mlp_bias);
        Ok(Block {
            input_norm: self.vector(&format!("{prefix}.input_layernorm.weight"), ParamKind::Norm, hidden)?,
            q: self.linear(attention("q_proj"), queries, hidden, bias)?,
            k: self.linear(attention("k_proj"), keys, hidden, bias)?,
            v: self.linear(attention("v_proj"), keys, hidden, bias)?,
            o: self.linear(attention("o_proj"), hidden, queries, bias)?,
            post_norm: self.vector(&format!("{prefix}.post_attention_layernorm.weight"), ParamKind::Norm, hidden)?,
            gate: self.linear(mlp("gate_proj"), inner, hidden, mlp_bias)?,
            up: self.linear(mlp("up_proj"), inner, hidden, mlp_bias)?,
            down: self.linear(mlp("down_proj"), hidden, inner, mlp_bias)?,
        })
    }

    fn linear(&mut self, name: String, rows: usize, cols: usize, bias: bool) -> Result<LinearLayer> {
        let weight_name = format!("{name}.weight");
        let weight = self.linear_weight(&weight_name, rows, cols)?;
        let bias = match bias {
            true => Some(self.vector(&format!("{name}.bias"), ParamKind::Bias, rows)?),
            false => None,
        };
        let index = self.row_norms.len();
        let wanted = self.options.lora.as_ref().filter(|lora| lora.applies_to(&name));
        let mut squared = None;
        let lora = wanted.map(|config| {
            if config.dora {
                squared = Some(dora::row_norms_squared(weight.view(&self.params)));
            }
            let magnitude = squared.as_ref().map(|squared: &Vec<f32>| squared.iter().map(|v| v.sqrt()).collect());
            let shape = adapter::LinearShape { rows, cols };
            adapter::create(&mut self.params, &name, shape, config, magnitude, self.options.seed)
        });
        self.row_norms.push(squared);
        Ok(LinearLayer { name, index, weight, bias, lora, row_tables: None })
    }

    fn linear_weight(&mut self, name: &str, rows: usize, cols: usize) -> Result<Weight> {
        if let Some(linears) = &mut self.linears {
            return linears.next(name, [rows, cols]);
        }
        if let Some(matrix) = self.source.nf4(name, rows, cols)? {
            if self.options.train_all {
                return Err(Error::usage(format!(
                    "{}: {name} is NF4: method = \"full\" cannot train it",
                    self.source.place()
                ))
                .hint("train from the unquantised model, or use method = \"qlora\""));
            }
            return Ok(Weight::Nf4(matrix));
        }
        let Some(config) = self.options.quantize else { return self.dense(name, ParamKind::Weight, rows, cols) };
        let tensor = self.finite_tensor(name, &[rows, cols])?;
        let Some(values) = tensor.values() else { return Err(self.wrong_dtype(name)) };
        let matrix = quantize(values, rows, cols, config).map_err(|error| error.at(name))?;
        tensor.bytes.release();
        Ok(Weight::Nf4(matrix))
    }

    fn dense(&mut self, name: &str, kind: ParamKind, rows: usize, cols: usize) -> Result<Weight> {
        let tensor = self.finite_tensor(name, &[rows, cols])?;
        let is_embedding = matches!(kind, ParamKind::Embedding | ParamKind::Head);
        if self.options.train_all || self.options.train_embeddings && is_embedding {
            let value = self.to_f32(name, &tensor)?;
            tensor.bytes.release();
            return Ok(Weight::Trained(self.params.add(Param { name: name.into(), kind, rows, cols, value })));
        }
        let dtype = match tensor.dtype {
            StoredDtype::F32 => DenseDtype::F32,
            StoredDtype::F16 => DenseDtype::F16,
            StoredDtype::Bf16 => DenseDtype::Bf16,
            StoredDtype::U8 => return Err(self.wrong_dtype(name)),
        };
        Ok(Weight::Dense { dtype, bytes: tensor.bytes, rows, cols })
    }

    fn vector(&mut self, name: &str, kind: ParamKind, len: usize) -> Result<Vector> {
        let tensor = self.finite_tensor(name, &[len])?;
        let value = self.to_f32(name, &tensor)?;
        if self.options.train_all {
            return Ok(Vector::Trained(self.params.add(Param { name: name.into(), kind, rows: 1, cols: len, value })));
        }
        Ok(Vector::Frozen(value))
    }

    fn finite_tensor(&self, name: &str, shape: &[usize]) -> Result<RawTensor> {
        let tensor = self.source.tensor(name, shape)?;
        check_finite(name, &tensor).map_err(|error| error.at(self.source.place()))?;
        Ok(tensor)
    }

    fn to_f32(&self, name: &str, tensor: &RawTensor) -> Result<Vec<f32>> {
        let len = tensor.elements();
        let view = match tensor.values() {
            Some(Values::F32(values)) => return Ok(values.to_vec()),
            Some(Values::F16(bits)) => WeightRef::F16 { bits, rows: 1, cols: len },
            Some(Values::Bf16(bits)) => WeightRef::Bf16 { bits, rows: 1, cols: len },
            None => return Err(self.wrong_dtype(name)),
        };
        Ok((0..len).map(|index| view.at(0, index)).collect())
    }

    fn wrong_dtype(&self, name: &str) -> Error {
        Error::failed(format!("{}: {name}: expected F32, F16 or BF16, found bytes", self.source.place()))
    }
}
