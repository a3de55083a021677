//! Chains of stages: stopped anywhere they end with the same bits, nothing finished is done again, nothing stale is used.

mod tiny_run;

use llamantino::error::Result;
use llamantino::train::folder::Beginning;
use llamantino::train::run::{RunOptions, RunSummary};
use llamantino::train::stages::{self, ChainObserver, Recipe, Stage};
use llamantino::train::RunConfig;
use std::cell::Cell;
use std::fs;
use std::path::PathBuf;
use tiny_run::chain::{outcomes, recipe};
use tiny_run::{assert_same, Said, Tiny};

impl ChainObserver for Said {
    fn begin(&mut self, number: usize, total: usize, stage: &Stage) {
        self.notes.push(format!("stage {number} of {total}: {}", stage.name));
    }
    fn end(&mut self, _: &Stage, _: &RunSummary) {}
}

type Done = Vec<(Stage, RunSummary)>;

struct Go<'a> {
    until: Option<&'a str>,
    beginning: Beginning,
    stop: &'a dyn Fn(u64) -> Option<String>,
}

impl Default for Go<'_> {
    fn default() -> Self {
        Go { until: None, beginning: Beginning::Auto, stop: &|_| None }
    }
}

fn go(recipe: &Recipe, how: Go<'_>) -> (Result<Done>, Said) {
    let mut said = Said::default();
    let options =
        RunOptions { beginning: how.beginning, allow_config_change: false, stop: how.stop, chain: None, gpu: None };
    (stages::run_chain(recipe, how.until, &options, &mut said), said)
}

fn finish(recipe: &Recipe) -> Done {
    go(recipe, Go::default()).0.unwrap_or_else(|error| panic!("{error}"))
}

fn folder(recipe: &Recipe, stage: &str) -> PathBuf {
    recipe.run.folder().join(stage)
}

#[test]
fn a_chain_runs_each_stage_from_the_one_before() {
    let tiny = Tiny::new();
    let recipe = recipe(&tiny, "whole");
    let done = finish(&recipe);
    let steps: Vec<_> = done.iter().map(|(stage, summary)| (stage.name.as_str(), summary.steps)).collect();
    assert_eq!(steps, [("adapt", 4), ("chat", 3), ("instruct", 3)]);
    // The held-out text is the same in all: each stage begins where the one before ended.
    let loss = |index: usize| {
        let (first, last) = &done[index].1.evaluations[0];
        (first.loss, last.loss)
    };
    assert!(loss(0).1 < loss(0).0, "the first stage learns");
    assert_eq!(loss(0).1, loss(1).0, "the second begins with the adapter of the first");
    let (merged, adapted) = (loss(2).0, loss(1).1);
    assert!((merged - adapted).abs() < 0.02 * adapted, "merged and quantised again: {merged}, {adapted}");
    assert!(merged < loss(0).0 - 0.5 * (loss(0).0 - adapted), "what was learned is in the merged model");
    assert!(folder(&recipe, "2-chat/merged/model.safetensors").exists(), "kept unless told otherwise");
    // What the stages before held out is measured too; here it is the same text, so that the numbers are the same bits.
    for (stage, names) in [
        (0, &["held-out"][..]),
        (1, &["held-out", "adapt: held-out"]),
        (2, &["held-out", "adapt: held-out", "chat: held-out"]),
    ] {
        let evaluations = &done[stage].1.evaluations;
        assert_eq!(evaluations.iter().map(|(first, _)| first.set.as_str()).collect::<Vec<_>>(), names);
        for (first, last) in evaluations {
            assert_eq!((first.loss, last.loss), loss(stage), "{}", first.set);
        }
    }
    assert!(folder(&recipe, "chain.toml").exists());
}

#[test]
fn a_chain_stopped_anywhere_ends_with_the_same_bits() {
    let tiny = Tiny::new();
    let whole = recipe(&tiny, "whole");
    finish(&whole);
    let expected = outcomes(&whole);
    let mut interruptions = 0;
    // A run asks after each step and each held-out batch whether it should go on.
    for stop_at in 1.. {
        let recipe = recipe(&tiny, &format!("stopped-{stop_at}"));
        let asked = Cell::new(0);
        let stop = |_| {
            asked.set(asked.get() + 1);
            (asked.get() >= stop_at).then(|| "the test".to_string())
        };
        let (result, _) = go(&recipe, Go { stop: &stop, ..Go::default() });
        match result {
            Err(error) => {
                assert_eq!(error.exit_code(), 130, "{error}");
                interruptions += 1;
            }
            Ok(_) => break,
        }
        finish(&recipe);
        assert_same(&outcomes(&recipe), &expected, &format!("stopped when asked for the {stop_at}th time"));
    }
    assert!(interruptions > 12, "{interruptions}");
}

