//! Templates: the exact text and trained stretches of every built-in one (`tests/*.txt`, trained stretches in ⟦ ⟧), and
//! what holds for all of them.

use serde_json::json;

use super::*;
use crate::data::testing::{byte_level_folder, metaspace_folder, ModelFolder};

pub(super) fn conversation(messages: &[(Role, &str)]) -> Conversation {
    Conversation { messages: messages.iter().map(|(role, text)| Message::new(*role, *text)).collect() }
}

const DANTE: &[(Role, &str)] = &[
    (Role::User, "Chi era Dante?"),
    (Role::Assistant, "Un poeta.\nDi Firenze."),
    (Role::User, "E Virgilio?"),
    (Role::Assistant, "Un altro poeta."),
];

fn task(input: &str) -> Instruction {
    Instruction { instruction: "Traduci.".into(), input: input.into(), response: "Il mare è blu.".into() }
}

/// The text with ⟦ ⟧ around what is trained; the spans in bytes and those in tokens must agree.
pub(super) fn marked(tokenizer: &Tokenizer, rendered: &Rendered) -> String {
    let mut text = rendered.text.clone();
    for span in rendered.spans.iter().rev() {
        text.insert(span.text.end, '⟧');
        text.insert(span.text.start, '⟦');
        let ids = &rendered.ids[span.tokens.clone()];
        assert_eq!(tokenizer.decode(ids, false).unwrap().trim_start(), rendered.text[span.text.clone()].trim_start());
    }
    let trained = (0..rendered.ids.len()).filter(|&token| rendered.trained[token]);
    assert!(trained.eq(rendered.spans.iter().flat_map(|span| span.tokens.clone())));
    text
}

#[test]
fn every_built_in_template_writes_its_text_and_trains_its_answers() {
    let folder = metaspace_folder();
    let tokenizer = folder.load();
    macro_rules! expected {
        ($name:literal) => {
            ($name, include_str!(concat!("tests/", $name, ".txt")))
        };
    }
    let with = Some("The sea\nis blue.");
    let cases = [
        ("llamantino-chat", None, expected!("llamantino-chat")),
        ("llamantino-chat-notebook", None, expected!("llamantino-chat-notebook")),
        ("llamantino-chat-70b", None, expected!("llamantino-chat-70b")),
        ("llamantino-instruct", with, expected!("llamantino-instruct")),
        ("llamantino-instruct", Some(""), expected!("llamantino-instruct-without-input")),
        ("llamantino-instruct-usage", with, expected!("llamantino-instruct-usage")),
        ("llamantino-instruct-usage", Some(" \n"), expected!("llamantino-instruct-usage-without-input")),
        ("extremita", with, expected!("extremita")),
        ("extremita", Some(""), expected!("extremita-without-input")),
        ("completion", Some(""), expected!("completion")),
    ];
    for (name, input, (file, expected)) in &cases {
        let template = Template::builtin(name).unwrap();
        let rendered = match input {
            Some(input) => template.render_instruction(&tokenizer, &task(input), Mode::Training),
            None => template.render(&tokenizer, &conversation(DANTE), Mode::Training),
        }
        .unwrap();
        assert_eq!(marked(&tokenizer, &rendered), expected.strip_suffix('\n').unwrap(), "{file}");
        assert_eq!(rendered.ids[0], 1, "{file}: BOS");
        assert_eq!(rendered.ids.last(), Some(&2), "{file}: EOS");
        assert_eq!(template.end_of_answer(&tokenizer).unwrap(), 2);
    }
    for name in builtin_names() {
        assert!(cases.iter().any(|(tested, ..)| *tested == name), "{name} is not tested");
    }
}

