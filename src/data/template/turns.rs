//! The order of messages that every template can rely on.

use super::{Instruction, Message, Mode, Role};
use crate::error::{Error, Result};

/// Checks what holds for all templates: a system message stands first, and the last message fits the mode. Whether
/// user and assistant take turns is for the template to say.
///
/// # Errors
/// The message at fault, counted from 1.
pub fn check(messages: &[Message], mode: Mode) -> Result<()> {
    if let Some(place) = messages.iter().skip(1).position(|message| message.role == Role::System) {
        return Err(Error::failed(format!("message {}: a system message in the middle of a conversation", place + 2)));
    }
    let last = messages.last().map(|message| message.role);
    match (mode, last) {
        (Mode::Training, Some(Role::Assistant)) | (Mode::Prompt, Some(Role::User)) => Ok(()),
        (_, None | Some(Role::System)) => Err(Error::failed("the conversation has no messages of user and assistant")),
        (Mode::Training, Some(Role::User)) => {
            Err(Error::failed(format!("message {}: the last message is the user's, without an answer", messages.len())))
        }
        (Mode::Prompt, Some(Role::Assistant)) => Err(Error::failed(format!(
            "message {}: the last message is the assistant's, there is nothing to answer",
            messages.len()
        ))),
    }
}

/// Checks that user and assistant take turns, the user first; `messages` begin behind the system message, which was
/// message number `before`.
///
/// # Errors
/// The message at fault, counted from 1.
pub fn check_alternation(messages: &[Message], before: usize) -> Result<()> {
    for (index, message) in messages.iter().enumerate() {
        let expected = if index % 2 == 0 { Role::User } else { Role::Assistant };
        if message.role != expected {
            return Err(Error::failed(format!(
                "message {}: expected the {}'s turn, found the {}'s",
                before + index + 1,
                expected.name(),
                message.role.name()
            ))
            .hint("user and assistant take turns, the user begins"));
        }
    }
    Ok(())
}

/// An instruction as a conversation.
pub fn of_instruction(task: &Instruction, mode: Mode) -> Vec<Message> {
    let request = match task.input.trim().is_empty() {
        true => task.instruction.clone(),
        false => format!("{}\n\n{}", task.instruction, task.input),
    };
    let mut messages = vec![Message::new(Role::User, request)];
    if mode == Mode::Training {
        messages.push(Message::new(Role::Assistant, task.response.clone()));
    }
    messages
}
