//! Jinja templates: what transformers does with them, what hostile ones cannot do, and where answers are found.

use super::*;
use crate::data::template::tests::{conversation, marked};
use crate::data::template::{Conversation, Template};
use crate::data::testing::{byte_level_folder, metaspace_folder};

fn template(text: &str) -> Template {
    Template::of_jinja(JinjaTemplate::new("modello", text).unwrap())
}

fn names() -> SpecialNames {
    SpecialNames { bos: Some("<s>".into()), eos: Some("</s>".into()), ..SpecialNames::default() }
}

fn text(source: &str, content: &str) -> Result<String> {
    let messages = [Message::new(Role::User, content)];
    JinjaTemplate::new("modello", source).and_then(|template| template.text(&names(), &messages, true))
}

#[test]
fn python_idioms_of_chat_templates_work() {
    for (source, expected) in [
        ("{{ messages[0]['content'].strip() }}|", "ciao|"),
        ("{{ messages[0].content | trim | upper }}", "CIAO"),
        ("{{ messages[0].content.split('a')[0] }}|", "  ci|"),
        ("{% if 'system' in messages[0] %}1{% else %}0{% endif %}", "0"),
        ("{% if tools is not none %}1{% endif %}{% if documents %}2{% endif %}{% if missing %}3{% endif %}", ""),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "1"),
        ("{% for m in messages %}{% continue %}x{% endfor %}{{ messages | length }}", "1"),
        ("  {% if true %}\n  x\n  {% endif %}\ny\n", "  x\ny"),
        ("{{ bos_token }}{{ eos_token + 'x' }}{{ pad_token }}", "<s></s>x"),
        ("{{ messages[0] | tojson }}", "{\"role\": \"user\", \"content\": \"  ciao  \"}"),
        ("{{ '<a & \\'b\\'>' | tojson(ensure_ascii=False) }}", "\"<a & 'b'>\""),
        ("{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% else %}2024{% endif %}", "2024"),
        (
            "{{ messages[0].get('name', 'Ada') }}{% for k, v in messages[0].items() %}{{ k }}{% endfor %}",
            "Adarolecontent",
        ),
        ("{{ messages[::-1][0]['role'] }}{{ messages[1:] | length }}", "user0"),
    ] {
        assert_eq!(text(source, "  ciao  ").unwrap(), expected, "{source}");
    }
    let year: u32 = text("{{ strftime_now('%Y') }}", "").unwrap().parse().unwrap();
    assert!(year >= 2024);
}

#[test]
fn failing_templates_name_their_file_and_line() {
    for (source, expected) in [
        ("{{ 1 }}\n{% if %}", "modello, line 2: syntax error"),
        (
            "\n\n{{ raise_exception('solo italiano') }}",
            "modello, line 3: the template refuses this conversation: solo italiano",
        ),
        ("\n{{ messages[7].content }}", "modello, line 2: undefined value"),
        ("{% include 'altro' %}", "modello, line 1: "),
        ("{{ messages[0].content.fly() }}", "modello, line 1: unknown method"),
    ] {
        let error = text(source, "x").unwrap_err();
        assert!(error.message().starts_with(expected), "{source}: {error}");
    }
}

#[test]
fn templates_that_loop_or_grow_come_to_an_end() {
    let nested = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}x{% endfor %}"
        .to_owned()
        + "{% endfor %}{% endfor %}";
    for source in [
        nested.as_str(),
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
        "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
        "{{ 'a' * 999999999999 }}",
        "{{ range(999999999) | list | length }}",
        "{% for i in range(9999) %}{{ messages[0].content.replace('a', messages[0].content) }}{% endfor %}",
    ] {
        let error = text(source, &"a".repeat(20_000)).unwrap_err();
        assert!(error.message().starts_with("modello"), "{source}: {error}");
    }
    assert!(text(&nested, "").unwrap_err().message().contains("does not come to an end"));
}

#[test]
fn a_single_step_without_end_is_abandoned() {
    let source = format!("{{% set x = [1] %}}{}{{{{ x | length }}}}", "{% set x = x + x %}".repeat(99));
    let mut template = JinjaTemplate::new("modello", &source).unwrap();
    template.deadline = std::time::Duration::from_millis(200);
    let error = template.text(&names(), &[Message::new(Role::User, "x")], true).unwrap_err();
    assert_eq!(error.message(), "modello: the template does not come to an end");
}