#[test]
fn a_finished_stage_is_not_run_again() {
    let tiny = Tiny::new();
    let recipe = recipe(&tiny, "chain");
    let (first, _) = go(&recipe, Go { until: Some("chat"), ..Go::default() });
    assert_eq!(first.unwrap().len(), 2);
    assert!(!folder(&recipe, "3-instruct").exists());
    let before = fs::metadata(folder(&recipe, "2-chat/adapter")).unwrap().modified().unwrap();
    // Not even its checkpoints are needed any more.
    fs::remove_dir_all(folder(&recipe, "1-adapt/checkpoints")).unwrap();
    let (all, said) = go(&recipe, Go::default());
    let all = all.unwrap();
    assert_eq!(said.notes.iter().filter(|note| note.ends_with(" is finished")).count(), 2, "{:?}", said.notes);
    assert_eq!(fs::metadata(folder(&recipe, "2-chat/adapter")).unwrap().modified().unwrap(), before);
    let again = finish(&recipe);
    assert_eq!(again.len(), 3);
    for ((_, first), (_, again)) in all.iter().zip(&again) {
        assert_eq!((first.steps, first.tokens, &first.evaluations), (again.steps, again.tokens, &again.evaluations));
    }
}

#[test]
fn a_changed_stage_is_refused_with_the_difference() {
    let tiny = Tiny::new();
    let mut recipe = recipe(&tiny, "chain");
    finish(&recipe);
    let before = outcomes(&recipe);
    recipe.run.seed = 7;
    let error = go(&recipe, Go::default()).0.unwrap_err();
    assert!(error.exit_code() == 2 && error.message().starts_with("stage adapt: "), "{error}");
    assert!(error.message().contains("\n  seed: 42 then, 7 now"), "{error}");
    assert!(error.hint_text().unwrap().contains("--stage adapt --fresh"), "{error:?}");
    recipe.run.seed = 42;
    recipe.stage[1].changes.0.insert("seed".into(), 7.into());
    let error = go(&recipe, Go::default()).0.unwrap_err();
    assert!(error.message().starts_with("stage chat: "), "{error}");
    assert_same(&outcomes(&recipe), &before, "a refusal changes nothing");
    recipe.stage[1].changes.0.remove("seed");
    // Other data cannot be compared any more with what a finished stage has read.
    tiny.write_text("other.txt", 9, 1000);
    let paths = recipe.run.data.paths.clone();
    recipe.run.data.paths = vec![tiny.path("other.txt").display().to_string()];
    let error = go(&recipe, Go::default()).0.unwrap_err();
    assert!(error.message().starts_with("stage adapt: ") && error.message().contains("data.paths"), "{error}");
    recipe.run.data.paths = paths;
    // What bears upon nothing that is still to be done is no change.
    recipe.run.training.keep_last = 7;
    finish(&recipe);
}

#[test]
fn stages_after_a_changed_one_are_done_again_and_nothing_is_lost() {
    let tiny = Tiny::new();
    let mut recipe = recipe(&tiny, "chain");
    finish(&recipe);
    let first = fs::read(folder(&recipe, "3-instruct/adapter/adapter_model.safetensors")).unwrap();
    recipe.run.seed = 7;
    let fresh = Go { until: Some("adapt"), beginning: Beginning::Fresh, ..Go::default() };
    go(&recipe, fresh).0.unwrap();
    assert!(folder(&recipe, "1-adapt.1/adapter").is_dir() && folder(&recipe, "2-chat/adapter").is_dir());
    let (result, said) = go(&recipe, Go::default());
    result.unwrap();
    let notes = said.notes.join("\n");
    for part in ["stage adapt is finished", "stage chat: it began from another result of 1-adapt", "2-chat.1"] {
        assert!(notes.contains(part), "{part}: {notes}");
    }
    assert_eq!(fs::read(folder(&recipe, "3-instruct.1/adapter/adapter_model.safetensors")).unwrap(), first);
    assert_ne!(fs::read(folder(&recipe, "3-instruct/adapter/adapter_model.safetensors")).unwrap(), first);
    let other = Recipe { run: RunConfig { name: "other".into(), ..recipe.run.clone() }, stage: recipe.stage.clone() };
    finish(&other);
    assert_same(&outcomes(&recipe), &outcomes(&other), "a chain done in parts");
}

