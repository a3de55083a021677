//! Parity of templates with what people use today: chat templates rendered by transformers (`chat.json`), and LLaMAntino's
//! prompts as token ids and trained-token flags by the tokenizers library (`llamantino.json`). Both files, and LLaMA 2's
//! tokenizer, are not part of the repository: `LLAMANTINO_GOLDEN_CHAT` names the folder of the files,
//! `LLAMANTINO_TEST_MODELS` the folder that holds `llama2-tokenizer/tokenizer.json`.

use llamantino::data::template::jinja::{JinjaTemplate, SpecialNames};
use llamantino::data::template::{Conversation, Instruction, Message, Mode, Rendered, Role, Template};
use llamantino::data::tokenize::Tokenizer;
use serde_json::{json, Value};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The folder that an environment variable names; without it says what is skipped, also in the file that
/// `LLAMANTINO_SKIPPED` names.
fn folder(variable: &str, test: &str) -> Option<PathBuf> {
    let folder = std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    if folder.is_none() {
        let line = format!("skipped: {test}: {variable} is not set");
        println!("{line}");
        if let Some(list) = std::env::var_os("LLAMANTINO_SKIPPED") {
            let mut list = std::fs::OpenOptions::new().create(true).append(true).open(list).unwrap();
            writeln!(list, "{line}").unwrap();
        }
    }
    folder
}

fn read(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn model_templates_render_as_transformers_renders_them() {
    let Some(golden) = folder("LLAMANTINO_GOLDEN_CHAT", "model_templates_render_as_transformers_renders_them") else {
        return;
    };
    let golden = read(&golden.join("chat.json"));
    let mut count = 0;
    for (name, template) in golden["templates"].as_object().unwrap() {
        let jinja = JinjaTemplate::new(name, template["jinja"].as_str().unwrap()).unwrap();
        let text = |key: &str| template[key].as_str().map(str::to_owned);
        let names = SpecialNames { bos: text("bos_token"), eos: text("eos_token"), ..SpecialNames::default() };
        for case in template["cases"].as_array().unwrap() {
            let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
            for (key, prompt) in [("plain", false), ("with_generation_prompt", true)] {
                let place = format!("{name}, {}, {key}", case["name"]);
                match (case[key].as_str(), jinja.text(&names, &messages, prompt)) {
                    (Some(expected), found) => assert_eq!(found.unwrap(), expected, "{place}"),
                    (None, found) => {
                        let (error, expected) = (found.unwrap_err(), case["error"].as_str().unwrap());
                        assert!(error.message().contains(expected), "{place}: {error}");
                    }
                }
                count += 1;
            }
        }
    }
    assert_eq!(count, 72);
}

/// The LLaMA 2 tokenizer in a folder with the `config.json` that names its tokens.
fn llama2(models: &Path) -> (tempfile::TempDir, Tokenizer) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(models.join("llama2-tokenizer/tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    let config = json!({"model_type": "llama", "vocab_size": 32000, "bos_token_id": 1, "eos_token_id": 2});
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let tokenizer = Tokenizer::load(folder.path(), None).unwrap();
    (folder, tokenizer)
}

/// The exchanges of the chat cases; the last answer may be missing.
fn conversation(exchanges: &[(&str, Option<&str>)], system: Option<&str>) -> Conversation {
    let mut messages: Vec<Message> = system.into_iter().map(|text| Message::new(Role::System, text)).collect();
    for (user, answer) in exchanges {
        messages.push(Message::new(Role::User, *user));
        messages.extend(answer.map(|answer| Message::new(Role::Assistant, answer)));
    }
    Conversation { messages }
}

#[test]
fn llamantino_prompts_have_the_ids_and_the_trained_tokens_of_the_reference() {
    let test = "llamantino_prompts_have_the_ids_and_the_trained_tokens_of_the_reference";
    let folders = (folder("LLAMANTINO_GOLDEN_CHAT", test), folder("LLAMANTINO_TEST_MODELS", test));
    let (Some(golden), Some(models)) = folders else { return };
    let golden = read(&golden.join("llamantino.json"));
    let (_folder, tokenizer) = llama2(&models);
    let exchanges = [
        ("Qual è la capitale d'Italia?", Some("La capitale d'Italia è Roma.")),
        ("E quanti abitanti ha?", Some("Circa 2,8 milioni. 😊 Perché?")),
        ("Così, per curiosità…", Some("Va bene!")),
    ];
    let open = [exchanges[0], (exchanges[1].0, None)];
    let plain = Template::builtin("llamantino-chat").unwrap();
    let system = plain.default_system().unwrap();
    let chat = |template: &str, exchanges: &[(&str, Option<&str>)], system: Option<&str>| {
        let mode = if exchanges.last().unwrap().1.is_some() { Mode::Training } else { Mode::Prompt };
        Template::builtin(template).unwrap().render(&tokenizer, &conversation(exchanges, system), mode).unwrap()
    };
    let task = |instruction: &str, input: &str, response: &str| {
        let template = Template::builtin("llamantino-instruct").unwrap();
        let task = Instruction { instruction: instruction.into(), input: input.into(), response: response.into() };
        template.render_instruction(&tokenizer, &task, Mode::Training).unwrap()
    };
    let rendered = |name: &str| -> Rendered {
        match name {
            "chat_7b_one_turn" => chat("llamantino-chat", &exchanges[..1], None),
            "chat_7b_three_turns" => chat("llamantino-chat", &exchanges, None),
            "chat_7b_prompt_only" => chat("llamantino-chat", &open, None),
            "chat_7b_notebook_space" => chat("llamantino-chat-notebook", &exchanges[..1], None),
            "chat_70b_spacing" => chat("llamantino-chat-70b", &exchanges[..2], Some(system)),
            "dolly_without_input" => task("Scrivi una poesia sul mare.", "", "Il mare è blu,\ne tu?"),
            "dolly_with_input" => task(
                "Riassumi il testo.",
                "Roma è la capitale.\nHa molti monumenti.",
                "Roma, capitale, è ricca di monumenti.",
            ),
            "evalita_haspeede" => {
                task("In questo testo si esprime odio? Rispondi sì o no.", "Che bella giornata!", "no")
            }
            other => panic!("a case this test does not know: {other}"),
        }
    };
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 8);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let found = rendered(name);
        assert_eq!(found.text, case["text"].as_str().unwrap(), "{name}");
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        assert_eq!(found.ids, ids, "{name}");
        let trained: Vec<u8> = serde_json::from_value(case["trained"].clone()).unwrap();
        let found_trained: Vec<u8> = found.trained.iter().map(|&trained| trained.into()).collect();
        assert_eq!(found_trained, trained, "{name}");
        let spans: Vec<[usize; 2]> = serde_json::from_value(case["trained_spans_chars"].clone()).unwrap();
        let characters = |byte: usize| found.text[..byte].chars().count();
        let found_spans: Vec<[usize; 2]> =
            found.spans.iter().map(|span| [characters(span.text.start), characters(span.text.end)]).collect();
        assert_eq!(found_spans, spans, "{name}");
    }
}