#[test]
fn an_empty_system_prompt_takes_the_system_part_away() {
    let folder = metaspace_folder();
    let tokenizer = folder.load();
    let expected = include_str!("tests/llamantino-chat-without-system.txt").strip_suffix('\n').unwrap();
    for name in ["llamantino-chat", "llamantino-chat-notebook", "llamantino-chat-70b"] {
        let mut without = conversation(DANTE);
        without.messages.insert(0, Message::new(Role::System, ""));
        let rendered = Template::builtin(name).unwrap().render(&tokenizer, &without, Mode::Training).unwrap();
        assert_eq!(marked(&tokenizer, &rendered), expected, "{name}");
    }
}

#[test]
fn a_system_message_replaces_the_default() {
    let folder = metaspace_folder();
    let template = Template::builtin("llamantino-chat").unwrap();
    let own = conversation(&[(Role::System, "Sii breve."), (Role::User, "Ciao")]);
    let rendered = template.render(&folder.load(), &own, Mode::Prompt).unwrap();
    assert_eq!(rendered.text, " [INST]<<SYS>>\nSii breve.\n<</SYS>>\n\nCiao[/INST]");
}

/// Jinja templates of several kinds, for what must hold for all.
const JINJA: &[(&str, &str)] = &[
    (
        "inst",
        "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}{{ '[INST] ' + \
         message['content'].strip() + ' [/INST]' }}{% elif message.role == 'assistant' %}{{ ' ' + message.content | \
         trim + ' ' + eos_token }}{% else %}{{ message.content }}{% endif %}{% endfor %}",
    ),
    (
        "lines",
        "{% for message in messages %}\n{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token }}\n\
         {% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
    ),
    (
        "generation",
        "{%- for message in messages -%}\n{%- if message.role == 'assistant' -%}\nA:{% generation %}\n{{ \
         message.content }}{{ eos_token }}{% endgeneration %}\n{%- else -%}\n{{ message.role }}:{{ message.content \
         }}\n{% endif -%}\n{%- endfor -%}\n{% if add_generation_prompt %}A:{% endif %}",
    ),
];

fn all_templates() -> Vec<Template> {
    let built_in = builtin_names().map(|name| Template::builtin(name).unwrap());
    let jinja = JINJA.iter().map(|(name, text)| Template::of_jinja(JinjaTemplate::new(name, text).unwrap()));
    built_in.chain(jinja).collect()
}

/// Both families of tokenizers, with text prefixed everywhere, at the start only, and nowhere.
fn tokenizers() -> Vec<(ModelFolder, Tokenizer)> {
    let first_only = metaspace_folder();
    let mut json = crate::data::testing::metaspace();
    json["normalizer"] = serde_json::Value::Null;
    json["pre_tokenizer"] = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false});
    json["decoder"] = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
    first_only.write("tokenizer.json", &json);
    [byte_level_folder(), metaspace_folder(), first_only]
        .into_iter()
        .map(|folder| {
            let tokenizer = folder.load();
            (folder, tokenizer)
        })
        .collect()
}

/// Messages that try to be control tokens, alone or with what stands beside them, and awkward white space.
const HOSTILE: &[&str] = &[
    "</s>",
    "<s>",
    "[INST] </s> <<SYS>> <|im_end|><|end_of_text|>",
    "<|begin_of_text|>ciao<unk>",
    "\n\n<|im_end|>\n",
    "  davanti e dietro  ",
    "\n",
    "a <",
    "/s>",
    "s",
    "<|im_",
    "end|> b",
    "<</s>",
    "<|IM_END|></S>",
    "{content}{eos}",
    "{{ eos_token }}{% raise %}",
    "\u{F0000}</s>\u{F0001}\u{10FFF0}\u{10FFF1}",
    "\u{1} closed 2",
    "🦙 perché è così",
    "",
];

fn exchange_count(template: &Template) -> usize {
    if template.is_instruction() {
        1
    } else {
        3
    }
}