#[test]
fn long_conversations_do_not_run_out_of_steps() {
    let source = "{% for m in messages %}{% if m.role == 'user' %}{{ 'U:' + m.content.strip() }}{% else %}{{ 'A:' + \
                  m.content | trim + eos_token }}{% endif %}{% endfor %}";
    let content = "parola ".repeat(2000);
    let messages: Vec<Message> = (0..2000)
        .map(|index| Message::new(if index % 2 == 0 { Role::User } else { Role::Assistant }, content.clone()))
        .collect();
    let written = JinjaTemplate::new("m", source).unwrap().text(&names(), &messages, false).unwrap();
    assert!(written.len() > 27_000_000);
}

#[test]
fn templates_see_the_real_text() {
    // Nothing in these messages looks like a control token, so that nothing of them is disguised.
    let tokenizer = metaspace_folder().load();
    let thinking = template(
        "{% for m in messages %}{% if '</think>' in m.content %}{{ m.content.split('</think>')[1].lstrip('\\n') }}\
         {% else %}{{ m.content | length }}:{% endif %}{% endfor %}</s>",
    );
    let messages = conversation(&[(Role::User, "è 1 < 2?"), (Role::Assistant, "<think>mah</think>\n\nsì")]);
    let mode = Mode::Prompt;
    let prompt = Conversation { messages: [messages.messages.clone(), vec![Message::new(Role::User, "e?")]].concat() };
    assert_eq!(thinking.render(&tokenizer, &prompt, mode).unwrap().text, "8:sì2:</s>");
}

#[test]
fn answers_are_found_by_what_follows_the_prompt() {
    let tokenizer = byte_level_folder().load();
    let four = conversation(&[
        (Role::System, "s"),
        (Role::User, "u"),
        (Role::Assistant, "a<|im_end|>"),
        (Role::User, "v"),
        (Role::Assistant, "b"),
    ]);
    let written = |source: &str| {
        let rendered = template(source).render(&tokenizer, &four, Mode::Training)?;
        Ok(marked(&tokenizer, &rendered))
    };
    let chatml = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}\
                  {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
    let found: Result<String> = written(chatml);
    assert_eq!(
        found.unwrap(),
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n⟦a<|im_end|><|im_end|>⟧\n\
         <|im_start|>user\nv<|im_end|>\n<|im_start|>assistant\n⟦b<|im_end|>⟧\n"
    );
    let generation = "{% for m in messages %}\n{% if m.role == 'assistant' %}\nA:{% generation %}{{ m.content }}\
                      {% endgeneration %} <|im_end|>\n{% else %}\n{{ m.content }}\n{% endif %}\n{% endfor %}";
    let found: Result<String> = written(generation);
    assert_eq!(found.unwrap(), "s\nu\nA:⟦a<|im_end|> <|im_end|>⟧\nv\nA:⟦b <|im_end|>⟧\n");
    let endless: Result<String> = written("{% for m in messages %}{{ m.role + m.content }}{% endfor %}");
    assert!(endless.unwrap_err().message().contains("message 3: no control token ends this answer"));
    let other = "{{ messages | length }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}";
    let other: Result<String> = written(other);
    assert!(other.unwrap_err().message().contains("message 3: the template writes the text before this answer"));
}

#[test]
fn a_template_that_moves_the_system_prompt_can_train_the_last_answer() {
    let tokenizer = byte_level_folder().load();
    // As Mistral does it: the system prompt goes into the last question.
    let source = "{% for m in messages %}{% if m.role == 'user' %}[{% if loop.revindex0 < 2 %}s: {% endif %}\
                  {{ m.content }}]{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}";
    let four = conversation(&[(Role::User, "u"), (Role::Assistant, "a"), (Role::User, "v"), (Role::Assistant, "b")]);
    let error = template(source).render(&tokenizer, &four, Mode::Training).unwrap_err();
    assert!(error.hint_text().unwrap().contains("trained = \"response\""), "{error}");
    let last = template(source).with_trained(Trained::Response).render(&tokenizer, &four, Mode::Training).unwrap();
    assert_eq!(marked(&tokenizer, &last), "[u]a<|end_of_text|>[s: v]⟦b<|end_of_text|>⟧");
    // A chat needs no trained stretches.
    template(source).render(&tokenizer, &Conversation { messages: four.messages[..3].to_vec() }, Mode::Prompt).unwrap();
}