#[test]
fn a_stage_that_is_done_again_to_the_same_bits_leaves_the_later_ones_valid() {
    let tiny = Tiny::new();
    let recipe = recipe(&tiny, "chain");
    finish(&recipe);
    let fresh = Go { until: Some("adapt"), beginning: Beginning::Fresh, ..Go::default() };
    go(&recipe, fresh).0.unwrap();
    let (result, said) = go(&recipe, Go::default());
    result.unwrap();
    assert_eq!(said.notes.iter().filter(|note| note.ends_with(" is finished")).count(), 3, "{:?}", said.notes);
    assert!(!folder(&recipe, "2-chat.1").exists());
}

#[test]
fn fresh_without_a_stage_keeps_the_whole_chain_under_another_name() {
    let tiny = Tiny::new();
    let recipe = recipe(&tiny, "chain");
    finish(&recipe);
    let before = outcomes(&recipe);
    go(&recipe, Go { beginning: Beginning::Fresh, ..Go::default() }).0.unwrap();
    assert!(tiny.path("runs/chain.1/3-instruct/adapter").is_dir());
    assert_same(&outcomes(&recipe), &before, "from the start again");
}

#[test]
fn a_merged_model_is_removed_after_its_last_use_and_made_again_when_it_is_needed() {
    let tiny = Tiny::new();
    let whole = recipe(&tiny, "whole");
    finish(&whole);
    let mut recipe = recipe(&tiny, "chain");
    recipe.stage[2].keep_merged = false;
    let log = folder(&recipe, "3-instruct/log.jsonl");
    let begun = || fs::read_to_string(&log).is_ok_and(|text| text.contains("\"event\":\"step\""));
    let stop = |_| begun().then(|| "the test".to_string());
    go(&recipe, Go { stop: &stop, ..Go::default() }).0.unwrap_err();
    let merged = folder(&recipe, "2-chat/merged");
    fs::remove_dir_all(&merged).unwrap();
    let (result, said) = go(&recipe, Go::default());
    result.unwrap();
    assert!(said.notes.iter().any(|note| note.starts_with("merging the adapter of stage chat")), "{:?}", said.notes);
    assert!(said.notes.iter().any(|note| note.starts_with("removed ")) && !merged.exists(), "{:?}", said.notes);
    assert_same(&outcomes(&recipe), &outcomes(&whole), "with its base made twice");
    finish(&recipe);
    assert!(!merged.exists(), "a finished chain makes nothing");
}

#[test]
fn a_merged_model_of_another_adapter_is_not_used() {
    let tiny = Tiny::new();
    let recipe = recipe(&tiny, "chain");
    go(&recipe, Go { until: Some("chat"), ..Go::default() }).0.unwrap();
    // As a process leaves it that is killed between the merge and its mark.
    fs::create_dir(folder(&recipe, "2-chat/merged")).unwrap();
    fs::write(folder(&recipe, "2-chat/merged/model.safetensors"), "not finished").unwrap();
    finish(&recipe);
}

#[test]
fn a_chain_can_be_moved() {
    let tiny = Tiny::new();
    let mut recipe = recipe(&tiny, "chain");
    go(&recipe, Go { until: Some("chat"), ..Go::default() }).0.unwrap();
    fs::rename(tiny.path("runs/chain"), tiny.path("runs/elsewhere")).unwrap();
    recipe.run.name = "elsewhere".into();
    let (result, said) = go(&recipe, Go::default());
    result.unwrap();
    assert_eq!(said.notes.iter().filter(|note| note.ends_with(" is finished")).count(), 2, "{:?}", said.notes);
}

