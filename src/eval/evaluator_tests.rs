//! Scores against one plain pass for each sequence.

use super::*;
use crate::data::testing::{byte_level, byte_level_folder};
use crate::eval::task::Gold;
use crate::model::random::RandomWeights;
use crate::model::{self, LoadOptions, ModelConfig, Rows};
use crate::ops::gpu::Gpu;
use crate::quant::QuantConfig;
use serde_json::json;

pub(in crate::eval) fn evaluator(context: usize) -> Evaluator {
    with_weights(3, context)
}

/// Another model with the same tokenizer.
pub(in crate::eval) fn another(context: usize) -> Evaluator {
    with_weights(4, context)
}

fn with_weights(seed: u64, context: usize) -> Evaluator {
    let parts = model::load(&config(32), &RandomWeights::new(seed, 0.4), &LoadOptions::frozen(512), &mut |_, _| {});
    Evaluator::new(parts.unwrap(), byte_level_folder().load(), settings(context))
}

fn settings(context: usize) -> Settings {
    Settings { compute: Compute::F32, context, bos: true }
}

/// A model with heads as wide as a GPU's kernels want them, its linears in 4 bits, here or on a GPU.
pub(in crate::eval) fn wide(context: usize, gpu: Option<&Gpu>) -> Evaluator {
    let quantize = Some(QuantConfig::default());
    let options = LoadOptions { gpu: gpu.cloned(), quantize, ..LoadOptions::frozen(512) };
    let parts = model::load(&config(64), &RandomWeights::new(3, 0.1), &options, &mut |_, _| {}).unwrap();
    let tokenizer = byte_level_folder().load();
    match gpu {
        Some(gpu) => Evaluator::on_gpu(gpu, parts, tokenizer, settings(context)).unwrap(),
        None => Evaluator::new(parts, tokenizer, settings(context)),
    }
}

