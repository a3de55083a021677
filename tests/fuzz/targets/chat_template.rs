//! Chat templates, a model's (Jinja) and the program's own (TOML), with a conversation. Parts: the template, then the
//! messages, of user and assistant in turn; a first one that begins with `system:` is the system prompt.
//!
//! What is written keeps the promises of [`llamantino::data::template`]: each id has an embedding and a mark, the
//! trained stretches lie within, and a prompt is the beginning of the example that continues it.

use llamantino::data::template::{Conversation, Message, Mode, Rendered, Role, Template};
use llamantino::data::tokenize::Tokenizer;
use std::sync::OnceLock;

const TOKENIZER: &[u8] = include_bytes!("../../../data/quickstart/model/tokenizer.json");
const TOKENIZER_CONFIG: &[u8] = include_bytes!("../../../data/quickstart/model/tokenizer_config.json");

fn tokenizer() -> &'static Tokenizer {
    static LOADED: OnceLock<Tokenizer> = OnceLock::new();
    LOADED.get_or_init(|| {
        let folder = super::Folder::new();
        folder.write("tokenizer.json", TOKENIZER);
        folder.write("tokenizer_config.json", TOKENIZER_CONFIG);
        Tokenizer::load(folder.path(), None).expect("the quickstart's tokenizer")
    })
}

/// Messages of an input: at most four, so that an input takes a bounded time.
fn conversation(parts: &[&[u8]]) -> Conversation {
    let mut roles = [Role::User, Role::Assistant].into_iter().cycle();
    let messages = parts.iter().enumerate().map(|(index, part)| {
        let text = String::from_utf8_lossy(part);
        match text.strip_prefix("system:") {
            Some(system) if index == 0 => Message::new(Role::System, system),
            _ => Message::new(roles.next().expect("without end"), text),
        }
    });
    Conversation { messages: messages.collect() }
}

fn check(rendered: &Rendered) {
    assert_eq!(rendered.ids.len(), rendered.trained.len());
    assert!(rendered.ids.iter().all(|&id| (id as usize) < tokenizer().embedding_rows()));
    for span in &rendered.spans {
        assert!(span.tokens.start < span.tokens.end && span.tokens.end <= rendered.ids.len(), "{span:?}");
        assert!(rendered.text.get(span.text.clone()).is_some(), "{span:?}");
        assert!(rendered.trained[span.tokens.clone()].iter().all(|&trained| trained));
    }
}

pub fn run(input: &[u8]) {
    let [template, messages @ ..] = super::parts::<5>(input);
    let count = messages.iter().rposition(|part| !part.is_empty()).map_or(0, |last| last + 1);
    let folder = super::Folder::new();
    for name in ["template.jinja", "template.toml"] {
        let path = folder.write(name, template);
        let Ok(template) = Template::from_file(&path) else { continue };
        let whole = conversation(&messages[..count]);
        let example = template.render(tokenizer(), &whole, Mode::Training);
        example.iter().for_each(check);
        let question = Conversation { messages: whole.messages[..whole.messages.len().saturating_sub(1)].to_vec() };
        let prompt = template.render(tokenizer(), &question, Mode::Prompt);
        prompt.iter().for_each(check);
        if let (Ok(example), Ok(prompt)) = (example, prompt) {
            assert!(example.ids.starts_with(&prompt.ids), "{:?}\n{:?}", prompt.text, example.text);
        }
    }
}
