//! The whole model against transformers and PEFT: logits, losses, every gradient, ten training steps.

use crate::golden_data::{folder, Differences, Golden, Tensor};
use llamantino::adapter::peft;
use llamantino::data::batch::MicroBatch;
use llamantino::device::Compute;
use llamantino::model::{self, Batch, Checkpoint, Keep, Llama, LoadOptions, Method, ModelConfig, Pass, Rows};
use llamantino::ops::{Arena, Gradients, ParamStore};
use llamantino::optim::{OptimizerConfig, ScheduleConfig, ScheduleKind};
use llamantino::quant::QuantConfig;
use llamantino::train::step::{Engine, StepSettings};
use std::path::Path;

/// A batch of padded rows as transformers takes it.
struct Padded {
    ids: Vec<Vec<i64>>,
    labels: Vec<Vec<i64>>,
    mask: Vec<Vec<i64>>,
}

fn table(tensor: &Tensor) -> Vec<Vec<i64>> {
    tensor.i64().chunks(tensor.shape[1]).map(<[i64]>::to_vec).collect()
}

impl Padded {
    fn load(golden: &Golden, prefix: &str) -> Padded {
        let part = |name: &str| golden.tensors.get(&format!("{prefix}{name}")).map(table);
        let ids = part("input_ids").expect("input_ids");
        let labels = part("labels").unwrap_or_else(|| ids.clone());
        Padded { labels, mask: part("attention_mask").expect("attention_mask"), ids }
    }

    /// The real tokens alone: each row a document, the target of a token the label of the next.
    fn micro_batch(&self) -> MicroBatch {
        let mut batch = MicroBatch::default();
        for ((ids, labels), mask) in self.ids.iter().zip(&self.labels).zip(&self.mask) {
            let start = batch.ids.len();
            for t in (0..ids.len()).filter(|&t| mask[t] == 1) {
                batch.ids.push(ids[t] as u32);
                batch.positions.push((batch.ids.len() - 1 - start) as u32);
                let next = (t + 1 < ids.len() && mask[t + 1] == 1).then(|| labels[t + 1] as i32);
                batch.targets.push(next.unwrap_or(-100));
                batch.text_target.push(next.is_some());
            }
            batch.segments.push(start..batch.ids.len());
        }
        batch
    }

    /// Of `values [B,T,cols]` the rows of real tokens.
    fn real_rows(&self, values: &[f32]) -> Vec<f32> {
        let mask: Vec<i64> = self.mask.concat();
        let cols = values.len() / mask.len();
        let rows = values.chunks(cols).zip(mask).filter(|(_, mask)| *mask == 1);
        rows.flat_map(|(row, _)| row.to_vec()).collect()
    }
}

fn rows(batch: &MicroBatch) -> Rows<'_> {
    Rows { ids: &batch.ids, positions: &batch.positions, segments: &batch.segments }
}

fn load(folder: &Path, options: &LoadOptions) -> (Llama, ParamStore) {
    let config = ModelConfig::from_folder(folder).unwrap();
    let checkpoint = Checkpoint::open(folder).unwrap();
    model::load(&config, &checkpoint, options, &mut |_, _| {}).unwrap()
}

fn load_adapted(base: &Path, adapter: &Path, quantize: Option<QuantConfig>) -> (Llama, ParamStore) {
    let adapter = peft::read(adapter).unwrap();
    let mut options = LoadOptions::frozen(128);
    options.quantize = quantize;
    options.lora = Some(adapter.config.clone());
    let (mut model, mut params) = load(base, &options);
    adapter.apply(&mut model, &mut params).unwrap();
    (model, params)
}

struct Evaluated {
    logits: Vec<f32>,
    loss: f64,
    grads: Gradients,
}

fn evaluate(model: &Llama, params: &ParamStore, batch: &MicroBatch, keep: Keep, compute: Compute) -> Evaluated {
    let arena = Arena::new();
    let dora = model.dora_scales(params, &arena);
    let pass = Pass { params, dora: &dora, arena: &arena, compute, noise: None };
    let logits = model.logits(&pass, rows(batch)).to_vec();
    let mut grads = Gradients::zeros(params);
    let targets = batch.target_count();
    let scaled = Batch { rows: rows(batch), targets: &batch.targets, scale: 1.0 / targets as f32 };
    let loss = model.loss_and_gradients(&pass, scaled, &vec![keep; model.blocks.len()], &mut grads);
    assert_eq!(loss.targets, targets);
    Evaluated { logits, loss: loss.sum / targets as f64, grads }
}

fn relative(differences: &mut Differences, what: &str, expected: f64, found: f64, tolerance: f64) {
    let error = (expected - found).abs() / expected.abs().max(1e-12);
    differences.check(error <= tolerance, || format!("{what}: expected {expected}, found {found} ({error:e})"));
}