fn config(hidden: usize) -> ModelConfig {
    let vocabulary = byte_level()["model"]["vocab"].as_object().unwrap().len() + 4;
    let config = json!({"model_type": "llama", "hidden_size": hidden, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": vocabulary, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 512, "tie_word_embeddings": true});
    ModelConfig::from_json(config).unwrap()
}

/// Minus the loss of the scored tokens, by a plain pass over the sequence.
fn plain(evaluator: &Evaluator, scored: &Scored) -> (f64, bool) {
    let ids = &scored.ids[..scored.ids.len() - 1];
    let positions: Vec<u32> = (0..ids.len() as u32).collect();
    let whole = 0..ids.len();
    let rows = Rows { ids, positions: &positions, segments: std::slice::from_ref(&whole) };
    let logits = evaluator.model.logits(&evaluator.pass(), rows);
    let (mut sum, mut greedy) = (0.0, true);
    for place in scored.from..scored.ids.len() {
        let row = logits.row(place - 1);
        let target = row[scored.ids[place] as usize];
        let all: f64 = row.iter().map(|&z| f64::from(z).exp()).sum();
        sum += f64::from(target) - all.ln();
        greedy &= row.iter().all(|&z| z <= target);
    }
    (sum, greedy)
}

pub(in crate::eval) fn choices(id: usize, context: &str, choices: &[&str]) -> Example {
    let choices = choices.iter().map(|choice| (*choice).to_string()).collect();
    let question = Question::Choices { context: context.into(), choices };
    Example { id: id.to_string(), question, gold: Gold::None }
}

pub(in crate::eval) fn answers(evaluator: &Evaluator, examples: &[Example], shots: &str) -> Vec<Answer> {
    let batches = evaluator.batches(examples, &|_| shots.to_string()).unwrap();
    let mut answers: Vec<Option<Answer>> = vec![None; examples.len()];
    let mut receive = |batch: Vec<(usize, Answer)>| {
        batch.into_iter().for_each(|(place, answer)| answers[place] = Some(answer));
        Ok(true)
    };
    evaluator.score(&batches, &|_| true, &mut receive).unwrap();
    answers.into_iter().map(Option::unwrap).collect()
}

#[test]
fn choices_behind_shared_beginnings_score_as_alone() {
    let evaluator = evaluator(300);
    let words = ["casa", "il mare", "perché no", "x"];
    let examples: Vec<Example> = (0..40)
        .map(|i| choices(i, &format!("Domanda numero {i}: {} o", words[i % 4].repeat(1 + i % 5)), &words[..2 + i % 3]))
        .collect();
    for shots in ["", "Domanda: che cosa?\nRisposta: nulla\n\n"] {
        for (example, answer) in examples.iter().zip(answers(&evaluator, &examples, shots)) {
            let Answer::Choices(found) = answer else { panic!() };
            let (_, sequences) = evaluator.encode(example, shots).unwrap();
            assert_eq!(found.len(), sequences.len());
            for (found, scored) in found.iter().zip(&sequences) {
                assert!((found - plain(&evaluator, scored).0).abs() < 1e-3, "{}", example.id);
            }
        }
    }
}

#[test]
fn the_trunk_is_what_all_questions_begin_with() {
    let evaluator = evaluator(300);
    let examples = [choices(0, "Domanda: uno", &["a", "b"]), choices(1, "Domanda: undici", &["a", "b"])];
    let batches = evaluator.batches(&examples, &|_| "Esempio.\n\n".into()).unwrap();
    let text = evaluator.tokenizer.decode(&batches.trunk, true).unwrap();
    assert_eq!(text, "Esempio.\n\nDomanda: un");
    assert_eq!(batches.cut, 0);
}

#[test]
fn continuations_and_windows_score_as_alone() {
    let evaluator = evaluator(64);
    let continuation = |id: usize, context: &str, continuation: &str| Example {
        id: id.to_string(),
        question: Question::Continuation { context: context.into(), continuation: continuation.into() },
        gold: Gold::None,
    };
    let greedy = {
        let ids = evaluator.encoder().plain("la casa").unwrap();
        let positions: Vec<u32> = (0..ids.len() as u32).collect();
        let whole = 0..ids.len();
        let rows = Rows { ids: &ids, positions: &positions, segments: std::slice::from_ref(&whole) };
        let hidden = evaluator.model.forward(&evaluator.pass(), rows, &[]).last;
        evaluator.model.likeliest(&evaluator.pass(), &hidden, &[ids.len() - 1])[0]
    };
    let examples = [continuation(0, "la casa", "dei nonni"), continuation(1, "il", "mare")];
    for (example, answer) in examples.iter().zip(answers(&evaluator, &examples, "")) {
        let Answer::Continuation { log_likelihood, greedy } = answer else { panic!() };
        let (wanted, is_greedy) = plain(&evaluator, &evaluator.encode(example, "").unwrap().1[0]);
        assert!((log_likelihood - wanted).abs() < 1e-3);
        assert_eq!(greedy, is_greedy);
    }
    let mut ids = evaluator.encoder().plain("la casa").unwrap();
    ids.push(greedy);
    let window = crate::eval::task::Window { document: 0, scored: ids.len() - 1..ids.len(), ids, bytes: 1 };
    let scored = Scored { ids: window.ids.clone(), from: window.scored.start, cut: false };
    let example = Example { id: "w".into(), question: Question::Window(window), gold: Gold::None };
    let Answer::Nats(nats) = answers(&evaluator, &[example], "")[0] else { panic!() };
    let (wanted, is_greedy) = plain(&evaluator, &scored);
    assert!((nats + wanted).abs() < 1e-3 && is_greedy);
}

#[test]
fn an_answer_does_not_depend_on_which_batches_are_asked_for() {
    let evaluator = evaluator(300);
    let examples: Vec<Example> =
        (0..60).map(|i| choices(i, &"parola ".repeat(1 + i * 7 % 11), &["sì", "no", "forse sì"])).collect();
    let all = answers(&evaluator, &examples, "");
    let batches = evaluator.batches(&examples, &|_| String::new()).unwrap();
    assert!(batches.batches.len() > 3, "{}", batches.batches.len());
    let last: Vec<usize> = batches.batches.last().unwrap().iter().map(|question| question.example).collect();
    let mut some = Vec::new();
    let mut receive = |batch: Vec<(usize, Answer)>| {
        some.extend(batch);
        Ok(true)
    };
    evaluator.score(&batches, &|examples| examples == last.as_slice(), &mut receive).unwrap();
    assert_eq!(some.len(), last.len());
    assert!(some.iter().all(|(place, answer)| *answer == all[*place]), "bit for bit");
}
