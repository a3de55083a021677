//! Chat sessions on a small random model: history, context, files, stopping.

use std::sync::atomic::AtomicBool;

use serde_json::json;

use super::*;
use crate::data::testing::{metaspace_folder, ModelFolder};
use crate::device::Compute;
use crate::model::random::RandomWeights;
use crate::model::{self, LoadOptions, ModelConfig};

/// Answers of these tests: short.
const MAX_TOKENS: usize = 6;

fn generator(vocabulary: usize, context: usize) -> Generator {
    let config = json!({"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "vocab_size": vocabulary, "max_position_embeddings": context, "rms_norm_eps": 1e-5,
        "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": false});
    let config = ModelConfig::from_json(config).unwrap();
    let weights = RandomWeights::new(3, 0.3);
    let (model, params) = model::load(&config, &weights, &LoadOptions::frozen(context), &mut |_, _| {}).unwrap();
    Generator::new(model, params, Compute::F32, context)
}

struct Start {
    session: ChatSession,
    notes: Vec<String>,
    _folder: ModelFolder,
}

fn start(template: Option<Template>, system: Option<&str>, context: usize) -> Result<Start> {
    let folder = metaspace_folder();
    let tokenizer = folder.load();
    let generator = generator(tokenizer.embedding_rows(), context);
    let sampling = SamplingOptions { max_tokens: MAX_TOKENS, temperature: 1.0, ..SamplingOptions::default() };
    let (session, notes) = ChatSession::new(generator, tokenizer, template, system.map(str::to_owned), sampling)?;
    Ok(Start { session, notes, _folder: folder })
}

fn llamantino() -> Option<Template> {
    Some(Template::builtin("llamantino-chat").unwrap())
}

fn say(session: &mut ChatSession, text: &str) -> (Reply, String) {
    let question = session.ask(text).unwrap();
    let mut streamed = String::new();
    let reply = session.reply(question, &mut |piece| {
        streamed.push_str(piece);
        Ok(true)
    });
    (reply.unwrap(), streamed)
}

#[test]
fn the_model_reads_what_training_would_write() {
    let mut start = start(llamantino(), Some("Sii breve."), 512).unwrap();
    let session = &mut start.session;
    assert!(start.notes.is_empty());
    let (reply, streamed) = say(session, "Ciao");
    assert_eq!((reply.stop, reply.new_tokens, reply.kept), (Stop::Length, MAX_TOKENS, true));
    assert_eq!(session.messages()[1], Message::new(Role::Assistant, streamed.trim()));
    let before = session.messages().to_vec();
    let question = session.ask("e poi?").unwrap();
    assert_eq!(session.messages(), before, "asking changes nothing");
    let mut messages = vec![Message::new(Role::System, "Sii breve.")];
    messages.extend(before);
    messages.extend([Message::new(Role::User, "e poi?"), Message::new(Role::Assistant, "basta")]);
    let example = llamantino().unwrap().render(&session.tokenizer, &Conversation { messages }, Mode::Training).unwrap();
    assert!(example.ids.starts_with(&question.prompt));
}

#[test]
fn the_same_seed_gives_the_same_conversation() {
    let talk = || {
        let mut start = start(llamantino(), Some("s"), 512).unwrap();
        ["uno", "due", "tre"].map(|text| say(&mut start.session, text).1)
    };
    assert_eq!(talk(), talk());
}

#[test]
fn a_full_context_forgets_the_oldest_exchanges() {
    let mut start = start(llamantino(), Some("s"), 256).unwrap();
    let session = &mut start.session;
    let mut forgotten = 0;
    for turn in 0..30 {
        let question = session.ask(&format!("domanda numero {turn}")).unwrap();
        assert!(question.prompt.len() + MAX_TOKENS <= 256);
        forgotten += question.forgotten;
        session.reply(question, &mut |_| Ok(true)).unwrap();
        assert_eq!(session.forgotten_messages(), 2 * forgotten);
    }
    assert!(forgotten > 20, "{forgotten}");
    assert_eq!(session.messages().len(), 60, "all of it can be saved");
    // What is left begins with a question and the system prompt.
    let question = session.ask("x").unwrap();
    let text = session.tokenizer.decode(&question.prompt, false).unwrap();
    assert!(text.contains("<<SYS>>\ns\n<</SYS>>\n\ndomanda numero"), "{text}");

    let error = session.ask(&"a".repeat(100_000)).unwrap_err();
    assert!(error.message().contains("the context holds 256"), "{error}");
    assert_eq!((session.messages().len(), session.forgotten_messages()), (60, 2 * forgotten));
    // A message that leaves little room gets a short answer.
    let long = "è ".repeat(90);
    let (reply, _) = say(session, &long);
    assert!(reply.prompt_tokens > 180 && reply.kept);
    session.reset();
    assert_eq!((session.messages().len(), session.forgotten_messages()), (0, 0));
}

