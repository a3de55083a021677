//! The replay against the arena of real steps, byte for byte; the choice of what is kept; remedies.

use super::*;
use crate::adapter::{LoraConfig, Target};
use crate::data::batch::MicroBatch;
use crate::device::Compute;
use crate::model::random::RandomWeights;
use crate::model::{load, LoadOptions};
use crate::ops::{Arena, Gradients};
use crate::optim::{LearningRates, OptimizerKind};
use crate::train::evaluate::evaluate;
use crate::train::step::{Engine, StepSettings};
use serde_json::json;

/// `(vocab, hidden, inner, layers, heads, kv_heads)`.
type Shape = (usize, usize, usize, usize, usize, usize);

fn model(shape: Shape) -> ModelConfig {
    let (vocab, hidden, inner, layers, heads, kv_heads) = shape;
    ModelConfig::from_json(json!({
        "model_type": "llama", "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "max_position_embeddings": 512, "tie_word_embeddings": true, "attention_bias": true,
    }))
    .unwrap()
}

fn config(method: Method) -> RunConfig {
    let mut config =
        RunConfig { model: "m".into(), method, from_scratch: method == Method::Full, ..RunConfig::default() };
    config.lora = LoraConfig { r: 4, ..LoraConfig::default() };
    (config.training.micro_batch, config.data.sequence_length) = (2, 96);
    config
}

/// Runs an evaluation and two steps of what `config` says on one thread; `(predicted, measured)`.
fn compare(config: &RunConfig, model_config: &ModelConfig, keep: &[Keep]) -> (ArenaBytes, ArenaBytes) {
    let mut job = Job::new(config, model_config, &Adapters::fresh(config), 1);
    job.batch.ignored = true;
    let predicted = replay::arena(&job.model, &job.batch, keep, true);
    let mut options = LoadOptions::training(config.method, config.quantization, &config.lora, 0);
    options.train_embeddings = config.train_embeddings;
    let (model, params) =
        load(model_config, &RandomWeights::new(0, 0.02), &options, &mut |_, _| {}).expect("random weights load");
    let settings = StepSettings {
        compute: config.training.compute,
        keep: keep.to_vec(),
        max_grad_norm: 1.0,
        neftune_alpha: 0.0,
        sequence_length: config.data.sequence_length,
        seed: 0,
    };
    let (optimizer, grads) = (config.optimizer.build(&params), Gradients::zeros(&params));
    assert_eq!(parts(&job, predicted).optimizer, optimizer.state_bytes() as u64);
    assert_eq!(parts(&job, predicted).trained, 4 * params.numel() as u64);
    let mut engine = Engine { model, params, grads, optimizer, arena: Arena::new(), settings, gpu: None };
    let rows: Vec<Vec<u32>> = (0..config.training.micro_batch as u32)
        .map(|row| (0..config.data.sequence_length as u32).map(|i| (i * 7 + row) % 50).collect())
        .collect();
    let batch = MicroBatch::from_rows(&rows);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.install(|| {
        evaluate(&mut engine, std::slice::from_ref(&batch), ("test", 0), &mut |_, _| true).unwrap();
        for step in 0..2 {
            engine.step(step, std::slice::from_ref(&batch), &LearningRates::uniform(1e-4)).unwrap();
        }
    });
    let arena = &engine.arena;
    assert_eq!(arena.live_bytes(), 0);
    (predicted, ArenaBytes { peak: arena.peak_bytes(), touched: arena.touched_bytes(), ..predicted })
}

fn assert_exact(what: &str, config: &RunConfig, model_config: &ModelConfig, keep: &[Keep]) {
    let (predicted, measured) = compare(config, model_config, keep);
    assert_eq!(predicted, measured, "{what}");
}

const SHAPES: [Shape; 3] = [(64, 32, 80, 3, 4, 2), (300, 64, 96, 2, 2, 2), (50, 48, 128, 3, 6, 1)];

