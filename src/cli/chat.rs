//! `llamantino chat`: a conversation in the terminal or through a pipe. stdout carries the answers and nothing else.

mod commands;
mod input;

use super::model_args::{DeviceArgs, ModelArgs, SamplingArgs};
use super::{interrupt, output};
use crate::data::template::{builtin_names, Template};
use crate::error::{Error, Result};
use crate::generate::chat::ChatSession;
use crate::generate::{SamplingOptions, Stop};
use clap::Args;
use commands::{Command, Outcome};
use input::{Input, Line};
use std::io::IsTerminal;

/// Arguments of `chat`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  llamantino chat --model MODEL\n  \
    llamantino chat --model MODEL --adapter runs/NAME/adapter --template llamantino-chat\n  \
    llamantino chat --model MODEL --prompt \"Qual è la capitale d'Italia?\"\n  \
    echo \"Ciao!\" | llamantino chat --model MODEL\n\n\
    Through a pipe each line is a message. In the terminal /help lists the commands.")]
pub struct ChatArgs {
    /// Which model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Where to compute.
    #[command(flatten)]
    pub device: DeviceArgs,
    /// `model` for the model's own, a built-in name (llamantino-chat, ...), or a .toml or .jinja file; `none` completes
    /// text. Default: the model's own if it has one.
    #[arg(long, value_name = "NAME")]
    pub template: Option<String>,
    /// System prompt; empty: none. Default: that of the template, or a short Italian one.
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// One message: prints the answer and ends. `-` takes all of stdin as the message.
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// How tokens are chosen.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Keep no history of what is typed.
    #[arg(long)]
    pub no_history: bool,
}

/// Runs `chat`.
pub fn run(args: ChatArgs) -> Result<()> {
    let default = SamplingOptions { temperature: 0.7, top_p: Some(0.9), max_tokens: 512, ..SamplingOptions::default() };
    let sampling = args.sampling.options(&default)?;
    let message = match args.prompt.as_deref() {
        Some("-") => Some(input::read_message()?),
        prompt => prompt.map(str::to_owned),
    };
    // A template that cannot be read is reported before the model is loaded.
    let opened = args.model.open()?;
    let template = match args.template.as_deref() {
        Some("none") => None,
        Some("model") => Some(opened.chat_template()?.ok_or_else(|| {
            Error::failed(format!("{}: this model has no chat template", args.model.model))
                .hint("choose one with --template llamantino-chat")
        })?),
        Some(name) => Some(opened.with_description(|folder| Template::named(name, folder))?),
        None => opened.chat_template()?,
    };
    let (generator, tokenizer) = args.model.load(&opened, args.device.device)?;
    tokenizer.warnings().iter().for_each(|warning| output::warning(warning));
    let (mut session, notes) = ChatSession::new(generator, tokenizer, template, args.system, sampling)?;
    notes.iter().for_each(|note| output::warning(note));
    interrupt::install();
    session.generator().stop_when(&interrupt::PRESSED);
    if let Some(message) = message {
        answer(&mut session, &message)?;
        return if interrupt::pressed() { Err(Error::interrupted("stopped")) } else { Ok(()) };
    }
    if std::io::stdin().is_terminal() {
        introduce(&session, &args.model.model);
        talk(&mut session, &mut input::Terminal::open(!args.no_history)?)
    } else {
        piped(&mut session)
    }
}

/// What a person should know at the start.
fn introduce(session: &ChatSession, model: &str) {
    match session.template() {
        Some(template) if template.is_instruction() => {
            output::note(&format!("{model}, template {}: each message is an instruction by itself", template.name()))
        }
        Some(template) => output::note(&format!("{model}, template {}", template.name())),
        None => {
            let names: Vec<&str> = builtin_names().collect();
            output::note(&format!(
                "{model} has no chat template: it completes each text by itself (--template NAME for a chat: {})",
                names.join(", ")
            ));
        }
    }
    output::note("/help lists the commands, Ctrl-C stops an answer, Ctrl-D ends");
}

/// The conversation in a terminal: errors are shown, and it goes on.
fn talk(session: &mut ChatSession, input: &mut input::Terminal) -> Result<()> {
    // Ctrl-C in a row, at the prompt or in an answer: the second one ends.
    let mut interrupts = 0;
    loop {
        interrupt::clear();
        let text = match input.next_line()? {
            Line::End => return Ok(()),
            Line::Interrupted if interrupts > 0 => return Ok(()),
            Line::Interrupted => {
                interrupts += 1;
                output::note("Ctrl-C again, Ctrl-D or /quit ends");
                continue;
            }
            Line::Text(text) => text,
        };
        interrupts = 0;
        let result = match commands::parse(&text) {
            Ok(Command::Say("")) => Ok(Outcome::GoOn),
            Ok(Command::Say(message)) => answer(session, message).map(|()| Outcome::GoOn),
            Ok(command) => commands::run(session, command),
            Err(error) => Err(error),
        };
        match result {
            Ok(Outcome::Quit) => return Ok(()),
            Ok(Outcome::GoOn) => {}
            Err(error) => output::error(&error),
        }
        interrupts += usize::from(interrupt::pressed());
    }
}

/// The conversation through a pipe: the first error ends it.
fn piped(session: &mut ChatSession) -> Result<()> {
    let mut input = input::Pipe::new();
    loop {
        let Line::Text(text) = input.next_line()? else { return Ok(()) };
        match commands::parse(&text).map_err(|error| error.at(input.place()))? {
            Command::Say("") => {}
            Command::Say(message) => answer(session, message).map_err(|error| error.at(input.place()))?,
            command => match commands::run(session, command).map_err(|error| error.at(input.place()))? {
                Outcome::Quit => return Ok(()),
                Outcome::GoOn => {}
            },
        }
        if interrupt::pressed() {
            return Err(Error::interrupted("stopped"));
        }
    }
}

/// Asks and streams the answer, with a line end behind it.
fn answer(session: &mut ChatSession, message: &str) -> Result<()> {
    let question = session.ask(message)?;
    if question.forgotten > 0 {
        let exchanges = if question.forgotten == 1 { "exchange is" } else { "exchanges are" };
        output::note(&format!("the context is full: the oldest {} {exchanges} forgotten", question.forgotten));
    }
    let mut written = false;
    let reply = session.reply(question, &mut |piece| {
        output::data(piece);
        written = true;
        Ok(!interrupt::pressed())
    });
    // Also before an error: what follows begins on a line of its own.
    if written || reply.is_ok() {
        output::data("\n");
    }
    match reply?.stop {
        Stop::EndOfText => {}
        Stop::Length => output::note("(cut off: --max-tokens allows more)"),
        Stop::ContextFull => output::note("(cut off: the context is full)"),
        Stop::Asked => output::note("(stopped)"),
    }
    Ok(())
}
