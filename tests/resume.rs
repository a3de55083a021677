//! Interrupted runs: the same bits as uninterrupted ones, and a clear word where resuming would not give them.

mod tiny_run;

use llamantino::checkpoint::{
    Checkpoints, FileRecord, KeepPolicy, Maker, Manifest, RunState, MANIFEST_FILE, STATE_FILE,
};
use llamantino::data::SourceConfig;
use llamantino::model::{Checkpoint, Method};
use llamantino::optim::OptimizerKind;
use llamantino::train::folder::Beginning;
use llamantino::train::guards::SpikeAction;
use llamantino::train::recompute::Recompute;
use llamantino::train::run::{self, RunOptions};
use llamantino::train::RunConfig;
use std::fs;
use std::path::{Path, PathBuf};
use tiny_run::{assert_same, finish, go, outcome, stop_after, Said, Tiny};

/// Interrupts a run after each of its steps in turn and compares with the uninterrupted one.
fn every_step(change: impl Fn(&mut RunConfig)) {
    let tiny = Tiny::new();
    let named = |name: &str| {
        let mut config = tiny.config(name);
        change(&mut config);
        config
    };
    let whole = named("whole");
    finish(&whole);
    let expected = outcome(&whole);
    assert!(expected["log"].split(|&byte| byte == b'\n').count() > 8);
    for step in 0..=whole.training.steps {
        let config = named(&format!("stopped-{step}"));
        stop_after(&config, step.min(7));
        if step == 8 {
            // Interrupted a second time: after the first step that follows.
            stop_after(&config, 8);
        }
        finish(&config);
        assert_same(&outcome(&config), &expected, &format!("stopped after step {step}"));
    }
}

#[test]
fn qlora_with_eight_bit_adamw() {
    every_step(|config| config.optimizer.kind = OptimizerKind::AdamW8);
}

#[test]
fn dora_on_a_dense_base_without_packing() {
    every_step(|config| {
        config.method = Method::Lora;
        config.lora.dora = true;
        config.data.packing = false;
        config.training.recompute = Recompute::On;
    });
}

#[test]
fn full_training() {
    every_step(|config| {
        config.method = Method::Full;
        config.optimizer.learning_rate = 1e-3;
    });
}

#[test]
fn weighted_sources_one_of_dialogues() {
    every_step(|config| {
        let text = PathBuf::from(&config.data.paths[0]);
        let dialogues = text.with_file_name("dialogues.jsonl");
        let lines = (0..40).map(|i| format!("{{\"data\": [\"Conta {i}\", \"{}\"]}}\n", "uno due ".repeat(1 + i % 4)));
        fs::write(&dialogues, lines.collect::<String>()).unwrap();
        let source = |path: &PathBuf, weight| SourceConfig {
            paths: vec![path.display().to_string()],
            template: "llamantino-chat".into(),
            system: Some(String::new()),
            weight: Some(weight),
            ..SourceConfig::default()
        };
        config.data.paths.clear();
        let held_out_files = std::mem::take(&mut config.data.held_out_files);
        let text = SourceConfig { held_out_files, ..source(&text, 1.0) };
        config.data.source = vec![text, source(&dialogues, 3.0)];
        config.data.packing = false;
        config.data.group_by_length = true;
    });
}

#[test]
fn a_run_stopped_after_every_single_step() {
    let tiny = Tiny::new();
    finish(&tiny.config("whole"));
    let config = tiny.config("stuttering");
    for step in 1..8 {
        stop_after(&config, step);
    }
    finish(&config);
    assert_same(&outcome(&config), &outcome(&tiny.config("whole")), "stopped after every step");
}

