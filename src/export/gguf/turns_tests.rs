//! The texts around messages: those of every built-in template and of Jinja templates as models have them.

use super::*;
use crate::data::template::builtin_names;
use crate::data::testing::{byte_level_folder, metaspace_folder};

fn of(template: &Template, tokenizer: &Tokenizer) -> Turns {
    Turns::of(template, tokenizer).unwrap()
}

/// A template of this Jinja text.
fn jinja(text: &str) -> Template {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("t.jinja");
    std::fs::write(&path, text).unwrap();
    Template::from_file(&path).unwrap()
}

#[test]
fn every_built_in_template_has_fixed_texts() {
    let folder = metaspace_folder();
    let tokenizer = folder.load();
    for name in builtin_names() {
        let template = Template::builtin(name).unwrap();
        let turns = of(&template, &tokenizer);
        assert_eq!(turns.later.is_none(), template.is_instruction(), "{name}");
        assert!(turns.bos, "{name}");
    }
    let turns = of(&Template::builtin("llamantino-chat").unwrap(), &tokenizer);
    assert_eq!(turns.first[1], "[/INST]");
    assert!(
        turns.first[0].starts_with(" [INST]<<SYS>>\nSei un assistente") && turns.first[0].ends_with("<</SYS>>\n\n")
    );
    assert_eq!(turns.first_with_system.unwrap(), [" [INST]<<SYS>>\n", "\n<</SYS>>\n\n", "[/INST]"]);
    assert_eq!(turns.answer, [" ", " </s>"]);
    assert_eq!(turns.later.unwrap(), [" <s> [INST]", "[/INST]"]);
}

const CHATML: &str = "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}\
    {{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}{{ '<|im_start|>' + message['role'] + '\n' + \
    message['content'] + '<|im_end|>' + '\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

#[test]
fn chatml_with_a_default_system_prompt_is_read() {
    let folder = byte_level_folder();
    let turns = of(&jinja(CHATML), &folder.load());
    let system = "<|im_start|>system\nYou help.<|im_end|>\n";
    assert_eq!(turns.first, [format!("{system}<|im_start|>user\n"), "<|im_end|>\n<|im_start|>assistant\n".into()]);
    let [before, between, _] = turns.first_with_system.unwrap();
    assert_eq!((before.as_str(), between.as_str()), ("<|im_start|>system\n", "<|im_end|>\n<|im_start|>user\n"));
    assert_eq!(turns.answer, ["", "<|im_end|>\n"]);
    assert_eq!(turns.later.unwrap()[0], "<|im_start|>user\n");
}

/// A template whose text depends on where a message stands has no fixed texts, and says so instead of guessing.
#[test]
fn a_template_that_counts_is_refused() {
    let folder = byte_level_folder();
    let counting = CHATML.replace("'<|im_start|>' +", "'<' ~ loop.length ~ '>' +");
    assert_eq!(Turns::of(&jinja(&counting), &folder.load()), None);
    let folded = CHATML.replace("message['content'] +", "(message['content'] | upper) +");
    assert_eq!(Turns::of(&jinja(&folded), &folder.load()), None);
}

/// What is written as Jinja renders as the template itself, with and without a system prompt.
#[test]
fn the_jinja_form_writes_the_same_ids() {
    let folders = [metaspace_folder(), byte_level_folder()];
    for tokenizer in folders.iter().map(|folder| folder.load()) {
        for name in builtin_names() {
            let template = Template::builtin(name).unwrap();
            let turns = of(&template, &tokenizer);
            let again = jinja(&turns.jinja());
            let mut turn_sets = vec![vec![user(0)], vec![user(0), answer(0), user(1)]];
            turn_sets.retain(|set| set.len() == 1 || turns.later.is_some());
            for messages in turn_sets {
                let ids = |template: &Template, system: Option<Message>| {
                    let messages = system.into_iter().chain(messages.clone()).collect();
                    template.render(&tokenizer, &Conversation { messages }, Mode::Prompt).unwrap().ids
                };
                assert_eq!(ids(&again, None), ids(&template, None), "{name}");
                if turns.first_with_system.is_some() {
                    let given = Some(system());
                    assert_eq!(ids(&again, given.clone()), ids(&template, given), "{name} with a system prompt");
                }
            }
        }
    }
}
