//! Text from a model: prompt reading, sampling, streaming.
//!
//! Sampling is candle-transformers' `LogitsProcessor`. The text is streamed in pieces that never cut a UTF-8 character:
//! bytes of an unfinished character wait for the next token.

pub mod chat;
mod engine;
#[cfg(test)]
mod gpu_tests;
pub mod stream;
mod trim;

use crate::data::tokenize::Tokenizer;
use crate::device::Compute;
use crate::error::{Error, Result};
use crate::model::Llama;
use crate::ops::gpu::Gpu;
use crate::ops::ParamStore;
use candle_core::{Device, Tensor};
use candle_transformers::generation::{LogitsProcessor, Sampling};
pub use engine::with_room;
use engine::Engine;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use stream::TextStream;

/// Prompt tokens that go through the model at once: bounds the memory of a long prompt.
const PROMPT_CHUNK: usize = 512;

/// How the next token is chosen, and when to stop.
#[derive(Debug, Clone)]
pub struct SamplingOptions {
    /// 0 is greedy.
    pub temperature: f64,
    /// Nucleus: the smallest set of tokens with this probability.
    pub top_p: Option<f64>,
    /// Only the k most probable tokens.
    pub top_k: Option<usize>,
    /// Names the random draws.
    pub seed: u64,
    /// Factor above 1 makes tokens that occurred already less probable (Keskar et al. 2019).
    pub repeat_penalty: f32,
    /// Most tokens to generate.
    pub max_tokens: usize,
}

impl Default for SamplingOptions {
    fn default() -> SamplingOptions {
        SamplingOptions { temperature: 0.0, top_p: None, top_k: None, seed: 0, repeat_penalty: 1.0, max_tokens: 256 }
    }
}

impl SamplingOptions {
    fn processor(&self) -> LogitsProcessor {
        let temperature = self.temperature;
        let sampling = match (self.top_k, self.top_p) {
            _ if temperature <= 0.0 => Sampling::ArgMax,
            (None, None) => Sampling::All { temperature },
            (Some(k), None) => Sampling::TopK { k, temperature },
            (None, Some(p)) => Sampling::TopP { p, temperature },
            (Some(k), Some(p)) => Sampling::TopKThenTopP { k, p, temperature },
        };
        LogitsProcessor::from_sampling(self.seed, sampling)
    }

    /// Refuses values that make no sense.
    pub fn validate(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::usage(what));
        if !(0.0..=100.0).contains(&self.temperature) {
            return refuse(format!("temperature {}: expected 0 (greedy) to 100", self.temperature));
        }
        if self.top_p.is_some_and(|p| !(p > 0.0 && p <= 1.0)) {
            return refuse(format!("top-p {:?}: expected a probability above 0, at most 1", self.top_p.unwrap_or(0.0)));
        }
        if self.top_k == Some(0) {
            return refuse("top-k 0: expected at least 1".into());
        }
        if !(self.repeat_penalty > 0.0 && self.repeat_penalty.is_finite()) {
            return refuse(format!("repeat penalty {}: expected a number above 0 (1 is off)", self.repeat_penalty));
        }
        Ok(())
    }
}

/// Why generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// A stop token came.
    EndOfText,
    /// `max_tokens` were generated.
    Length,
    /// The model's context is full.
    ContextFull,
    /// The receiver of the text asked to stop, or the flag of [`Generator::stop_when`] was raised.
    Asked,
}

/// What was generated, and how fast.
#[derive(Debug, Clone)]
pub struct Generated {
    /// New tokens without the stop token.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub stop: Stop,
    /// Time to read the prompt.
    pub prompt_time: Duration,
    /// Time of all further tokens.
    pub decode_time: Duration,
}

/// A model ready to generate, with the cache of one sequence.
pub struct Generator {
    model: Llama,
    engine: Engine,
    cached: Vec<u32>,
    /// Logits after what is cached.
    logits: Vec<f32>,
    stop_tokens: Vec<u32>,
    stop_flag: Option<&'static AtomicBool>,
}

impl Generator {
    /// On the CPU. `context`: most tokens of a sequence (prompt and answer).
    pub fn new(mut model: Llama, params: ParamStore, compute: Compute, context: usize) -> Generator {
        model.rope.ensure(context);
        let engine = Engine::on_cpu(&mut model, params, compute, context);
        Generator::with(model, engine)
    }

    /// On a GPU, which computes in bf16 with sums in f32.
    ///
    /// # Errors
    /// A model that the GPU cannot run; the GPU's memory.
    pub fn on_gpu(gpu: &Gpu, mut model: Llama, params: &ParamStore, context: usize) -> Result<Generator> {
        model.rope.ensure(context);
        let engine = Engine::on_gpu(gpu, &mut model, params, context)?;
        Ok(Generator::with(model, engine))
    }

    fn with(model: Llama, engine: Engine) -> Generator {
        let stop_tokens = model.config.eos.clone();
        Generator { model, engine, cached: Vec::new(), logits: Vec::new(), stop_tokens, stop_flag: None }
    }

    /// Tokens that end an answer; at first the model's end-of-text tokens.
    pub fn set_stop_tokens(&mut self, ids: Vec<u32>) {
        self.stop_tokens = ids;
    }