fn damage(path: PathBuf) {
    let mut bytes = fs::read(&path).unwrap();
    let place = bytes.len() / 2;
    bytes[place] ^= 16;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_damaged_checkpoint_is_passed_over_and_the_bits_are_the_same() {
    let tiny = Tiny::new();
    finish(&tiny.config("whole"));
    let config = tiny.config("damaged");
    stop_after(&config, 6);
    damage(config.folder().join("checkpoints/step-000006/optimizer.safetensors"));
    let (result, said) = go(&config, Beginning::Resume, &|_| None);
    result.unwrap();
    let warning = said.warnings.join("\n");
    for part in ["step-000006/optimizer.safetensors: damaged", "bad-step-000006", "going back to", "step-000004"] {
        assert!(warning.contains(part), "{part}: {warning}");
    }
    assert_same(&outcome(&config), &outcome(&tiny.config("whole")), "after going back");
}

#[test]
fn a_run_never_starts_over_because_no_checkpoint_can_be_read() {
    let tiny = Tiny::new();
    let config = tiny.config("damaged");
    stop_after(&config, 2);
    damage(config.folder().join("checkpoints/step-000002/state.json"));
    let before = fs::read(config.folder().join("log.jsonl")).unwrap();
    let (result, _) = go(&config, Beginning::Auto, &|_| None);
    let error = result.unwrap_err();
    assert!(error.message().contains("no checkpoint can be used"), "{error}");
    assert!(error.message().contains("state.json: damaged") && error.hint_text().unwrap().contains("--fresh"));
    assert_eq!(fs::read(config.folder().join("log.jsonl")).unwrap(), before);
    assert!(config.folder().join("checkpoints/step-000002").is_dir(), "nothing was moved");
}

#[test]
fn a_finished_run_is_left_alone() {
    let tiny = Tiny::new();
    let config = tiny.config("whole");
    let summary = finish(&config);
    let before = outcome(&config);
    let written = fs::metadata(config.folder().join("adapter")).unwrap().modified().unwrap();
    let (again, said) = go(&config, Beginning::Auto, &|_| None);
    let again = again.unwrap();
    assert!(said.notes.join("\n").contains("this run is finished"));
    assert_eq!((again.steps, again.tokens, again.evaluations), (summary.steps, summary.tokens, summary.evaluations));
    assert_same(&outcome(&config), &before, "a second start");
    assert_eq!(fs::metadata(config.folder().join("adapter")).unwrap().modified().unwrap(), written);
}

#[test]
fn a_result_without_checkpoints_is_not_overwritten() {
    let tiny = Tiny::new();
    let config = tiny.config("whole");
    finish(&config);
    let log = fs::read(config.folder().join("log.jsonl")).unwrap();
    fs::remove_dir_all(config.folder().join("checkpoints")).unwrap();
    let (result, _) = go(&config, Beginning::Auto, &|_| None);
    assert!(result.unwrap_err().message().contains("adapter: this run is finished, and its checkpoints are gone"));
    assert_eq!(fs::read(config.folder().join("log.jsonl")).unwrap(), log);
}

#[test]
fn killed_before_the_first_checkpoint_a_run_starts_again() {
    let tiny = Tiny::new();
    finish(&tiny.config("whole"));
    let config = tiny.config("killed");
    stop_after(&config, 2);
    fs::remove_dir_all(config.folder().join("checkpoints")).unwrap();
    finish(&config);
    assert_same(&outcome(&config), &outcome(&tiny.config("whole")), "started again");
}

/// Puts another state into the newest checkpoint, with hashes that fit.
fn edit_state(config: &RunConfig, step: u64, edit: impl Fn(&mut RunState)) {
    let folder = config.folder().join(format!("checkpoints/step-{step:06}"));
    let mut state: RunState = serde_json::from_slice(&fs::read(folder.join(STATE_FILE)).unwrap()).unwrap();
    edit(&mut state);
    let text = serde_json::to_vec(&state).unwrap();
    fs::write(folder.join(STATE_FILE), &text).unwrap();
    let mut files = Manifest::parse(&fs::read(folder.join(MANIFEST_FILE)).unwrap()).unwrap().files;
    let record = FileRecord { bytes: text.len() as u64, blake3: blake3::hash(&text).to_hex().to_string() };
    files.insert(STATE_FILE.into(), record);
    fs::write(folder.join(MANIFEST_FILE), Manifest::new(Maker::this(None), step, None, files).to_bytes()).unwrap();
}

#[test]
fn a_loss_spike_warns_once_or_stops() {
    for (name, action) in [("warns", SpikeAction::Warn), ("stops", SpikeAction::Stop)] {
        let tiny = Tiny::new();
        let mut config = tiny.config(name);
        config.training.spike.action = action;
        stop_after(&config, 1);
        // As if the loss had been a thousandth of what it will be.
        edit_state(&config, 1, |state| state.spike.window = [0.006; 100].into());
        let (result, said) = go(&config, Beginning::Auto, &|_| None);
        let log = fs::read_to_string(config.folder().join("log.jsonl")).unwrap();
        assert_eq!(log.matches("\"event\":\"spike\",\"step\":6,").count(), 1, "{log}");
        assert_eq!(said.warnings.iter().filter(|text| text.contains("times its mean")).count(), 1);
        match action {
            SpikeAction::Stop => {
                let error = result.unwrap_err();
                assert!(error.message().starts_with("stopped after step 6: the loss was at least 2 times"), "{error}");
                assert!(error.hint_text().unwrap().contains("step-000004"));
            }
            _ => drop(result.unwrap()),
        }
    }
}

#[test]
fn another_configuration_is_refused_with_the_difference() {
    let tiny = Tiny::new();
    stop_after(&tiny.config("run"), 3);
    let mut config = tiny.config("run");
    config.optimizer.learning_rate = 1e-3;
    config.training.keep_last = 5;
    let attempt = |config: &RunConfig, allow_config_change| {
        let options =
            RunOptions { beginning: Beginning::Auto, allow_config_change, stop: &|_| None, chain: None, gpu: None };
        run::run(config, &options, &mut Said::default())
    };
    for allow in [false, true] {
        let error = attempt(&config, allow).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.message().contains("\n  optimizer.learning_rate: 0.002 then, 0.001 now"), "{error}");
        assert!(error.message().contains("\n  training.keep_last: 2 then, 5 now"), "{error}");
        assert!(error.hint_text().unwrap().contains("--fresh"), "{error}");
    }
    config.optimizer.learning_rate = tiny.config("run").optimizer.learning_rate;
    config.training.checkpoint_every = 1;
    let error = attempt(&config, false).unwrap_err();
    assert!(error.hint_text().unwrap().contains("--allow-config-change"), "{error}");
    attempt(&config, true).unwrap();
    assert_eq!(fs::read_dir(config.folder().join("checkpoints")).unwrap().count(), 5);
    assert!(fs::read_to_string(config.folder().join("config.toml")).unwrap().contains("keep_last = 5"));
}