#[test]
fn llama() {
    let golden = Golden::load("llama/tiny_forward");
    let mut differences = Differences::default();
    let padded = Padded::load(&golden, "");
    let batch = padded.micro_batch();
    let mut options = LoadOptions::training(Method::Full, QuantConfig::default(), &Default::default(), 0);
    options.positions = 128;
    let (model, params) = load(&folder().join("llama/tiny"), &options);
    for keep in [Keep::Light, Keep::Input] {
        let found = evaluate(&model, &params, &batch, keep, Compute::F32);
        let what = |name: &str| format!("tiny {keep:?} {name}");
        differences.close(&what("logits"), &padded.real_rows(&golden.tensor("logits").f32()), &found.logits, 1e-5);
        relative(&mut differences, &what("loss"), f64::from(golden.tensor("loss").f32()[0]), found.loss, 1e-5);
        for (param, grad) in params.iter().zip(found.grads.iter()) {
            let expected = golden.tensor(&format!("grad.{}", param.name)).f32();
            differences.close(&what(&param.name), &expected, grad, 1e-5);
        }
    }
    hidden_states(&golden, &model, &params, &padded, &mut differences);
    left_padding_and_greedy(&golden, &model, &params, &mut differences);
    let (again, params) = load_with_config(&folder().join("llama/tiny"), "config.v4.json");
    let found = evaluate(&again, &params, &batch, Keep::Light, Compute::F32);
    let expected = padded.real_rows(&golden.tensor("logits").f32());
    differences.close("tiny with the older config spelling: logits", &expected, &found.logits, 1e-5);
    variants(&mut differences);
    differences.finish("llama");
}

fn hidden_states(golden: &Golden, model: &Llama, params: &ParamStore, padded: &Padded, differences: &mut Differences) {
    let (arena, batch) = (Arena::new(), padded.micro_batch());
    let dora = Default::default();
    let pass = Pass { params, dora: &dora, arena: &arena, compute: Compute::F32, noise: None };
    let hidden = model.forward(&pass, rows(&batch), &vec![Keep::Input; model.blocks.len()]);
    for (layer, saved) in hidden.saved.iter().enumerate() {
        let expected = padded.real_rows(&golden.tensor(&format!("hidden.{layer}")).f32());
        differences.close(&format!("hidden.{layer}"), &expected, saved.input(), 1e-5);
    }
    let mut losses = vec![0.0; batch.ids.len()];
    model.loss(&pass, rows(&batch), &batch.targets, Some(&mut losses));
    // token_loss is [B, T-1]: the loss of predicting token t+1 at row t.
    let stored = golden.tensor("token_loss");
    let (expected, width) = (stored.f32(), stored.shape[1]);
    let mut row = 0;
    for (b, mask) in padded.mask.iter().enumerate() {
        for t in 0..mask.iter().filter(|m| **m == 1).count() {
            if t < width && batch.targets[row] != -100 {
                let (e, f) = (f64::from(expected[b * width + t]), f64::from(losses[row]));
                relative(differences, &format!("token loss {b},{t}"), e, f, 1e-5);
            }
            row += 1;
        }
    }
}

fn left_padding_and_greedy(golden: &Golden, model: &Llama, params: &ParamStore, differences: &mut Differences) {
    let (arena, dora) = (Arena::new(), Default::default());
    let pass = Pass { params, dora: &dora, arena: &arena, compute: Compute::F32, noise: None };
    let padded = Padded::load(golden, "leftpad.");
    let batch = padded.micro_batch();
    let logits = model.logits(&pass, rows(&batch));
    let expected = padded.real_rows(&golden.tensor("leftpad.logits").f32());
    differences.close("leftpad.logits", &expected, &logits, 1e-5);

    let ids: Vec<u32> = golden.tensor("greedy.ids").i64().iter().map(|&id| id as u32).collect();
    let mut cache = model::KvCache::new(model, ids.len());
    for t in 0..ids.len() - 1 {
        let logits = model.next_logits(&pass, &ids[t..=t], &mut cache);
        let all = golden_logits_of_prefix(model, &pass, &ids[..=t]);
        differences.close(&format!("cached logits {t}"), &all, &logits, 1e-5);
    }
}

/// Logits of the last token of `ids` by the uncached forward pass.
fn golden_logits_of_prefix(model: &Llama, pass: &Pass<'_>, ids: &[u32]) -> Vec<f32> {
    let positions: Vec<u32> = (0..ids.len() as u32).collect();
    let all = 0..ids.len();
    let logits = model.logits(pass, Rows { ids, positions: &positions, segments: &[all] });
    logits.row(ids.len() - 1).to_vec()
}

