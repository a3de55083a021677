//! The help of every command: it has examples, they are right, and pages and completions leave no command out.

use super::{completions, man, Cli};
use clap::{Command, CommandFactory, Parser};

/// Every command with the words that call it.
fn commands() -> Vec<(Vec<String>, Command)> {
    fn add(command: &Command, words: &[String], all: &mut Vec<(Vec<String>, Command)>) {
        all.push((words.to_vec(), command.clone()));
        for part in command.get_subcommands().filter(|part| part.get_name() != "help") {
            add(part, &[words, &[part.get_name().to_string()]].concat(), all);
        }
    }
    let mut all = Vec::new();
    add(&Cli::command(), &["llamantino".to_string()], &mut all);
    all
}

/// The words of a command as a shell would cut them, up to a redirection or a pipe.
fn shell_words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote, mut open) = (Vec::new(), String::new(), None, false);
    for character in line.chars() {
        match (quote, character) {
            (Some(mark), c) if c == mark => quote = None,
            (None, '"' | '\'') => (quote, open) = (Some(character), true),
            (None, ' ') => {
                if open || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                open = false;
            }
            (_, c) => word.push(c),
        }
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    words.into_iter().take_while(|word| !matches!(word.as_str(), ">" | "|")).collect()
}

#[test]
fn every_command_has_examples_and_every_example_is_a_command() {
    for (words, command) in commands() {
        let name = words.join(" ");
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let examples: Vec<&str> = help.lines().map(str::trim).filter(|line| line.starts_with(&name)).collect();
        assert!(help.starts_with("Example") && !examples.is_empty(), "{name} --help has no example of itself");
        for line in help.lines().map(str::trim).filter(|line| line.starts_with("llamantino ")) {
            let parsed = Cli::try_parse_from(shell_words(line));
            assert!(parsed.is_ok(), "{name}: {line}\n{}", parsed.err().unwrap());
        }
    }
}

#[test]
fn every_command_and_argument_is_described() {
    for (words, command) in commands() {
        assert!(command.get_about().is_some(), "{words:?}");
        for argument in command.get_arguments().filter(|a| !a.is_hide_set()) {
            let id = argument.get_id();
            assert!(argument.get_help().is_some() || ["help", "version"].contains(&id.as_str()), "{words:?}: {id}");
        }
    }
}

#[test]
fn completions_and_pages_leave_no_command_out() {
    let all = commands();
    let script = completions::script(clap_complete::Shell::Bash);
    let folder = tempfile::tempdir().unwrap();
    man::run(man::ManArgs { command: Vec::new(), out: Some(folder.path().to_path_buf()) }).unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), all.len());
    for (words, command) in all {
        let path = words.join("__").replace('-', "__");
        assert!(script.contains(&path) || words.len() > 1 && script.contains(words.last().unwrap()), "{path}");
        let page = std::fs::read_to_string(folder.path().join(format!("{}.1", words.join("-")))).unwrap();
        for argument in command.get_arguments().filter_map(|argument| argument.get_long()) {
            let written = argument.replace('-', "\\-");
            assert!(page.contains(&written), "{words:?}: --{argument}");
            assert!(script.contains(&format!("--{argument}")), "{words:?}: --{argument}");
        }
        assert!(page.contains(".SH EXAMPLES\n.nf\n"), "{words:?}");
    }
    let unknown = man::ManArgs { command: vec!["data".into(), "bake".into()], out: None };
    let error = man::run(unknown).unwrap_err();
    assert!(error.message() == "data bake: no such command" && error.hint_text().unwrap().contains("inspect"));
}