#[test]
fn before_the_first_step_the_configuration_may_still_change() {
    let tiny = Tiny::new();
    let mut config = tiny.config("run");
    config.data.paths = vec!["/nonexistent/text.txt".into()];
    assert!(go(&config, Beginning::Auto, &|_| None).0.is_err());
    stop_after(&RunConfig { seed: 5, ..tiny.config("run") }, 0);
    finish(&tiny.config("run"));
    finish(&tiny.config("whole"));
    assert_same(&outcome(&tiny.config("run")), &outcome(&tiny.config("whole")), "after two false starts");
}

#[test]
fn fresh_keeps_the_earlier_run_under_another_name() {
    let tiny = Tiny::new();
    let config = tiny.config("run");
    stop_after(&config, 4);
    let log = fs::read(config.folder().join("log.jsonl")).unwrap();
    let (result, said) = go(&config, Beginning::Fresh, &|_| None);
    result.unwrap();
    assert!(said.notes.iter().any(|note| note.ends_with("run.1")), "{:?}", said.notes);
    assert_eq!(fs::read(tiny.path("runs/run.1/log.jsonl")).unwrap(), log);
    assert!(tiny.path("runs/run.1/checkpoints/step-000004").is_dir());
    finish(&tiny.config("whole"));
    assert_same(&outcome(&config), &outcome(&tiny.config("whole")), "a fresh start");
}

#[test]
fn resume_wants_a_run() {
    let tiny = Tiny::new();
    let (result, _) = go(&tiny.config("nothing"), Beginning::Resume, &|_| None);
    let error = result.unwrap_err();
    assert!(error.exit_code() == 2 && error.message().contains("no run to resume"), "{error}");
    assert!(!tiny.path("runs").exists(), "a refusal leaves nothing behind");
}