#[test]
fn the_replay_is_the_arena_of_a_step_for_every_keep_policy_and_operand_format() {
    for shape in SHAPES {
        let (model, layers) = (model(shape), shape.3);
        for compute in [Compute::F32, Compute::Bf16] {
            let mut config = config(Method::Qlora);
            config.training.compute = compute;
            for light in 0..=layers {
                let keep: Vec<Keep> =
                    (0..layers).map(|i| if i + light < layers { Keep::Input } else { Keep::Light }).collect();
                assert_exact(&format!("{shape:?} {compute:?} {keep:?}"), &config, &model, &keep);
            }
        }
    }
}

#[test]
fn the_replay_is_the_arena_of_a_step_for_every_method() {
    let model = model(SHAPES[0]);
    for keep in [[Keep::Light; 3], [Keep::Input; 3]] {
        for method in [Method::Qlora, Method::Lora, Method::Full] {
            assert_exact(&format!("{method:?} {keep:?}"), &config(method), &model, &keep);
        }
        for (dora, dropout) in [(true, 0.0), (false, 0.1), (true, 0.1)] {
            for compute in [Compute::F32, Compute::Bf16] {
                let mut config = config(Method::Lora);
                (config.lora.dora, config.lora.dropout, config.training.compute) = (dora, dropout, compute);
                assert_exact(&format!("dora {dora} dropout {dropout} {compute:?} {keep:?}"), &config, &model, &keep);
            }
        }
        let mut embeddings = config(Method::Qlora);
        embeddings.train_embeddings = true;
        assert_exact(&format!("embeddings {keep:?}"), &embeddings, &model, &keep);
        let mut some = config(Method::Qlora);
        some.lora.targets = vec![Target::Q, Target::Down];
        some.optimizer.kind = OptimizerKind::AdamW8;
        assert_exact(&format!("two targets {keep:?}"), &some, &model, &keep);
    }
}

#[test]
fn the_replay_is_the_arena_of_a_step_for_every_batch() {
    let model = model(SHAPES[0]);
    for (windows, length) in [(1, 16), (1, 300), (3, 65), (16, 8), (5, 128)] {
        let mut config = config(Method::Qlora);
        (config.training.micro_batch, config.data.sequence_length) = (windows, length);
        let keep = [Keep::Light, Keep::Input, Keep::Light];
        assert_exact(&format!("{windows} x {length}"), &config, &model, &keep);
    }
}

#[test]
fn several_threads_never_take_more_than_is_predicted() {
    let (model, config) = (model(SHAPES[0]), config(Method::Qlora));
    let one = Job::new(&config, &model, &Adapters::fresh(&config), 1);
    for threads in [2, 8, 64] {
        let job = Job::new(&config, &model, &Adapters::fresh(&config), threads);
        let bytes = |job: &Job| replay::arena(&job.model, &job.batch, &[Keep::Light; 3], false);
        assert!(bytes(&job).peak >= bytes(&one).peak, "{threads}");
    }
}

fn situation(limit: Option<u64>, change: impl FnOnce(&mut RunConfig)) -> (RunConfig, Situation) {
    let mut config = config(Method::Qlora);
    (config.training.micro_batch, config.data.sequence_length) = (4, 256);
    change(&mut config);
    let model = model((300, 64, 192, 6, 4, 2));
    let adapters = Adapters::fresh(&config);
    let job = Job::new(&config, &model, &adapters, 2);
    let budget = Budget { bytes: limit, configured: true };
    let situation = Situation { job, adapters, model, program: 10 << 20, budget };
    (config, situation)
}

#[test]
fn auto_computes_as_few_blocks_again_as_the_budget_demands() {
    let (_, free) = situation(None, |_| {});
    let most = free.plan();
    assert_eq!(most.recomputed(), 0);
    let least = plan(&Job { recompute: Recompute::On, ..free.job.clone() }, free.program, free.budget);
    assert_eq!(least.recomputed(), 6);
    assert!(least.peak() < most.peak());
    let mut before = 0;
    for limit in [most.peak(), most.peak() - 1, (most.peak() + least.peak()) / 2, least.peak(), least.peak() - 1] {
        let (_, situation) = situation(Some(limit), |_| {});
        let plan = situation.plan();
        assert!(plan.recomputed() >= before, "{limit}");
        before = plan.recomputed();
        assert_eq!(situation.budget.holds(plan.peak()), limit >= least.peak(), "{limit}");
        if (1..6).contains(&plan.recomputed()) {
            // The blocks that are computed again come first, and one fewer of them would not fit.
            assert!(plan.keep.is_sorted_by_key(|keep| *keep == Keep::Light), "{:?}", plan.keep);
            let mut keep = plan.keep.clone();
            keep[plan.recomputed() - 1] = Keep::Light;
            assert!(!situation.budget.holds(with_keep(&situation.job, situation.program, keep).peak()));
        }
    }
    assert_eq!(before, 6);
}