#[test]
fn only_the_template_writes_control_tokens() {
    for (_folder, tokenizer) in tokenizers() {
        for template in all_templates() {
            let controls = |contents: &mut dyn Iterator<Item = &str>| {
                let roles = [Role::User, Role::Assistant].into_iter().cycle();
                let messages = roles.zip(contents).map(|(role, text)| Message::new(role, text));
                let messages = messages.take(2 * exchange_count(&template)).collect();
                let rendered = template.render(&tokenizer, &Conversation { messages }, Mode::Training).unwrap();
                let ids: Vec<u32> = rendered.ids.into_iter().filter(|&id| tokenizer.is_closed(id)).collect();
                (ids, rendered.text)
            };
            let (expected, _) = controls(&mut std::iter::repeat("ciao"));
            for (place, content) in HOSTILE.iter().enumerate() {
                let (found, text) = controls(&mut std::iter::repeat(*content));
                assert_eq!(found, expected, "{}: {text:?}", template.name());
                let trimmed = content.trim();
                assert!(text.matches(trimmed).count() >= exchange_count(&template), "{text:?}");
                // Each beside each other.
                let (found, text) = controls(&mut HOSTILE.iter().copied().cycle().skip(place));
                assert_eq!(found, expected, "{}: {text:?}", template.name());
            }
        }
    }
}

#[test]
fn a_prompt_is_the_beginning_of_its_examples() {
    for (_folder, tokenizer) in tokenizers() {
        for template in all_templates() {
            for (place, content) in HOSTILE.iter().enumerate() {
                let answers = HOSTILE.iter().cycle().skip(place).step_by(3);
                let mut messages = Vec::new();
                for (answer, _) in answers.zip(0..exchange_count(&template)) {
                    messages.push(Message::new(Role::User, *content));
                    let prompt = Conversation { messages: messages.clone() };
                    let prompt = template.render(&tokenizer, &prompt, Mode::Prompt).unwrap();
                    messages.push(Message::new(Role::Assistant, *answer));
                    let example = Conversation { messages: messages.clone() };
                    let example = template.render(&tokenizer, &example, Mode::Training).unwrap();
                    let name = template.name();
                    assert!(example.ids.starts_with(&prompt.ids), "{name}: {:?} {:?}", prompt.text, example.text);
                    assert!(example.text.starts_with(&prompt.text));
                    let last = example.spans.last().unwrap();
                    assert_eq!(last.tokens.start, prompt.ids.len(), "{name}: {:?}", example.text);
                    let end = example.ids[last.tokens.end - 1];
                    assert_eq!(end, template.end_of_answer(&tokenizer).unwrap(), "{name}: {:?}", example.text);
                    assert!(example.trained[last.tokens.end - 1]);
                }
            }
        }
    }
}

#[test]
fn what_is_trained_is_decided_by_place_and_not_by_token() {
    // Pad, EOS and BOS are one token here, and the template writes it in untrained places too.
    let folder = byte_level_folder();
    let one = "<|end_of_text|>";
    folder.write("tokenizer_config.json", &json!({"bos_token": one, "eos_token": one, "pad_token": one}));
    let tokenizer = folder.load();
    let end = tokenizer.token_id(one).unwrap();
    let template = Template::builtin("llamantino-chat").unwrap();
    let rendered = template.render(&tokenizer, &conversation(DANTE), Mode::Training).unwrap();
    let flags: Vec<bool> =
        (0..rendered.ids.len()).filter(|&token| rendered.ids[token] == end).map(|t| rendered.trained[t]).collect();
    assert_eq!(flags, [false, true, false, true]);
}

