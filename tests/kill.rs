//! The program itself, killed at random instants, stopped by signals, started twice: no run is lost.
//!
//! `LLAMANTINO_KILLS` is the number of kills (`scripts/kill-test.sh` asks for hundreds), `LLAMANTINO_SEED` names the instants.

#![cfg(unix)]

mod tiny_run;

use llamantino::model::Method;
use llamantino::train::RunConfig;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tiny_run::{assert_same, chain, outcome, Numbers, Tiny};

fn train(tiny: &Tiny, config: &RunConfig) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llamantino"));
    command.arg("train").arg(tiny.write_config(config)).current_dir(tiny.place.path());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let catch_ctrl_c = || {
        // SAFETY: signal(2) may be called between fork and exec.
        unsafe { libc::signal(libc::SIGINT, libc::SIG_DFL) };
        Ok(())
    };
    // A shell without job control starts what it puts into the background with Ctrl-C ignored, which children inherit.
    // SAFETY: the closure calls nothing but signal(2).
    unsafe { command.pre_exec(catch_ctrl_c) };
    command
}

fn finish(tiny: &Tiny, config: &RunConfig) -> Output {
    let output = train(tiny, config).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    output
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn signal(child: &Child, signal: i32) {
    // SAFETY: the process was started here and was not waited for yet, so the number is still its own.
    assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, signal) }, 0);
}

/// A run that saves all the time.
fn busy(tiny: &Tiny, name: &str) -> RunConfig {
    let mut config = tiny.config(name);
    config.training.steps = 24;
    config.training.checkpoint_every = 1;
    config
}

/// A run that saves when it is interrupted and at the end.
fn long(tiny: &Tiny, name: &str) -> RunConfig {
    let mut config = tiny.config(name);
    config.training.steps = 100;
    config.training.checkpoint_every = 0;
    config
}

/// Starts a [`long`] run and sends the signal after its first step; gives its configuration and what it said.
fn interrupted(tiny: &Tiny, name: &str, number: i32, change: impl Fn(&mut Command)) -> (RunConfig, String) {
    for attempt in 0..10 {
        let config = long(tiny, &format!("{name}-{attempt}"));
        let log = config.folder().join("log.jsonl");
        let mut command = train(tiny, &config);
        change(&mut command);
        let child = command.spawn().unwrap();
        wait_for("a step", || fs::read_to_string(&log).is_ok_and(|text| text.contains("\"event\":\"step\"")));
        signal(&child, number);
        let output = child.wait_with_output().unwrap();
        let text = stderr(&output);
        if !output.status.success() {
            assert_eq!(output.status.code(), Some(130), "{text}");
            return (config, text);
        }
        // On a busy machine the run may end before the signal is sent.
    }
    panic!("{name} never came in time");
}

/// A run whose first step takes longer than any of these tests.
fn endless(tiny: &Tiny, name: &str) -> RunConfig {
    tiny.write_text("text.txt", 1, 2_000_000);
    let mut config = tiny.config(name);
    config.training.micro_batch = 1;
    config.training.accumulation = 1 << 16;
    config.data.sequence_length = 32;
    config.data.held_out_files.clear();
    config
}

/// Waits for something that a running process does.
fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(120), "{what} did not happen");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

#[test]
fn killed_at_random_instants_a_run_ends_with_the_same_bits() {
    let tiny = Tiny::new();
    let kinds = [("qlora", Method::Qlora), ("full", Method::Full)];
    let wholes = kinds.map(|(name, method)| {
        let whole = RunConfig { method, ..busy(&tiny, name) };
        let start = Instant::now();
        finish(&tiny, &whole);
        (start.elapsed(), outcome(&whole))
    });
    let (kills, seed) = (environment("LLAMANTINO_KILLS", 12), environment("LLAMANTINO_SEED", 1));
    let mut numbers = Numbers(seed);
    let (mut done, mut runs, mut restarts_from_checkpoint) = (0, 0, 0);
    while done < kills {
        runs += 1;
        let method = runs as usize % 2;
        let (duration, expected) = &wholes[method];
        let config = RunConfig { method: kinds[method].1, ..busy(&tiny, &format!("killed-{runs}")) };
        loop {
            let mut child = train(&tiny, &config).spawn().unwrap();
            // Up to the whole duration: instants in loading, steps, saving and the end of the run.
            let delay = duration.mul_f64((numbers.next() >> 11) as f64 / (1u64 << 53) as f64);
            std::thread::sleep(delay);
            let alive = child.try_wait().unwrap().is_none();
            if alive && done < kills {
                child.kill().unwrap();
            }
            let output = child.wait_with_output().unwrap();
            restarts_from_checkpoint += u64::from(stderr(&output).contains("resuming after step"));
            let place = format!("run {runs} after {done} kills, seed {seed}");
            assert!(!stderr(&output).contains("bad-step"), "{place}: {}", stderr(&output));
            match output.status.signal() {
                Some(libc::SIGKILL) => done += 1,
                _ => {
                    assert!(output.status.success(), "{place}: {}", stderr(&output));
                    break;
                }
            }
        }
        assert_same(&outcome(&config), expected, &format!("run {runs}, seed {seed}"));
        assert_no_leftovers(&config.folder());
    }
    assert!(kills < 10 || restarts_from_checkpoint > 0, "no kill fell into the steps");
}