#[test]
fn the_largest_micro_batch_fits_and_one_more_does_not() {
    let (_, situation) = situation(Some(80 << 20), |_| {});
    let Situation { job, program, budget, .. } = &situation;
    let mut before = usize::MAX;
    for length in [64, 128, 256, 512] {
        let most = largest_micro_batch(job, *program, *budget, Recompute::Off, length);
        assert!(most > 0 && most <= before, "{length}: {most}");
        let peak = |windows| {
            let job = Job { recompute: Recompute::Off, ..job.with_batch(windows, length) };
            plan(&job, *program, *budget).peak()
        };
        assert!(budget.holds(peak(most)) && !budget.holds(peak(most + 1)), "{length}: {most}");
        assert!(largest_micro_batch(job, *program, *budget, Recompute::On, length) >= most);
        before = most;
    }
    let nothing = Budget { bytes: Some(1 << 20), configured: true };
    assert_eq!(largest_micro_batch(job, *program, nothing, Recompute::On, 64), 0);
}

#[test]
fn remedies_are_enough_and_the_cheapest_come_first() {
    let off = |config: &mut RunConfig| config.training.recompute = Recompute::Off;
    let (_, free) = situation(None, off);
    let (config, tight) = situation(Some(free.plan().peak() * 9 / 10), off);
    let remedies = remedies::cheapest(&config, &tight, 3);
    assert_eq!(remedies.len(), 3, "{remedies:?}");
    assert_eq!(remedies[0].settings, ["training.recompute=auto"]);
    assert_eq!(remedies[1].settings, ["training.micro_batch=1", "training.accumulation=4"]);
    assert!(remedies.iter().all(|remedy| tight.budget.holds(remedy.peak)));
    let text = remedies[1].to_string();
    assert!(text.starts_with("--set training.micro_batch=1 --set training.accumulation=4  ("), "{text}");

    // So little that nothing but several changes together will do.
    let least = {
        let (_, situation) = situation(None, |config| {
            config.training.compute = Compute::Bf16;
            (config.training.recompute, config.training.micro_batch) = (Recompute::On, 1);
            config.data.sequence_length = 64;
            config.optimizer.kind = OptimizerKind::AdamW8;
        });
        situation.plan().peak()
    };
    let (config, tighter) = situation(Some(least), |_| {});
    let together = remedies::cheapest(&config, &tighter, 3);
    assert!(together.iter().all(|remedy| tighter.budget.holds(remedy.peak)), "{together:?}");
    assert!(together.iter().any(|remedy| remedy.settings.len() > 2), "{together:?}");

    let (config, impossible) = situation(Some(5 << 20), |_| {});
    assert_eq!(remedies::cheapest(&config, &impossible, 3), []);
    let refusal = refusal(&config, &impossible, &impossible.plan(), 5 << 20);
    assert_eq!(refusal.exit_code(), 1);
    assert!(refusal.message().contains("training.memory_limit_gib allows 5.0 MiB"), "{refusal}");
}

#[test]
fn more_work_takes_more_time() {
    let (_, situation) = situation(None, |_| {});
    let job = &situation.job;
    let light = time::operations_per_token(job, &[Keep::Light; 6]);
    let again = time::operations_per_token(job, &[Keep::Input; 6]);
    let linears = job.linear_values() as f64;
    assert!(light > 4.0 * linears && again > light && again < 1.5 * light, "{light} {again}");
    let longer = time::operations_per_token(&job.with_batch(1, 512), &[Keep::Light; 6]);
    assert!(longer > light);
}