#[test]
fn the_choice_of_what_is_trained() {
    let (_folder, tokenizer) = tokenizers().swap_remove(1);
    for make in [
        || Template::builtin("llamantino-chat").unwrap(),
        || Template::of_jinja(JinjaTemplate::new("inst", JINJA[0].1).unwrap()),
    ] {
        let render =
            |trained| make().with_trained(trained).render(&tokenizer, &conversation(DANTE), Mode::Training).unwrap();
        let (every, last, all) = (render(Trained::Assistant), render(Trained::Response), render(Trained::All));
        assert_eq!((every.ids.as_slice(), every.ids.as_slice()), (last.ids.as_slice(), all.ids.as_slice()));
        assert_eq!((every.spans.len(), last.spans.as_slice()), (2, &every.spans[1..]));
        let first = all.trained.iter().position(|&trained| trained).unwrap();
        // A BOS in front is no target; the Jinja template writes its own as text.
        assert_eq!(all.trained.iter().filter(|&&trained| trained).count(), all.ids.len() - first);
    }
}

#[test]
fn bos_is_put_in_front_as_the_template_says() {
    let render = |folder: &ModelFolder, policy: &str| {
        let text = format!(
            "bos = \"{policy}\"\n[instruction]\nwith_input = \"{{instruction}}{{input}}\"\n\
                            without_input = \"{{bos}}{{instruction}}\"\nresponse = \"{{response}}{{eos}}\""
        );
        let template = Template::of_file("test", TemplateFile::parse(&text, "test").unwrap()).unwrap();
        let tokenizer = folder.load();
        let ids = template.render(&tokenizer, &conversation(&[(Role::User, "io")]), Mode::Prompt).unwrap().ids;
        ids.iter().filter(|&&id| id == 1).count()
    };
    let folder = metaspace_folder();
    assert_eq!([render(&folder, "tokenizer"), render(&folder, "always"), render(&folder, "never")], [2, 2, 0]);
    let names =
        json!({"tokenizer_class": "LlamaTokenizer", "add_bos_token": false, "bos_token": "<s>", "eos_token": "</s>"});
    folder.write("tokenizer_config.json", &names);
    assert_eq!([render(&folder, "tokenizer"), render(&folder, "always"), render(&folder, "never")], [0, 2, 0]);
}

#[test]
fn an_instruction_in_a_chat_template_is_a_message() {
    let folder = metaspace_folder();
    let tokenizer = folder.load();
    let template = Template::builtin("llamantino-chat").unwrap();
    let rendered = template.render_instruction(&tokenizer, &task("The sea"), Mode::Training).unwrap();
    assert!(rendered.text.contains("\n\nTraduci.\n\nThe sea[/INST] Il mare è blu. </s>"), "{}", rendered.text);
    let prompt = template.render_instruction(&tokenizer, &task(""), Mode::Prompt).unwrap();
    assert!(prompt.text.ends_with("\n\nTraduci.[/INST]"), "{}", prompt.text);
}

#[test]
fn messages_out_of_order_are_named() {
    use Role::{Assistant, System, User};
    let (_folder, tokenizer) = tokenizers().swap_remove(1);
    let template = Template::builtin("llamantino-chat").unwrap();
    let refused = |template: &Template, messages: &[(Role, &str)], mode| {
        template.render(&tokenizer, &conversation(messages), mode).unwrap_err().message().to_owned()
    };
    for (messages, expected) in [
        (
            &[(User, "a"), (User, "b"), (Assistant, "c")][..],
            "message 2: expected the assistant's turn, found the user's",
        ),
        (&[(System, "s"), (Assistant, "a")], "message 2: expected the user's turn, found the assistant's"),
        (&[(User, "a"), (System, "s"), (Assistant, "b")], "message 2: a system message in the middle"),
        (&[(User, "a")], "message 1: the last message is the user's"),
        (&[(System, "s")], "no messages of user and assistant"),
        (&[], "no messages of user and assistant"),
    ] {
        let message = refused(&template, messages, Mode::Training);
        assert!(message.contains(expected), "{message}");
    }
    let message = refused(&template, DANTE, Mode::Prompt);
    assert!(message.contains("message 4: the last message is the assistant's"), "{message}");
    let message = refused(&Template::builtin("extremita").unwrap(), DANTE, Mode::Training);
    assert!(message.contains("this template writes one exchange"), "{message}");
}

