//! `llamantino chat` through a pipe, with what comes through pipes: several turns, huge messages, bytes that are no text,
//! templates that fail. What only a terminal shows is not tested here.

mod support;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use support::workspace;

/// Chats with the tiny model: `input` comes through stdin.
fn chat(folder: &Path, more: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_llamantino"))
        .args(["chat", "--model", "model", "--max-tokens", "4", "--template"])
        .args(if more.contains(&"--template") { &more[1..] } else { &["none"] })
        .current_dir(folder)
        .env("NO_COLOR", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // The chat may end before it has read everything.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

fn stderr(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!text.contains("panicked"), "{text}");
    text
}

#[test]
fn each_line_is_a_message_and_commands_work() {
    let folder = workspace();
    let output = chat(folder.path(), &[], "ciao\n\n/reset\ncome va?\n/quit\nmai letto\n".as_bytes());
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stderr(&output).matches("(cut off").count(), 2, "two answers of four tokens: {}", stderr(&output));
}

#[test]
fn bytes_that_are_no_text_are_named_after_what_came_before_them_was_answered() {
    let folder = workspace();
    let output = chat(folder.path(), &[], b"ciao\ncitt\xe0 bella\nmai letto\n");
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(
        text.contains("error: stdin line 2: not UTF-8: byte 0xE0 at position 5") && text.contains("hint: "),
        "{text}"
    );
    assert!(!output.stdout.is_empty(), "the first line was answered");
}

#[test]
fn a_message_of_100_kilobytes_is_refused_with_its_size_in_tokens() {
    let folder = workspace();
    let output = chat(folder.path(), &[], "parola ".repeat(15_000).trim_end().as_bytes());
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(text.contains("error: stdin line 1: this message needs 105000 tokens"), "{text}");
    assert!(text.contains("the context holds 256") && text.contains("hint: "), "{text}");
}

#[test]
fn templates_that_loop_grow_or_refuse_end_the_chat_with_their_name() {
    let folder = workspace();
    let endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}";
    let cases = [
        (endless, "does not come to an end"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("{{ raise_exception('mai e poi mai') }}", "refuses this conversation: mai e poi mai"),
        ("{{ messages[0] }", "line 1"),
    ];
    for (text, expected) in cases {
        std::fs::write(folder.path().join("mio.jinja"), text).unwrap();
        let output = chat(folder.path(), &["--template", "mio.jinja"], b"ciao\n");
        assert_eq!(output.status.code(), Some(1), "{text}");
        let found = stderr(&output);
        assert!(found.contains("mio.jinja") && found.contains(expected), "{text}: {found}");
    }
}
