//! What can be typed in a chat besides messages: `/reset`, `/system`, `/save`, ...

use super::output;
use crate::error::{Error, Result};
use crate::generate::chat::ChatSession;
use std::path::Path;

/// A line, understood.
#[derive(Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// A message to the model; may be empty.
    Say(&'a str),
    /// Forget the conversation.
    Reset,
    /// Show (none) or change the system prompt.
    System(Option<&'a str>),
    /// Write the conversation to a file.
    Save(&'a str),
    /// Take up a conversation from a file.
    Load(&'a str),
    /// Show what is in use.
    Info,
    /// List the commands.
    Help,
    /// End.
    Quit,
}

/// Whether the chat goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It does.
    GoOn,
    /// It ends.
    Quit,
}

const HELP: &str = "\
/reset        forget the conversation
/system       show the system prompt
/system TEXT  change it; /system off takes it away
/save FILE    write the conversation (one line of JSON)
/load FILE    take up a saved conversation
/info         template, context, speed
/quit         end (also Ctrl-D)
//...         a message that begins with /";

/// Understands a line: what begins with `/` is a command, with `//` a message that begins with `/`.
///
/// # Errors
/// An unknown command; a missing or unexpected argument (usage).
pub fn parse(line: &str) -> Result<Command<'_>> {
    let text = line.trim();
    let Some(rest) = text.strip_prefix('/') else { return Ok(Command::Say(text)) };
    if rest.starts_with('/') {
        return Ok(Command::Say(rest));
    }
    let (name, argument) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let argument = Some(argument.trim()).filter(|argument| !argument.is_empty());
    let command = match (name, argument) {
        ("reset", None) => Command::Reset,
        ("system", text) => Command::System(text),
        ("save", Some(path)) => Command::Save(path),
        ("load", Some(path)) => Command::Load(path),
        ("info", None) => Command::Info,
        ("help" | "?", None) => Command::Help,
        ("quit" | "exit" | "q", None) => Command::Quit,
        ("save" | "load", None) => return Err(Error::usage(format!("/{name} needs a file name"))),
        ("reset" | "info" | "help" | "?" | "quit" | "exit" | "q", Some(_)) => {
            return Err(Error::usage(format!("/{name} takes nothing behind it")))
        }
        _ => {
            return Err(Error::usage(format!("unknown command /{}", name.chars().take(40).collect::<String>()))
                .hint("/help lists the commands; a message that begins with / is written with //"))
        }
    };
    Ok(command)
}

/// Carries out a command; [`Command::Say`] is for the caller.
///
/// # Errors
/// Files that cannot be used; a system prompt that the template refuses.
pub fn run(session: &mut ChatSession, command: Command<'_>) -> Result<Outcome> {
    match command {
        Command::Quit => return Ok(Outcome::Quit),
        Command::Say(_) => {}
        Command::Help => output::note(HELP),
        Command::Reset => {
            session.reset();
            output::note("the conversation is forgotten");
        }
        Command::System(None) => output::note(session.system().unwrap_or("(no system prompt)")),
        Command::System(Some(text)) => {
            let note = session.set_system((text != "off").then(|| text.to_owned()))?;
            output::note(note.as_deref().unwrap_or("system prompt changed"));
        }
        Command::Save(path) => {
            session.save(Path::new(path))?;
            output::note(&format!("{} written to {path}", messages(session.messages().len())));
        }
        Command::Load(path) => {
            session.load(Path::new(path))?;
            output::note(&format!("{} taken up from {path}", messages(session.messages().len())));
        }
        Command::Info => output::note(&info(session)),
    }
    Ok(Outcome::GoOn)
}

fn messages(count: usize) -> String {
    format!("{count} message{}", if count == 1 { "" } else { "s" })
}

fn info(session: &mut ChatSession) -> String {
    let context = session.generator().context();
    let template = session.template().map_or("none (plain completion)", |template| template.name());
    let (count, forgotten) = (session.messages().len(), session.forgotten_messages());
    let mut text = format!("template: {template}\nconversation: {}", messages(count));
    if forgotten > 0 {
        text += &format!(", {forgotten} of them forgotten");
    }
    text += &format!("\ncontext: {context} tokens");
    if let Some(last) = session.last_reply() {
        let speed = last.new_tokens as f64 / last.decode_time.as_secs_f64().max(1e-9);
        text += &format!(
            "\nlast answer: {} prompt tokens ready after {:.2} s, {} new tokens at {speed:.1} a second",
            last.prompt_tokens,
            last.prompt_time.as_secs_f64(),
            last.new_tokens
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_messages_or_commands() {
        for (line, expected) in [
            ("ciao", Command::Say("ciao")),
            ("  ciao /reset \n", Command::Say("ciao /reset")),
            ("", Command::Say("")),
            ("//etc/hosts?", Command::Say("/etc/hosts?")),
            ("/reset", Command::Reset),
            ("/system", Command::System(None)),
            ("/system  Sii breve.\nMolto. ", Command::System(Some("Sii breve.\nMolto."))),
            ("/save a b.json", Command::Save("a b.json")),
            (" /load x", Command::Load("x")),
            ("/?", Command::Help),
            ("/quit", Command::Quit),
        ] {
            assert_eq!(parse(line).unwrap(), expected, "{line:?}");
        }
        for line in ["/save", "/load ", "/reset now", "/rest", "/", "/è", "/ reset"] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line:?}");
        }
    }
}