#[test]
fn other_data_or_another_base_are_refused() {
    let tiny = Tiny::new();
    let config = tiny.config("run");
    stop_after(&config, 3);
    tiny.write_text("text.txt", 9, 3000);
    let (result, _) = go(&config, Beginning::Auto, &|_| None);
    let error = result.unwrap_err();
    assert!(error.message().contains("the training data is not what it was"), "{error}");
    tiny.write_text("text.txt", 1, 3000);
    let weights = tiny.model().join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let last = bytes.len() - 2;
    bytes[last] ^= 1;
    fs::write(&weights, bytes).unwrap();
    let (result, _) = go(&config, Beginning::Auto, &|_| None);
    let error = result.unwrap_err();
    assert!(error.message().contains("the base model is not what it was"), "{error}");
}

#[test]
fn an_adapter_of_another_base_is_refused() {
    let tiny = Tiny::new();
    let short = |name: &str, adapter: Option<&Path>| {
        let mut config = RunConfig { adapter: adapter.map(Path::to_path_buf), ..tiny.config(name) };
        config.training.steps = 1;
        config
    };
    let adapter = finish(&short("first", None)).result;
    finish(&short("second", Some(&adapter)));
    tiny.zero_weights();
    let refused = |name: &str| go(&short(name, Some(&adapter)), Beginning::Auto, &|_| None).0.unwrap_err();
    let error = refused("third");
    assert!(error.message().contains("not the base of the adapter, which was trained on"), "{error}");
    assert!(error.hint_text().unwrap().contains("llamantino.json"));
    // Of an adapter without the file nothing is known: the run gets as far as a base of zeros lets it.
    fs::remove_file(adapter.join("llamantino.json")).unwrap();
    assert!(refused("fourth").message().contains("gradient is zero"));
}

#[test]
fn a_second_run_on_the_same_folder_is_refused() {
    let tiny = Tiny::new();
    let config = tiny.config("run");
    let refused = std::cell::RefCell::new(None);
    let (result, _) = go(&config, Beginning::Auto, &|step| {
        if step == 2 {
            let (second, _) = go(&config, Beginning::Auto, &|_| None);
            *refused.borrow_mut() = second.err();
        }
        None
    });
    result.unwrap();
    let error = refused.into_inner().unwrap();
    assert!(error.message().contains("another run is at work in this folder (process "), "{error}");
}

#[test]
fn a_folder_that_vanishes_ends_the_run_with_its_name() {
    let tiny = Tiny::new();
    let config = tiny.config("run");
    let (result, _) = go(&config, Beginning::Auto, &|step| {
        if step == 2 && config.folder().exists() {
            fs::rename(config.folder(), tiny.path("elsewhere")).unwrap();
        }
        None
    });
    let error = result.unwrap_err();
    assert!(error.message().contains("runs/run: the run's folder was removed, moved or replaced"), "{error}");
    fs::rename(tiny.path("elsewhere"), config.folder()).unwrap();
    finish(&config);
}

#[test]
fn the_time_limit_stops_a_run_like_a_signal() {
    let tiny = Tiny::new();
    let mut config = tiny.config("run");
    config.training.max_hours = 1e-9;
    let (result, _) = go(&config, Beginning::Auto, &|_| None);
    let error = result.unwrap_err();
    assert!(error.exit_code() == 130 && error.message().contains("the limit of 0.000000001 hours"), "{error}");
}

#[test]
fn a_diverging_run_stops_and_leaves_nothing_that_is_not_finite() {
    let tiny = Tiny::new();
    let mut config = tiny.config("run");
    config.optimizer.learning_rate = 1e20;
    config.schedule.warmup_ratio = 0.0;
    config.training.steps = 50;
    config.training.checkpoint_every = 1;
    config.training.max_skipped_steps = 3;
    let (result, said) = go(&config, Beginning::Auto, &|_| None);
    let error = result.unwrap_err();
    assert_eq!(error.exit_code(), 1);
    let skips = said.warnings.iter().filter(|text| text.contains("left out")).count();
    assert!(error.message().contains("3 steps in a row") && skips == 3, "{error} {:?}", said.warnings);
    assert!(error.hint_text().unwrap().contains("the last checkpoint before it is"), "{error:?}");
    let log = fs::read_to_string(config.folder().join("log.jsonl")).unwrap();
    assert_eq!(log.matches("\"event\":\"skip\"").count(), 3);
    assert!(!config.folder().join("adapter").exists());
    let checkpoints = Checkpoints::open(&config.folder().join("checkpoints"), KeepPolicy::default()).unwrap();
    let found = checkpoints.newest_valid().unwrap();
    assert!(found.rejected.is_empty());
    assert_eq!(found.restored.unwrap().state.skips.in_a_row, 2, "counted in the checkpoint");
}