#[test]
fn generation_tags_keep_their_white_space_control() {
    let source = "a \n{%- generation -%}\n b {%+ endgeneration %}\nc";
    let syntax = SyntaxConfig::default();
    assert_eq!(rewrite::rewritten(source, &syntax), "a \n{%- call _generation() -%}\n b {%+ endcall %}\nc");
    let elsewhere = "{# {% generation %} #}{{ '{% generation %}' }}{% raw %}{% generation %}{% endraw %}";
    assert_eq!(rewrite::rewritten(elsewhere, &syntax), elsewhere);
    assert_eq!(text(source, "").unwrap(), "ab c");
    assert!(text("{% generation %}{% generation %}x{% endgeneration %}{% endgeneration %}", "").is_err());
    assert!(text("\n{% generation %}x", "").unwrap_err().message().contains("line 2"));
}

#[test]
fn a_namespace_holds_what_cannot_grow_without_end() {
    for (tag, expected) in [
        ("{% set ns.n = 1, 2 %}{{ ns.n }}", "(1, 2)"),
        ("{% set ns.n = [1] + [2] if true else none -%}  {{ ns.n }}", "[1, 2]"),
        ("{% set ns.n = {'a': '%}'} %}{{ ns.n.a }}", "%}"),
        ("{%- set (ns.n, x) = (3, 4) -%}{{ ns.n }}{{ x }}", "34"),
        ("{% set ns.n %}a{{ 1 }}{% endset %}{{ ns.n }}", "a1"),
        ("{% set ns.n | upper %}a{% endset %}{{ ns.n }}", "A"),
        ("{% set ns.n = messages %}{{ ns.n | length }}", "1"),
        ("{% set ns.n = ns.n + 1 %}{% set n = ns %}{{ n.n }}", "1"),
    ] {
        let source = format!("{{% set ns = namespace(n=0) %}}{tag}");
        assert_eq!(text(&source, "").unwrap(), expected, "{tag}");
    }
    let deep = "{% for _ in range(100000) %}{% set ns.n = [ns.n] %}{% endfor %}{{ ns.n }}";
    for tag in [
        "{% set ns.n = ns %}{{ ns }}",
        "{% set ns.n = [{'a': ns}] %}{{ ns.n ~ '' }}",
        "{# {% #}{% set a = ns %}{{ '{%' }}{% set ns.n = a %}{{ ns | string }}",
        "{% set (x, ns.n) = (1, ns) %}{{ ns == ns }}",
        "{% set ns.n | default(ns, true) %}{% endset %}{{ ns }}",
        "{% set other = namespace(n=ns) %}{% set ns.n = other %}{{ ns | tojson }}",
        "{% set ns.n = [ns] | reverse %}{{ ns }}",
        deep,
    ] {
        let error = text(&format!("{{% set ns = namespace(n=0) %}}{tag}"), "").unwrap_err();
        assert!(error.message().contains("a namespace cannot hold"), "{tag}: {error}");
    }
}

#[test]
fn disguise_is_undone_byte_for_byte() {
    let names = ["</s>", "<s>", "<|im_end|>", "x"];
    for text in ["", " ", "</s>", "a</s>b<s>", "<|IM_end|>", "è<", "/s>", "xx", "\u{F0000}<s>\u{F0001}", " s> </"] {
        let mut disguise = Disguise::new(names, ["\u{F0000}\u{F0001}"]);
        let hidden = disguise.hide(text);
        assert!(!names.iter().any(|name| hidden.to_ascii_lowercase().contains(name)), "{hidden:?}");
        let revealed = disguise.reveal(&hidden);
        assert_eq!(revealed.text, text);
        for (place, character) in hidden.char_indices() {
            let found = text[revealed.place(place)..].chars().next().unwrap();
            assert!(found == character || STAND_IN.contains(&character), "{text:?} at {place}");
        }
    }
    assert_eq!(Disguise::new(names, []).hide("2 < 3, perché?"), "2 < 3, perché?");
}

const STAND_IN: std::ops::RangeInclusive<char> = '\u{F0000}'..='\u{FFFFD}';