fn load_with_config(model_folder: &Path, config: &str) -> (Llama, ParamStore) {
    let config = ModelConfig::from_file(&model_folder.join(config)).unwrap();
    let checkpoint = Checkpoint::open(model_folder).unwrap();
    let options = LoadOptions::frozen(128);
    model::load(&config, &checkpoint, &options, &mut |_, _| {}).unwrap()
}

fn variants(differences: &mut Differences) {
    for name in ["variant_headdim_bias_mqa", "variant_tied_theta500k_llama3rope", "variant_linear_rope"] {
        let golden = Golden::load(&format!("llama/{name}_forward"));
        let padded = Padded::load(&golden, "");
        let mut options = LoadOptions::training(Method::Full, QuantConfig::default(), &Default::default(), 0);
        options.positions = 128;
        let (model, params) = load(&folder().join("llama").join(name), &options);
        let found = evaluate(&model, &params, &padded.micro_batch(), Keep::Light, Compute::F32);
        let expected = padded.real_rows(&golden.tensor("logits").f32());
        differences.close(&format!("{name} logits"), &expected, &found.logits, 1e-5);
        relative(differences, &format!("{name} loss"), f64::from(golden.tensor("loss").f32()[0]), found.loss, 1e-5);
        let frequencies = golden.tensor("inv_freq").f32();
        differences.close(&format!("{name} inv_freq"), &frequencies, model.rope.inv_freq(), 1e-6);
        let embedding = params.iter().zip(found.grads.iter()).find(|(p, _)| p.name == "model.embed_tokens.weight");
        let (_, grad) = embedding.expect("embeddings are trained");
        differences.close(&format!("{name} grad.embed"), &golden.tensor("grad.embed").f32(), grad, 1e-5);
    }
}

#[test]
fn lora() {
    let mut differences = Differences::default();
    for kind in ["lora", "rslora", "dora"] {
        let golden = Golden::load(&format!("lora/{kind}_forward"));
        let padded = Padded::load(&golden, "");
        let (base, adapter) = (folder().join("llama/tiny"), folder().join("lora").join(kind));
        let (model, params) = load_adapted(&base, &adapter, None);
        for keep in [Keep::Light, Keep::Input] {
            let found = evaluate(&model, &params, &padded.micro_batch(), keep, Compute::F32);
            compare(&format!("{kind} {keep:?}"), (&golden, ""), &padded, (&params, &found), 1e-5, &mut differences);
        }
        ten_steps(kind, &golden, &padded, (model, params), &mut differences);
    }
    differences.finish("lora");
}

#[test]
fn qlora() {
    let mut differences = Differences::default();
    let golden = Golden::load("qlora/qlora_forward");
    let padded = Padded::load(&golden, "");
    let adapter = folder().join("lora/lora");
    let quantize = Some(QuantConfig::default());
    let sources = [
        ("quantised on load", folder().join("llama/tiny"), quantize),
        ("stored", folder().join("qlora/tiny_bnb4bit"), None),
    ];
    for (what, base, quantize) in sources {
        let (model, params) = load_adapted(&base, &adapter, quantize);
        for keep in [Keep::Light, Keep::Input] {
            let found = evaluate(&model, &params, &padded.micro_batch(), keep, Compute::F32);
            let what = format!("{what} {keep:?}");
            compare(&what, (&golden, "f32."), &padded, (&params, &found), 1e-5, &mut differences);
        }
        let found = evaluate(&model, &params, &padded.micro_batch(), Keep::Light, Compute::Bf16);
        let bounds = &golden.meta["bf16_autocast"]["vs_f64_max_rel_of_max"];
        let bound = |name: &str| 2.0 * bounds[name].as_f64().expect("a stored bound");
        let expected = padded.real_rows(&golden.tensor("logits_f64").f32());
        differences.close(&format!("{what} bf16 logits"), &expected, &found.logits, bound("logits"));
        // The loss is a mean over the targets: its error follows from the logits', and the stored one may be small by
        // chance.
        let loss = golden.tensor("loss_f64").f64()[0];
        let largest = expected.iter().fold(0.0f64, |m, v| m.max(f64::from(v.abs())));
        let targets = padded.micro_batch().target_count() as f64;
        let spread = bound("logits") * largest / targets.sqrt() / loss;
        relative(&mut differences, &format!("{what} bf16 loss"), loss, found.loss, bound("loss").max(spread));
        for (param, grad) in params.iter().zip(found.grads.iter()) {
            let expected = golden.tensor(&format!("f32.grad.{}", param.name)).f32();
            differences.close(&format!("{what} bf16 {}", param.name), &expected, grad, bound("worst_grad"));
        }
        ten_steps(what, &golden, &padded, (model, params), &mut differences);
    }
    let (model, params) = load(&folder().join("qlora/tiny_bnb4bit"), &LoadOptions::frozen(128));
    let found = evaluate(&model, &params, &padded.micro_batch(), Keep::Light, Compute::F32);
    let expected = padded.real_rows(&golden.tensor("base.logits").f32());
    differences.close("base logits", &expected, &found.logits, 1e-5);
    differences.finish("qlora");
}

