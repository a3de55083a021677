//! What the memory of a run depends on, taken from its configuration and the model's config.json alone.

use super::replay::{BatchSizes, LinearSizes, ModelSizes};
use crate::adapter::LoraConfig;
use crate::device::Compute;
use crate::model::{Method, ModelConfig};
use crate::ops::attention::AttentionShape;
use crate::optim::OptimizerKind;
use crate::quant::{QuantConfig, SourceDtype};
use crate::train::cache_weights::CacheWeights;
use crate::train::config::RunConfig;
use crate::train::recompute::Recompute;

/// What is trained beside, or instead of, the base.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapters {
    /// Ranks and places.
    pub lora: LoraConfig,
    /// Whether embedding and head are trained as a whole.
    pub embeddings: bool,
}

impl Adapters {
    /// Those of the configuration itself.
    pub fn fresh(config: &RunConfig) -> Adapters {
        Adapters { lora: config.lora.clone(), embeddings: config.train_embeddings }
    }
}

/// A run as far as memory and time go.
#[derive(Debug, Clone)]
pub struct Job {
    /// Shapes, and where adapters are.
    pub model: ModelSizes,
    /// Micro-batch.
    pub batch: BatchSizes,
    /// What is trained.
    pub method: Method,
    /// Which activations may be computed again.
    pub recompute: Recompute,
    /// Which blocks' weights a GPU may keep decoded.
    pub cache_weights: CacheWeights,
    /// Update rule.
    pub optimizer: OptimizerKind,
    /// Whether there are held-out sets.
    pub evaluates: bool,
    /// Form of the frozen linears; `None`: as they are stored.
    pub quantization: Option<QuantConfig>,
    /// Whether they are stored in that form.
    pub is_quantized: bool,
    /// Bytes of a stored value that is not quantised.
    pub stored_bytes: usize,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Whether embedding and head are trained.
    pub trains_embeddings: bool,
    /// Values of all norms and biases.
    pub vector_values: usize,
    /// Values of the rotation table.
    pub rope_values: usize,
    /// Whether a GPU computes it: the plan is of the GPU's memory then.
    pub on_gpu: bool,
}

impl Job {
    /// The job of `config`; `adapters` are its own, or what it continues from.
    pub fn new(config: &RunConfig, model: &ModelConfig, adapters: &Adapters, threads: usize) -> Job {
        let lora = (config.method != Method::Full).then_some(&adapters.lora);
        let blocks: Vec<_> = (0..model.layers).map(|layer| linears(model, layer, lora)).collect();
        let biases: usize = blocks.first().map_or(0, |linears: &[LinearSizes; 7]| {
            let (attention, mlp) = linears.split_at(4);
            let sum = |linears: &[LinearSizes]| linears.iter().map(|linear| linear.rows).sum::<usize>();
            usize::from(model.attention_bias) * sum(attention) + usize::from(model.mlp_bias) * sum(mlp)
        });
        let length = config.data.sequence_length;
        Job {
            model: ModelSizes {
                hidden: model.hidden_size,
                vocab: model.vocab_size,
                attention: AttentionShape { heads: model.heads, kv_heads: model.kv_heads, head_dim: model.head_dim },
                blocks,
            },
            batch: BatchSizes {
                windows: config.training.micro_batch,
                length,
                compute: config.training.compute,
                threads,
                ignored: config.data.ignores_tokens(),
            },
            method: config.method,
            recompute: config.training.recompute,
            cache_weights: config.training.cache_weights,
            optimizer: config.optimizer.kind,
            evaluates: config.data.holds_out() || !config.evaluation.is_empty(),
            quantization: (config.method == Method::Qlora || model.quantized).then_some(config.quantization),
            is_quantized: model.quantized,
            stored_bytes: match model.dtype {
                _ if config.from_scratch => 4,
                Some(SourceDtype::F16 | SourceDtype::Bf16) => 2,
                Some(SourceDtype::F32) | None => 4,
            },
            tied: model.tie_word_embeddings,
            trains_embeddings: adapters.embeddings || config.method == Method::Full,
            vector_values: model.hidden_size + model.layers * (2 * model.hidden_size + biases),
            rope_values: length * model.head_dim,
            on_gpu: false,
        }
    }

    /// Weights of all linears of the blocks.
    pub fn linear_values(&self) -> usize {
        self.linears().map(|linear| linear.rows * linear.cols).sum()
    }

    /// Weights of the embedding, and of the head where it is another.
    pub fn embedding_values(&self) -> usize {
        self.model.vocab * self.model.hidden * if self.tied { 1 } else { 2 }
    }

    /// All linears of the blocks.
    pub fn linears(&self) -> impl Iterator<Item = &LinearSizes> {
        self.model.blocks.iter().flatten()
    }

    /// Number of values of each trained tensor.
    pub fn trained_tensors(&self) -> Vec<usize> {
        let (hidden, vocab) = (self.model.hidden, self.model.vocab);
        let embeddings = if self.trains_embeddings { self.embedding_values() / (vocab * hidden) } else { 0 };
        let embeddings = std::iter::repeat_n(vocab * hidden, embeddings);
        if self.method == Method::Full {
            let weights = self.linears().map(|linear| linear.rows * linear.cols);
            let vectors = std::iter::repeat_n(hidden, self.vector_values / hidden);
            return weights.chain(vectors).chain(embeddings).collect();
        }
        let adapted = self.linears().filter_map(|linear| Some((linear, linear.rank?)));
        adapted
            .flat_map(|(linear, rank)| [rank * linear.cols, linear.rows * rank, usize::from(linear.dora) * linear.rows])
            .filter(|&values| values > 0)
            .chain(embeddings)
            .collect()
    }

    /// Whether the linears' own weights are trained.
    pub fn trained_weights(&self) -> bool {
        self.method == Method::Full
    }

    /// The same job with another micro-batch.
    pub fn with_batch(&self, windows: usize, length: usize) -> Job {
        let mut job = self.clone();
        (job.batch.windows, job.batch.length) = (windows, length);
        job.rope_values = self.rope_values / self.batch.length.max(1) * length;
        job
    }

    /// Whether operands are bf16.
    pub fn is_bf16(&self) -> bool {
        self.batch.compute == Compute::Bf16
    }
}

fn linears(model: &ModelConfig, layer: usize, lora: Option<&LoraConfig>) -> [LinearSizes; 7] {
    model.linear_shapes(layer).map(|(weight, [rows, cols])| {
        let name = weight.strip_suffix(".weight").unwrap_or(&weight);
        let lora = lora.filter(|lora| lora.applies_to(name));
        LinearSizes {
            rows,
            cols,
            rank: lora.map(|lora| lora.rank_of(name)),
            dropout: lora.is_some_and(|lora| lora.dropout > 0.0),
            dora: lora.is_some_and(|lora| lora.dora),
        }
    })
}