#[test]
fn stopping_keeps_what_was_said_and_drops_what_was_not_answered() {
    static FLAG: AtomicBool = AtomicBool::new(false);
    let mut start = start(llamantino(), Some("s"), 512).unwrap();
    let session = &mut start.session;
    let question = session.ask("ciao").unwrap();
    let reply = session.reply(question, &mut |_| Ok(false)).unwrap();
    assert_eq!((reply.stop, reply.kept), (Stop::Asked, true));
    assert_eq!(session.messages().len(), 2);
    session.generator().stop_when(&FLAG);
    FLAG.store(true, std::sync::atomic::Ordering::Relaxed);
    let question = session.ask("ancora").unwrap();
    let reply = session.reply(question, &mut |_| Ok(true)).unwrap();
    assert_eq!((reply.stop, reply.kept, reply.new_tokens), (Stop::Asked, false, 0));
    assert_eq!(session.messages().len(), 2);
    FLAG.store(false, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(say(session, "ancora").0.stop, Stop::Length);
}

#[test]
fn a_failing_writer_leaves_the_history_alone() {
    let mut start = start(llamantino(), Some("s"), 512).unwrap();
    let question = start.session.ask("ciao").unwrap();
    let error = start.session.reply(question, &mut |_| Err(Error::failed("disk full"))).unwrap_err();
    assert_eq!((error.message(), start.session.messages().len()), ("disk full", 0));
}

#[test]
fn system_prompts_are_taken_from_user_template_or_default() {
    let jinja = |text: &str| {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("t.jinja");
        std::fs::write(&file, text).unwrap();
        Some(Template::from_file(&file).unwrap())
    };
    let all = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}";
    let refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('niente system') }}{% endif %}\
                   {{ messages[0].content }}{{ eos_token }}";
    let ignores = "{{ messages[-1].content }}{{ eos_token }}";

    let from_template = start(llamantino(), None, 1024).unwrap();
    assert_eq!(from_template.session.system(), llamantino().unwrap().default_system());
    assert_eq!(start(jinja(all), None, 1024).unwrap().session.system(), Some(ITALIAN_SYSTEM));
    // A model's template that writes a system prompt of its own, as SmolLM2's and Qwen's do.
    let own = "{% if messages[0].role != 'system' %}<sys>Sono io.{{ eos_token }}{% endif %}{% for m in messages %}\
               {% if m.role == 'system' %}<sys>{% endif %}{{ m.content }}{{ eos_token }}{% endfor %}";
    let text = |start: &Start| {
        let question = start.session.ask("ciao").unwrap();
        start.session.tokenizer.decode(&question.prompt, false).unwrap()
    };
    let mut replaced = start(jinja(own), None, 1024).unwrap();
    assert_eq!(replaced.session.system(), Some(ITALIAN_SYSTEM));
    assert!(!text(&replaced).contains("Sono io."), "{}", text(&replaced));
    replaced.session.set_system(None).unwrap();
    assert!(text(&replaced).contains("<sys></s> ciao"), "none is none: {}", text(&replaced));
    let none = start(jinja(own), Some(""), 1024).unwrap();
    assert!(text(&none).contains("<sys></s> ciao"), "none is none: {}", text(&none));
    let nothing = start(jinja(all), Some(""), 1024).unwrap();
    assert!(text(&nothing).ends_with("ciao</s>") && !text(&nothing).contains("</s> ciao"), "{}", text(&nothing));
    let without = start(jinja(refuses), None, 1024).unwrap();
    assert_eq!((without.session.system(), without.notes.len()), (None, 1));
    let error = start(jinja(refuses), Some("s"), 1024).err().unwrap();
    assert!(error.message().contains("niente system"), "{error}");
    let left_out = start(jinja(ignores), Some("s"), 1024).unwrap();
    assert!(left_out.notes[0].contains("leaves the system prompt out"), "{:?}", left_out.notes);

    let mut off = start(llamantino(), None, 1024).unwrap();
    off.session.set_system(None).unwrap();
    let question = off.session.ask("ciao").unwrap();
    assert_eq!(off.session.tokenizer.decode(&question.prompt[1..], false).unwrap(), " [INST]ciao[/INST]");
}

#[test]
fn instructions_and_completions_stand_alone() {
    let mut start = start(Some(Template::builtin("extremita").unwrap()), None, 1024).unwrap();
    say(&mut start.session, "uno");
    let second = start.session.ask("due").unwrap();
    let text = start.session.tokenizer.decode(&second.prompt, true).unwrap();
    assert!(!text.contains("uno") && text.ends_with("### Istruzione:\ndue\n### Risposta:"), "{text}");
    assert!(start.session.set_system(Some("s".into())).unwrap().is_some());

    let mut start = super::tests::start(None, None, 256).unwrap();
    let (_, streamed) = say(&mut start.session, "c'era");
    assert_eq!(start.session.messages()[1].content, streamed);
    let again = start.session.ask("c'era").unwrap();
    let plain = start.session.tokenizer.encode_plain("c'era").unwrap();
    assert_eq!(again.prompt, [vec![1], plain].concat());
}

#[test]
fn a_saved_conversation_goes_on_as_if_never_left() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("chat.json");
    let mut first = start(llamantino(), Some("Sii breve."), 512).unwrap();
    say(&mut first.session, "uno \"due\"\nè </s>");
    first.session.save(&file).unwrap();
    let mut second = start(llamantino(), Some("altro"), 512).unwrap();
    say(&mut second.session, "x");
    second.session.load(&file).unwrap();
    assert_eq!(second.session.messages(), first.session.messages());
    assert_eq!(second.session.system(), Some("Sii breve."));
    assert_eq!(second.session.ask("e?").unwrap().prompt, first.session.ask("e?").unwrap().prompt);
    first.session.save(&file).unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap().lines().count(), 1);

    for wrong in [
        "ciao",
        "{\"messages\": [{\"role\": \"assistant\", \"content\": \"a\"}]}",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}",
        "{\"messages\": [{\"role\": \"bot\", \"content\": \"a\"}]}",
    ] {
        std::fs::write(&file, wrong).unwrap();
        let error = second.session.load(&file).unwrap_err();
        assert!(error.message().contains("not a saved conversation"), "{error}");
        let error = second.session.save(&file).unwrap_err();
        assert!(error.message().contains("left alone"), "{error}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), wrong);
    }
    assert_eq!(second.session.messages().len(), 2);
    assert!(second.session.save(&folder.path().join("no/such/folder.json")).is_err());
}