    /// Stops generating, also while the prompt is read, once the flag is true; nobody here makes it false again.
    pub fn stop_when(&mut self, flag: &'static AtomicBool) {
        self.stop_flag = Some(flag);
    }

    fn asked_to_stop(&self) -> bool {
        self.stop_flag.is_some_and(|flag| flag.load(Ordering::Relaxed))
    }

    /// Most tokens of a sequence.
    pub fn context(&self) -> usize {
        self.engine.capacity()
    }

    /// The model; on a GPU without its blocks.
    pub fn model(&self) -> &Llama {
        &self.model
    }

    /// Continues `prompt` (token ids, not empty), handing each new token to `receive`, which returns false to stop.
    ///
    /// What the cache already holds of the prompt is not read again.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        options: &SamplingOptions,
        receive: &mut dyn FnMut(u32) -> Result<bool>,
    ) -> Result<Generated> {
        options.validate()?;
        if prompt.is_empty() {
            return Err(Error::usage("the prompt is empty and the tokenizer has no beginning-of-text token")
                .hint("give a prompt of at least one character"));
        }
        if prompt.len() >= self.context() {
            return Err(Error::failed(format!(
                "the prompt has {} tokens: the context holds {} with the answer",
                prompt.len(),
                self.context()
            ))
            .hint("shorten the prompt or raise --context"));
        }
        let start = Instant::now();
        let is_read = self.read(prompt)?;
        let prompt_time = start.elapsed();
        if !is_read {
            return Ok(Generated { ids: Vec::new(), stop: Stop::Asked, prompt_time, decode_time: Duration::ZERO });
        }
        let start = Instant::now();
        let mut processor = options.processor();
        let mut ids = Vec::new();
        let stop = loop {
            if ids.len() == options.max_tokens {
                break Stop::Length;
            }
            if self.asked_to_stop() {
                break Stop::Asked;
            }
            penalise(&mut self.logits, &self.cached, options.repeat_penalty);
            let next = match options.temperature <= 0.0 {
                true => largest(&self.logits),
                false => sample(&mut processor, &self.logits)?,
            };
            if self.stop_tokens.contains(&next) {
                break Stop::EndOfText;
            }
            ids.push(next);
            if !receive(next)? {
                break Stop::Asked;
            }
            if self.cached.len() + 1 >= self.context() {
                break Stop::ContextFull;
            }
            self.append(&[next])?;
        };
        Ok(Generated { ids, stop, prompt_time, decode_time: start.elapsed() })
    }

    /// Brings the cache and the logits to the end of `prompt`; false if asked to stop on the way.
    fn read(&mut self, prompt: &[u32]) -> Result<bool> {
        let shared = self.cached.iter().zip(prompt).take_while(|(a, b)| a == b).count().min(prompt.len() - 1);
        self.engine.truncate(shared);
        self.cached.truncate(shared);
        for chunk in prompt[shared..].chunks(PROMPT_CHUNK) {
            if self.asked_to_stop() {
                return Ok(false);
            }
            self.append(chunk)?;
        }
        Ok(true)
    }

    fn append(&mut self, ids: &[u32]) -> Result<()> {
        let Generator { model, engine, logits, .. } = self;
        engine.append(model, ids, logits)?;
        self.cached.extend_from_slice(ids);
        if let Some(index) = logits.iter().position(|v| !v.is_finite()) {
            return Err(Error::failed(format!(
                "the model's output is not finite (logit {index} is {})",
                logits[index]
            ))
            .hint("the weights are damaged or the adapter diverged: check them with another prompt"));
        }
        Ok(())
    }
}

/// Index of the largest logit, the first of equals; all are finite.
fn largest(logits: &[f32]) -> u32 {
    let later = |best: (usize, f32), (index, &logit): (usize, &f32)| if logit > best.1 { (index, logit) } else { best };
    logits.iter().enumerate().fold((0, f32::NEG_INFINITY), later).0 as u32
}

/// Divides positive and multiplies negative logits of tokens seen before.
fn penalise(logits: &mut [f32], seen: &[u32], penalty: f32) {
    if penalty == 1.0 {
        return;
    }
    let mut unique = seen.to_vec();
    unique.sort_unstable();
    unique.dedup();
    for id in unique {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
    }
}

fn sample(processor: &mut LogitsProcessor, logits: &[f32]) -> Result<u32> {
    let failed = |error: candle_core::Error| Error::failed(format!("sampling: {error}"));
    let logits = Tensor::from_slice(logits, logits.len(), &Device::Cpu).map_err(failed)?;
    processor.sample(&logits).map_err(failed)
}

/// Generates and hands the text on in whole characters.
pub fn generate_text(
    generator: &mut Generator,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    options: &SamplingOptions,
    write: &mut dyn FnMut(&str) -> Result<bool>,
) -> Result<Generated> {
    let mut stream = TextStream::new(tokenizer, prompt);
    let mut go_on = true;
    let generated = generator.generate(prompt, options, &mut |id| {
        let piece = stream.push(id)?;
        go_on = piece.is_empty() || write(&piece)?;
        Ok(go_on)
    })?;
    let rest = stream.finish()?;
    if go_on && !rest.is_empty() {
        write(&rest)?;
    }
    Ok(generated)
}