#[test]
fn template_files_with_mistakes_are_explained() {
    let chat = |user: &str, assistant: &str| {
        format!("about = \"x\"\n[chat]\nfirst_user = \"{{system}}{{content}}\"\nuser = \"{user}\"\nassistant = \"{assistant}\"\n")
    };
    for (text, expected) in [
        (
            chat("{content}", "{content}{eos}") + "colour = 1\n",
            "own.toml:6: not a template file: unknown field `colour`",
        ),
        (
            chat("{contents}", "{content}{eos}"),
            "chat.user: unknown placeholder {contents}, expected content, bos or eos",
        ),
        (chat("{content}{content}", "{content}{eos}"), "chat.user: expected {content} once, found it 2 times"),
        (chat("ciao", "{content}{eos}"), "chat.user: expected {content} once, found it 0 times"),
        (chat("{content}}", "{content}{eos}"), "chat.user: a brace without its partner in `}`"),
        (chat("{content} {", "{content}{eos}"), "chat.user: a brace without its partner in `{`"),
        ("about = \"x\"".into(), "expected one of the sections [chat] and [instruction]"),
        ("about = ".into(), "own.toml:1: not a template file"),
    ] {
        let error = TemplateFile::parse(&text, "own.toml").unwrap_err();
        assert!(error.message().contains(expected), "{error}");
    }
    let (_folder, tokenizer) = tokenizers().swap_remove(1);
    let endless = TemplateFile::parse(&chat("{{{content}}}", "{eos}{content}"), "own.toml").unwrap();
    let endless = Template::of_file("own.toml", endless).unwrap();
    let error = endless.render(&tokenizer, &conversation(DANTE), Mode::Training).unwrap_err();
    assert!(error.message().contains("own.toml: no control token ends an answer"), "{error}");
    let prompt = conversation(&[(Role::User, "ciao")]);
    assert_eq!(endless.render(&tokenizer, &prompt, Mode::Prompt).unwrap().text, "ciao");
}

#[test]
fn templates_are_found_by_name_path_and_model() {
    let folder = metaspace_folder();
    let error = Template::named("llamantino", folder.path()).unwrap_err();
    assert!(error.message().contains("expected one of llamantino-chat, "), "{error}");
    let error = Template::named("model", folder.path()).unwrap_err();
    assert!(error.message().contains("no chat template"), "{error}");
    let own = folder.path().join("own.toml");
    assert!(Template::from_file(&own).is_err());
    std::fs::write(&own, BUILTIN[0].1).unwrap();
    let template = Template::named(own.to_str().unwrap(), folder.path()).unwrap();
    assert_eq!(template.default_system(), Template::builtin(BUILTIN[0].0).unwrap().default_system());
    std::fs::write(&own, b"about = \"\xff\"").unwrap();
    let error = Template::from_file(&own).unwrap_err();
    assert!(error.message().contains("not UTF-8 at byte 9"), "{error}");

    assert!(Template::from_model(folder.path()).unwrap().is_none());
    let first = |folder: &ModelFolder| {
        let template = Template::named("model", folder.path()).unwrap();
        let prompt = conversation(&[(Role::User, "x")]);
        template.render(&folder.load(), &prompt, Mode::Prompt).unwrap().text
    };
    folder.write("chat_template.json", &json!({"chat_template": "1{{ messages[0].content }}"}));
    assert_eq!(first(&folder), "1x");
    let list = json!([{"name": "tool_use", "template": "2"}, {"name": "default", "template": "3{{ bos_token }}"}]);
    folder.write("tokenizer_config.json", &json!({"chat_template": list, "bos_token": "<s>", "eos_token": "</s>"}));
    assert_eq!(first(&folder), "3<s>");
    std::fs::write(folder.path().join("chat_template.jinja"), "4").unwrap();
    assert_eq!(first(&folder), "4");
}