fn compare(
    what: &str,
    (golden, prefix): (&Golden, &str),
    padded: &Padded,
    (params, found): (&ParamStore, &Evaluated),
    tolerance: f64,
    differences: &mut Differences,
) {
    let stored = |name: &str| golden.tensor(&format!("{prefix}{name}"));
    let expected = padded.real_rows(&stored("logits").f32());
    differences.close(&format!("{what} logits"), &expected, &found.logits, tolerance);
    relative(differences, &format!("{what} loss"), f64::from(stored("loss").f32()[0]), found.loss, tolerance);
    for (param, grad) in params.iter().zip(found.grads.iter()) {
        let expected = stored(&format!("grad.{}", param.name)).f32();
        differences.close(&format!("{what} grad {}", param.name), &expected, grad, tolerance);
    }
}

/// Ten AdamW steps on one batch: losses, learning rates, gradient norms, and the final adapter where it is stored.
fn ten_steps(
    what: &str,
    golden: &Golden,
    padded: &Padded,
    (model, params): (Llama, ParamStore),
    differences: &mut Differences,
) {
    let config = OptimizerConfig { learning_rate: 2e-3, weight_decay: 0.01, ..OptimizerConfig::default() };
    let schedule = ScheduleConfig { kind: ScheduleKind::Cosine, warmup_steps: Some(2), ..ScheduleConfig::default() };
    let settings = StepSettings {
        compute: Compute::F32,
        keep: vec![Keep::Light; model.blocks.len()],
        max_grad_norm: 0.3,
        neftune_alpha: 0.0,
        sequence_length: 24,
        seed: 0,
    };
    let (optimizer, grads) = (config.build(&params), Gradients::zeros(&params));
    let mut engine = Engine { model, params, grads, optimizer, arena: Arena::new(), settings, gpu: None };
    let stored = |name: &str| golden.tensor(&format!("train.{name}")).f64();
    let (losses, norms, rates) = (stored("losses"), stored("grad_norms"), stored("lrs"));
    for step in 0..losses.len() {
        let lr = config.learning_rates(schedule.multiplier(step as u64, losses.len() as u64));
        let report = engine.step(step as u64, &[padded.micro_batch()], &lr).unwrap();
        relative(differences, &format!("{what} step {step} loss"), losses[step], report.loss, 1e-5);
        // From the second step on the norm carries what Adam made of the rounding before it, as the final values do.
        let tolerance = if step == 0 { 1e-5 } else { 1e-4 };
        relative(differences, &format!("{what} step {step} norm"), norms[step], report.grad_norm, tolerance);
        differences.check((lr.base - rates[step]).abs() <= 1e-12, || {
            format!("{what} step {step} learning rate: expected {}, found {}", rates[step], lr.base)
        });
    }
    let sum_of_rates: f64 = rates.iter().sum();
    for param in engine.params.iter() {
        if let Some(expected) = golden.tensors.get(&format!("train.final.{}", param.name)) {
            final_values(what, &param.name, &expected.f32(), &param.value, sum_of_rates, differences);
        }
    }
}

/// Adam amplifies rounding where a gradient is near zero: bounds on the root mean square, the share and the worst.
fn final_values(what: &str, name: &str, expected: &[f32], found: &[f32], rates: f64, differences: &mut Differences) {
    let largest = expected.iter().fold(0.0f64, |m, v| m.max(f64::from(v.abs())));
    let errors: Vec<f64> = expected.iter().zip(found).map(|(e, f)| f64::from((e - f).abs())).collect();
    let rms = (errors.iter().map(|e| e * e).sum::<f64>() / errors.len() as f64).sqrt();
    let above = errors.iter().filter(|e| **e > 1e-5 * largest).count();
    let worst = errors.iter().fold(0.0f64, |m, e| m.max(*e));
    let fine = rms <= 1e-5 * largest && above as f64 <= (0.002 * errors.len() as f64).ceil() && worst <= 0.25 * rates;
    differences.check(fine, || {
        format!(
            "{what} final {name}: rms {:e} of the largest, {above} of {} above 1e-5, worst {worst:e}",
            rms / largest,
            errors.len()
        )
    });
}