#[test]
fn a_chain_killed_at_random_instants_ends_with_the_same_bits() {
    let tiny = Tiny::new();
    let start = |name: &str| {
        let recipe = chain::recipe(&tiny, name);
        let path = tiny.path(&format!("{name}.toml"));
        fs::write(&path, recipe.to_toml().unwrap()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_llamantino"));
        command.arg("train").arg(path).current_dir(tiny.place.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        (recipe, command)
    };
    let (whole, mut command) = start("whole");
    let begin = Instant::now();
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let (duration, expected) = (begin.elapsed(), chain::outcomes(&whole));
    let (kills, seed) = (environment("LLAMANTINO_KILLS", 12), environment("LLAMANTINO_SEED", 1));
    let mut numbers = Numbers(seed);
    let (mut done, mut runs) = (0, 0);
    while done < kills {
        runs += 1;
        let (recipe, mut command) = start(&format!("killed-{runs}"));
        loop {
            let mut child = command.spawn().unwrap();
            std::thread::sleep(duration.mul_f64((numbers.next() >> 11) as f64 / (1u64 << 53) as f64));
            if child.try_wait().unwrap().is_none() && done < kills {
                child.kill().unwrap();
            }
            let output = child.wait_with_output().unwrap();
            if output.status.signal() == Some(libc::SIGKILL) {
                done += 1;
                continue;
            }
            assert!(output.status.success(), "run {runs}, seed {seed}: {}", stderr(&output));
            break;
        }
        assert_same(&chain::outcomes(&recipe), &expected, &format!("chain {runs}, seed {seed}"));
    }
}

fn assert_no_leftovers(folder: &Path) {
    let names = |folder: &Path| -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
    };
    let all = [names(folder), names(&folder.join("checkpoints"))].concat();
    assert!(all.iter().all(|name| !name.starts_with(".tmp") && !name.ends_with(".partial")), "{all:?}");
}

#[test]
fn signals_save_and_exit_130_with_the_command_that_resumes() {
    let tiny = Tiny::new();
    let whole = long(&tiny, "whole");
    finish(&tiny, &whole);
    for (name, number) in [("SIGTERM", libc::SIGTERM), ("SIGUSR1", libc::SIGUSR1), ("Ctrl-C", libc::SIGINT)] {
        let (config, text) = interrupted(&tiny, name, number, |command| {
            command.arg("--set").arg("training.keep_last=3");
        });
        assert!(text.contains(&format!("stopped by {name} after step ")) && text.contains("; saved "), "{text}");
        // The command in the hint, word for word, finishes the run.
        let command = text.split_once("the same command goes on from there: llamantino ").expect(&text).1;
        let words: Vec<&str> = command.split_whitespace().collect();
        assert_eq!(words.last(), Some(&"training.keep_last=3"));
        let mut resume = Command::new(env!("CARGO_BIN_EXE_llamantino"));
        let output = resume.args(words).arg("--resume").current_dir(tiny.place.path()).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(stderr(&output).contains("resuming after step"), "{}", stderr(&output));
        assert_same(&outcome(&config), &outcome(&whole), name);
    }
}

#[test]
fn a_second_ctrl_c_stops_in_the_middle_of_a_step_and_a_second_run_is_refused() {
    let tiny = Tiny::new();
    let config = endless(&tiny, "endless");
    let mut child = train(&tiny, &config).spawn().unwrap();
    let mut errors = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("trainable values") {
        line.clear();
        assert!(errors.read_line(&mut line).unwrap() > 0, "the run ended early");
    }
    // The folder is locked before the model is loaded.
    let second = train(&tiny, &config).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let owner = format!("another run is at work in this folder (process {})", child.id());
    assert!(stderr(&second).contains(&owner), "{}", stderr(&second));

    signal(&child, libc::SIGINT);
    while !line.contains("Ctrl-C again stops at once") {
        line.clear();
        assert!(errors.read_line(&mut line).unwrap() > 0, "the run ended early");
    }
    signal(&child, libc::SIGINT);
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    let mut rest = String::new();
    errors.read_to_string(&mut rest).unwrap();
    assert!(!rest.contains("saved"), "{rest}");
    assert_eq!(fs::read_dir(config.folder().join("checkpoints")).unwrap().count(), 0, "the step was not finished");
}

#[test]
fn another_kernel_path_is_told() {
    let best = llamantino::device::cpu_path().name();
    if best == "portable" {
        return; // This machine has no other.
    }
    let tiny = Tiny::new();
    let (config, _) = interrupted(&tiny, "moved", libc::SIGTERM, |command| {
        command.env("LLAMANTINO_CPU", "portable");
    });
    let text = stderr(&finish(&tiny, &config));
    assert!(text.contains(&format!("kernels: portable then, {best} now")), "{text}");
}