#[test]
fn what_would_fail_later_is_refused_at_once() {
    let tiny = Tiny::new();
    let mut recipe = recipe(&tiny, "chain");
    fs::remove_file(tiny.path("third.txt")).unwrap();
    let error = go(&recipe, Go::default()).0.unwrap_err();
    assert!(error.message().starts_with("stage instruct: ") && error.message().contains("third.txt"), "{error}");
    assert!(!folder(&recipe, "1-adapt").exists());
    tiny.write_text("third.txt", 6, 2500);
    let training = recipe.stage[2].changes.0["training"].as_table_mut().unwrap();
    training.insert("memory_limit_gib".into(), 0.001.into());
    let error = go(&recipe, Go::default()).0.unwrap_err();
    assert!(error.message().starts_with("stage instruct: the run does not fit"), "{error}");
}

#[test]
fn what_a_stage_held_out_is_measured_when_its_data_are_gone_and_told_when_it_cannot_be() {
    let tiny = Tiny::new();
    let recipe = recipe(&tiny, "chain");
    go(&recipe, Go { until: Some("adapt"), ..Go::default() }).0.unwrap();
    fs::remove_file(tiny.path("text.txt")).unwrap();
    let (result, said) = go(&recipe, Go { until: Some("chat"), ..Go::default() });
    let measured = |done: &Done, index: usize| -> Vec<String> {
        done[index].1.evaluations.iter().map(|(first, _)| first.set.clone()).collect()
    };
    assert_eq!(measured(&result.unwrap(), 1), ["held-out", "adapt: held-out"]);
    assert!(said.warnings.is_empty(), "{:?}", said.warnings);
    let log = fs::read_to_string(folder(&recipe, "2-chat/log.jsonl")).unwrap();
    assert_eq!(log.matches("\"set\":\"adapt: held-out\"").count(), 2, "before the stage and after it: {log}");

    let kept = folder(&recipe, "1-adapt/held-out/0.tokens");
    let mut bytes = fs::read(&kept).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&kept, bytes).unwrap();
    let (result, said) = go(&recipe, Go::default());
    assert_eq!(measured(&result.unwrap(), 2), ["held-out", "chat: held-out"]);
    let told = said.warnings.iter().filter(|text| text.contains("stage adapt cannot be measured")).count();
    assert_eq!(told, 1, "{:?}", said.warnings);
}

#[test]
fn runs_and_chains_of_one_name_do_not_mix() {
    let tiny = Tiny::new();
    let recipe = recipe(&tiny, "chain");
    go(&recipe, Go { until: Some("adapt"), ..Go::default() }).0.unwrap();
    let (result, _) = tiny_run::go(&tiny.config("chain"), Beginning::Auto, &|_| None);
    assert!(result.unwrap_err().message().contains("holds a chain of stages"));
    tiny_run::stop_after(&tiny.config("run"), 1);
    let other = Recipe { run: RunConfig { name: "run".into(), ..recipe.run.clone() }, stage: recipe.stage.clone() };
    assert!(go(&other, Go::default()).0.unwrap_err().message().contains("holds a run without stages"));
    let none = Recipe { run: RunConfig { name: "none".into(), ..recipe.run.clone() }, stage: recipe.stage.clone() };
    let error = go(&none, Go { beginning: Beginning::Resume, ..Go::default() }).0.unwrap_err();
    assert!(error.exit_code() == 2 && error.message().contains("no chain to resume"), "{error}");
}

#[test]
fn the_time_limit_is_the_chain_s() {
    let tiny = Tiny::new();
    let mut recipe = recipe(&tiny, "chain");
    recipe.run.training.max_hours = 1e-9;
    let error = go(&recipe, Go::default()).0.unwrap_err();
    assert!(error.exit_code() == 130 && error.message().contains("the limit of 0.000000001 hours"), "{error}");
}

#[test]
fn a_run_whose_beginning_is_not_known_is_not_used() {
    let tiny = Tiny::new();
    let recipe = recipe(&tiny, "chain");
    finish(&recipe);
    fs::remove_file(folder(&recipe, "2-chat/stage.json")).unwrap();
    let error = go(&recipe, Go::default()).0.unwrap_err();
    assert!(error.message().contains("holds a run but no stage.json"), "{error}");
    let hint = error.hint_text().unwrap();
    assert!(hint.contains("--stage chat --fresh"), "{hint}");
    go(&recipe, Go { until: Some("chat"), beginning: Beginning::Fresh, ..Go::default() }).0.unwrap();
    finish(&recipe);
}