#[test]
fn values_that_are_not_finite_are_not_saved() {
    let tiny = Tiny::new();
    let mut config = tiny.config("run");
    config.optimizer.learning_rate = 1e39;
    config.schedule.warmup_ratio = 0.0;
    config.training.checkpoint_every = 1;
    let (result, _) = go(&config, Beginning::Auto, &|_| None);
    let error = result.unwrap_err();
    assert!(error.exit_code() == 1 && error.message().contains(": not saved"), "{error}");
    assert_eq!(fs::read_dir(config.folder().join("checkpoints")).unwrap().count(), 0);
}

#[test]
fn a_gradient_of_zero_is_refused_at_the_first_step() {
    let tiny = Tiny::new();
    tiny.zero_weights();
    let config = tiny.config("run");
    let (result, _) = go(&config, Beginning::Auto, &|_| None);
    let error = result.unwrap_err();
    assert!(error.message().contains("the first step's gradient is zero"), "{error}");
    assert!(!config.folder().join("adapter").exists());
}

#[test]
fn nothing_to_train_is_refused() {
    let tiny = Tiny::new();
    let mut config = tiny.config("run");
    config.lora.targets.clear();
    let (result, _) = go(&config, Beginning::Auto, &|_| None);
    let error = result.unwrap_err();
    assert_eq!(error.exit_code(), 2, "{error}");
}

#[test]
fn the_best_checkpoints_stay_and_can_be_used_as_they_are() {
    let tiny = Tiny::new();
    let mut config = tiny.config("best");
    (config.training.keep_last, config.training.keep_best) = (1, 1);
    (config.training.evaluate_every, config.training.checkpoint_every) = (1, 1);
    let summary = finish(&config);
    let rows = fs::read_to_string(config.folder().join("log.jsonl")).unwrap();
    let losses = rows.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let losses = losses.filter(|row| row["event"] == "eval" && row["step"] != 0);
    let best = losses.min_by(|a, b| a["loss"].as_f64().unwrap().total_cmp(&b["loss"].as_f64().unwrap())).unwrap();
    let path = config.folder().join(format!("checkpoints/step-{:06}", best["step"].as_u64().unwrap()));
    let kept = fs::read_dir(config.folder().join("checkpoints")).unwrap().count();
    assert_eq!(kept, if best["step"] == 8 { 1 } else { 2 });
    llamantino::adapter::peft::read(&path.join("adapter")).unwrap();
    let last = config.folder().join("checkpoints/step-000008/adapter/adapter_model.safetensors");
    assert_eq!(fs::read(last).unwrap(), fs::read(summary.result.join("adapter_model.safetensors")).unwrap());
}

#[test]
fn a_checkpoint_of_full_training_is_a_model() {
    let tiny = Tiny::new();
    let mut config = tiny.config("full");
    config.method = Method::Full;
    let summary = finish(&config);
    let checkpoint = Checkpoint::open(&config.folder().join("checkpoints/step-000008")).unwrap();
    let model = Checkpoint::open(&summary.result).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), model.names().collect::<Vec<_>>());
    for name in model.names() {
        let (a, b) = (checkpoint.get(name).unwrap(), model.get(name).unwrap());
        assert!(a.shape == b.shape && a.bytes[..] == b.bytes[..], "{name}");
    }
    // And a run can start from it.
    let mut next = tiny.config("next");
    next.model = config.folder().join("checkpoints/step-000008").display().to_string();
    finish(&next);
}