/// Every built-in template as ids and trained flags, by the file that `scripts/golden_chat.py` made.
fn check_labels(name: &str, tokenizer: &Tokenizer) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/chat/labels.json");
    let golden = read(&path);
    let dante = conversation(
        &[("Chi era Dante?", Some("Un poeta.\nDi Firenze.")), ("E Virgilio?", Some("Un altro poeta."))],
        None,
    );
    let without_system = Conversation {
        messages: std::iter::once(Message::new(Role::System, "")).chain(dante.messages.clone()).collect(),
    };
    let task = |input: &str| Instruction {
        instruction: "Traduci.".into(),
        input: input.into(),
        response: "Il mare è blu.".into(),
    };
    let cases = golden[name].as_object().unwrap();
    assert_eq!(cases.len(), 11);
    for (case, expected) in cases {
        let plain = case.strip_suffix("-without-input").unwrap_or(case);
        let template = plain.strip_suffix("-without-system").unwrap_or(plain);
        let input = if plain == case { "The sea\nis blue." } else { "" };
        let template = Template::builtin(template).unwrap();
        let found = match template.is_instruction() {
            true if case == "completion" => template.render_instruction(tokenizer, &task(""), Mode::Training),
            true => template.render_instruction(tokenizer, &task(input), Mode::Training),
            false if case.ends_with("-without-system") => template.render(tokenizer, &without_system, Mode::Training),
            false => template.render(tokenizer, &dante, Mode::Training),
        }
        .unwrap();
        let ids: Vec<u32> = serde_json::from_value(expected["ids"].clone()).unwrap();
        assert_eq!(found.ids, ids, "{name}, {case}");
        let trained: Vec<u8> = serde_json::from_value(expected["trained"].clone()).unwrap();
        assert_eq!(found.trained.iter().map(|&flag| u8::from(flag)).collect::<Vec<_>>(), trained, "{name}, {case}");
    }
}

#[test]
fn templates_have_the_labels_of_the_tokenizers_library_on_the_bundled_tokenizer() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/quickstart/model");
    check_labels("bundled", &Tokenizer::load(&folder, None).unwrap());
}

#[test]
fn templates_have_the_labels_of_the_tokenizers_library_on_the_llama2_tokenizer() {
    let test = "templates_have_the_labels_of_the_tokenizers_library_on_the_llama2_tokenizer";
    let Some(vocabulary) = folder("LLAMANTINO_LLAMA2_VOCAB", test) else { return };
    // The vocabulary as a GGUF file; our own import makes the tokenizer of it.
    let files = llamantino::model::gguf::tokenizer_files(&vocabulary).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let config = json!({"model_type": "llama", "vocab_size": 32000, "bos_token_id": 1, "eos_token_id": 2});
    for (name, content) in [
        ("tokenizer.json", &files.tokenizer),
        ("tokenizer_config.json", &files.tokenizer_config),
        ("config.json", &config),
    ] {
        std::fs::write(folder.path().join(name), content.to_string()).unwrap();
    }
    let tokenizer = Tokenizer::load(folder.path(), None).unwrap();
    check_labels("llama2", &tokenizer);
}
