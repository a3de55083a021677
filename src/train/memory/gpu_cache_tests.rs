//! `training.cache_weights`: how many blocks are decoded, to the byte where one more or one less fits, and that a card then
//! holds what the plan says.

use super::gpu_tests::{config, measured, model};
use super::*;
use crate::device::cuda::emulator::emulator_with;
use crate::train::cache_weights::CacheWeights;
use serde_json::json;

const LAYERS: usize = 32;

/// LLaMA 2 7B on a GPU: the engine asks for more memory with each block that is decoded.
fn large(change: impl FnOnce(&mut RunConfig)) -> Job {
    let shape = json!({
        "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": LAYERS, "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096,
    });
    let config = config(Method::Qlora, change);
    let job = Job::new(&config, &ModelConfig::from_json(shape).unwrap(), &Adapters::fresh(&config), 1);
    Job { on_gpu: true, ..job }
}

fn planned(job: &Job, bytes: Option<u64>) -> Plan {
    plan(job, 0, Budget { bytes, configured: false })
}

/// The least memory that holds `bytes` and leaves free what decoded weights must.
fn least_budget(bytes: u64) -> u64 {
    (bytes..).find(|budget| budget - budget / gpu::SPARE >= bytes).unwrap()
}

#[test]
fn auto_decodes_as_many_blocks_as_fit_to_the_byte() {
    for (recompute, keep) in [(Recompute::On, Keep::Input), (Recompute::Off, Keep::Light)] {
        let job = large(|config| config.training.recompute = recompute);
        let peaks: Vec<u64> =
            (0..=LAYERS).map(|blocks| gpu::with_keep(&job, vec![keep; LAYERS], blocks).peak()).collect();
        // The first block fits into what the engine holds anyway.
        assert!(peaks[0] == peaks[1] && peaks[1..].windows(2).all(|pair| pair[0] < pair[1]), "{peaks:?}");
        for (blocks, fewer) in [(1, 0), (2, 1), (LAYERS / 2, LAYERS / 2 - 1), (LAYERS, LAYERS - 1)] {
            let least = least_budget(peaks[blocks]);
            let enough = planned(&job, Some(least));
            assert_eq!((enough.cached, enough.peak()), (blocks, peaks[blocks]));
            let less = planned(&job, Some(least - 1));
            assert_eq!((less.cached, less.peak()), (fewer, peaks[fewer]), "a byte less than for {blocks}");
        }
        // What runs anyway does not become slower than it must where nothing is spare.
        assert_eq!(planned(&job, Some(peaks[0])).cached, 0);
        assert_eq!(planned(&job, Some(10 * peaks[LAYERS])).cached, LAYERS);
    }
}

#[test]
fn memory_is_for_activations_first_and_only_then_for_decoded_weights() {
    let job = large(|config| config.training.micro_batch = 64);
    let all_kept = gpu::with_keep(&job, vec![Keep::Light; LAYERS], 0).peak();
    let short = planned(&job, Some(all_kept - 1));
    assert!(short.recomputed() > 0 && short.cached == 0, "{} and {}", short.recomputed(), short.cached);
    let enough = planned(&job, Some(least_budget(all_kept)));
    assert_eq!((enough.recomputed(), enough.cached), (0, 0));
}

#[test]
fn what_is_asked_for_is_done_whatever_there_is() {
    let with = |cache_weights| large(|config| config.training.cache_weights = cache_weights);
    let [auto, on, off] = [CacheWeights::Auto, CacheWeights::On, CacheWeights::Off].map(with);
    let plenty = Some(1 << 40);
    assert_eq!(planned(&off, plenty).cached, 0);
    assert_eq!(planned(&on, plenty).cached, LAYERS);
    // Too much for the card is refused then, not made less.
    let little = planned(&auto, None).peak();
    assert!(planned(&on, Some(little)).cached == LAYERS && planned(&on, Some(little)).peak() > little);
    // Of memory that nobody knows nothing is taken by itself, and bf16 weights need no decoding.
    assert_eq!(planned(&auto, None).cached, 0);
    let dense = large(|config| config.method = Method::Lora);
    assert_eq!(planned(&dense, plenty).cached, 0);
}

#[test]
fn a_card_of_just_that_memory_holds_what_was_picked() {
    let shape = model(6, [128, 256]);
    let blocks = shape.layers;
    let with_windows = |windows| {
        let config = config(Method::Qlora, |config| {
            (config.training.micro_batch, config.training.recompute) = (windows, Recompute::Off);
        });
        let adapters = Adapters::fresh(&config);
        let job = Job { evaluates: true, ..Job::new(&config, &shape, &adapters, 1) };
        let budget = Budget { bytes: None, configured: false };
        (config, Situation { job, adapters, model: shape.clone(), program: 10 << 20, budget })
    };
    let peak_of = |job: &Job, cached| {
        let on_gpu = Job { on_gpu: true, ..job.clone() };
        gpu::with_keep(&on_gpu, vec![Keep::Light; blocks], cached).peak()
    };
    // The engine asks for whole regions: a batch beside which some blocks fit into what it holds anyway, and not all.
    let (config, situation, some) = (1..=16)
        .find_map(|windows| {
            let (config, situation) = with_windows(windows);
            let all = peak_of(&situation.job, blocks);
            let some = (1..blocks).rfind(|cached| peak_of(&situation.job, *cached) < all)?;
            Some((config, situation, some))
        })
        .expect("a batch with a region between some blocks and all");
    let peak = |cached| peak_of(&situation.job, cached);
    for (expected, bytes) in [(0, peak(0)), (some, least_budget(peak(some))), (blocks, least_budget(peak(blocks)))] {
        // What `Situation::on_gpu` leaves of the card for the driver is taken back.
        let free = (bytes - gpu::CONTEXT..).find(|free| free - free / 50 + gpu::CONTEXT >= bytes).unwrap();
        let Some(card) = emulator_with(free as usize).map(Gpu::new) else { return };
        let (plan, limit) = gpu::admit(&config, situation.clone(), &card).unwrap();
        assert_eq!((plan.cached, limit), (expected, Some(bytes)));
        let (_, allocated) = measured(&card, &config, &shape, &plan.keep, plan.cached).unwrap();
        assert_eq!(plan.peak(), gpu::CONTEXT + allocated as u64);
    }
}
