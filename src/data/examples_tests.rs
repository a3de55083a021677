//! Trained tokens of twenty examples, counted by hand, and the checks that stop a run.

#![allow(clippy::single_range_in_vec_init)] // One trained stretch is meant.

use super::*;
use crate::data::config::DataConfig;
use crate::data::formats::{by_name, Row};
use crate::data::testing::byte_level_folder;

/// Records with a format, a template, and by hand: all tokens, and those that are trained. The tokenizer is byte-level
/// with merges of `io`, ` d`, `er`, `è`, ` è`, `<|`, ` di`; every other byte is a token. BOS and EOS are one each.
const BY_HAND: &[(&str, &str, &str, usize, usize)] = &[
    // "a" " " "b" and EOS behind BOS: the completion " b" and EOS are trained.
    ("completion", "completion", r#"{"prompt": "a", "completion": " b"}"#, 5, 3),
    // "cio" → c, io.
    ("completion", "completion", r#"{"prompt": "xy", "completion": "cio"}"#, 1 + 2 + 2 + 1, 3),
    // " di" is one token, "re" two: " dire" → " di", r, e.
    ("completion", "completion", r#"{"prompt": "d", "completion": " dire"}"#, 1 + 1 + 3 + 1, 4),
    // "è" is one token.
    ("completion", "completion", r#"{"prompt": "c'", "completion": "è"}"#, 1 + 2 + 1 + 1, 2),
    // A smiling face takes four bytes.
    ("completion", "completion", r#"{"prompt": "a", "completion": "😊"}"#, 1 + 1 + 4 + 1, 5),
    ("completion", "completion", r#"{"prompt": "abc", "completion": "d"}"#, 1 + 3 + 1 + 1, 2),
    ("completion", "completion", r#"{"prompt": "a\nb", "completion": "\n"}"#, 0, 0),
    ("completion", "completion", r#"{"prompt": "zio", "completion": "zio zio"}"#, 1 + 2 + 5 + 1, 6),
    // ExtremITA: the line end before the answer is trained with it. Only trained tokens are counted by hand.
    ("dolly", "extremita", r#"{"instruction": "q", "context": "", "response": "no"}"#, usize::MAX, 1 + 2 + 1),
    ("dolly", "extremita", r#"{"instruction": "q", "context": "c", "response": "sì"}"#, usize::MAX, 1 + 3 + 1),
    ("alpaca", "llamantino-instruct", r#"{"instruction": "q", "input": "", "output": "uno"}"#, usize::MAX, 3 + 1),
    ("alpaca", "llamantino-instruct", r#"{"instruction": "q", "input": "i", "output": "due\ndue"}"#, usize::MAX, 7 + 1),
    ("alpaca", "llamantino-instruct", r#"{"instruction": "q", "input": " ", "output": "io"}"#, usize::MAX, 1 + 1),
    (
        "dolly",
        "llamantino-instruct-usage",
        r#"{"instruction": "q", "context": "", "response": "a b"}"#,
        usize::MAX,
        3 + 1,
    ),
    // LLaMAntino's chat: a space, the answer, a space and EOS for each turn.
    ("ultrachat", "llamantino-chat", r#"{"data": ["q", "uno"]}"#, usize::MAX, 1 + 3 + 1 + 1),
    ("ultrachat", "llamantino-chat", r#"{"data": ["q", "uno", "q", "tu"]}"#, usize::MAX, 6 + 1 + 2 + 1 + 1),
    ("ultrachat", "llamantino-chat", r#"{"data": ["q", "x", "q", "y", "q", "z"]}"#, usize::MAX, 3 * 4),
    // " di" is a token of its own: the space of the template goes into it.
    ("ultrachat", "llamantino-chat", r#"{"data": ["q", "di"]}"#, usize::MAX, 1 + 1 + 1),
    ("ultrachat", "llamantino-chat-70b", r#"{"data": ["q", "è"]}"#, usize::MAX, 1 + 1 + 1),
    (
        "messages",
        "llamantino-chat",
        r#"{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "sì"}]}"#,
        usize::MAX,
        1 + 3 + 1 + 1,
    ),
    (
        "evalita",
        "extremita",
        r#"{"id": "1", "task": "haspeede", "text": "t", "target": "odio"}"#,
        usize::MAX,
        1 + 3 + 1,
    ),
];

fn record(format: &str, json: &str) -> Result<Record, String> {
    let row = Row::Object(serde_json::from_str(json).unwrap());
    (by_name(format).unwrap().unwrap().parse)(row)
}

fn recognised(format: &str) -> Recognised {
    let format = by_name(format).unwrap().unwrap();
    Recognised { format: format.name, summary: format.summary, container: "test", template: format.template }
}

fn examples<'a>(format: &str, change: impl Fn(&mut Source), tokenizer: &'a Tokenizer) -> Examples<'a> {
    let mut source = DataConfig::of_paths(&["a".into()]).sources().remove(0);
    change(&mut source);
    Examples::new(&source, recognised(format), (tokenizer, Path::new("no model")), false).unwrap()
}

#[test]
fn trained_tokens_are_those_counted_by_hand() {
    let tokenizer = byte_level_folder().load();
    let mut counted = 0;
    for &(format, template, json, tokens, trained) in BY_HAND {
        let examples = examples(format, |source| source.template = template.into(), &tokenizer);
        let record = match record(format, json) {
            Ok(record) => record,
            // A completion of nothing but a line end is no record.
            Err(reason) => {
                assert_eq!((tokens, trained), (0, 0), "{json}: {reason}");
                continue;
            }
        };
        let Outcome::Made(document) = examples.make(&record, 1) else { panic!("{json}") };
        let found: usize = document.spans.iter().map(ExactSizeIterator::len).sum();
        assert_eq!(found, trained, "{json} in {template}: {:?}", document.ids);
        assert!(tokens == usize::MAX || document.ids.len() == tokens, "{json}: {:?}", document.ids);
        let eos = tokenizer.special().eos.as_ref().unwrap().id;
        assert!(document.spans.iter().all(|span| document.ids[span.end - 1] == eos), "{json}");
        counted += 1;
    }
    assert_eq!(counted, 20);
}

#[test]
fn an_example_that_would_not_be_trained_is_a_fault() {
    let tokenizer = byte_level_folder().load();
    let examples = examples("dolly", |source| source.template = "extremita".into(), &tokenizer);
    let record = record("dolly", r#"{"instruction": "q", "response": "b"}"#).unwrap();
    let rendered = |spans: &[std::ops::Range<usize>]| Rendered {
        text: "Un esempio".into(),
        ids: vec![259, 10, 11, 260, 12],
        trained: Vec::new(),
        spans: spans.iter().map(|tokens| crate::data::template::Span { tokens: tokens.clone(), text: 0..1 }).collect(),
    };
    let eos = tokenizer.special().eos.as_ref().unwrap().id;
    let mut good = rendered(&[2..4]);
    good.ids[3] = eos;
    for (rendered, reason) in [
        (rendered(&[]), "no token of this example would be trained: \"Un esempio\""),
        (rendered(&[2..2]), "no token of this example would be trained"),
        (rendered(&[1..3]), "no end-of-answer token would be trained"),
        (Rendered { ids: vec![259, 10, 999_999, eos, 12], ..good.clone() }, "token 999999, but the model has"),
    ] {
        let Outcome::Fault(what) = examples.check(rendered, &record, 3) else { panic!("{reason}") };
        assert!(what.contains(reason), "{what}");
    }
    assert!(matches!(examples.check(good, &record, 3), Outcome::Made(_)));
}

#[test]
fn the_system_prompt_is_the_conversations_own_or_the_configured_one_or_the_templates() {
    let tokenizer = byte_level_folder().load();
    let conversation = record("ultrachat", r#"{"data": ["q", "a"]}"#).unwrap();
    let own = record("messages", r#"{"messages": [{"role": "system", "content": "mio"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}"#).unwrap();
    let text = |record: &Record, system: Option<&str>| {
        let change = |source: &mut Source| {
            source.template = "llamantino-chat".into();
            source.system = system.map(str::to_owned);
        };
        let Outcome::Made(document) = examples("messages", change, &tokenizer).make(record, 1) else { panic!() };
        tokenizer.decode(&document.ids, true).unwrap()
    };
    assert!(text(&conversation, None).contains("Sei un assistente disponibile"));
    assert!(text(&conversation, Some("altro")).contains("<<SYS>>\naltro\n<</SYS>>"));
    assert!(!text(&conversation, Some("")).contains("SYS"));
    assert!(text(&own, Some("altro")).contains("<<SYS>>\nmio\n<</SYS>>"));
}

#[test]
fn another_choice_of_trained_tokens_is_taken() {
    let tokenizer = byte_level_folder().load();
    let conversation = record("ultrachat", r#"{"data": ["q", "a", "q", "b"]}"#).unwrap();
    let made = |trained: Option<Trained>| {
        let change = |source: &mut Source| {
            source.template = "llamantino-chat".into();
            source.trained = trained;
        };
        let Outcome::Made(document) = examples("ultrachat", change, &tokenizer).make(&conversation, 1) else {
            panic!()
        };
        document
    };
    let (assistant, response, all) = (made(None), made(Some(Trained::Response)), made(Some(Trained::All)));
    assert_eq!((assistant.spans.len(), response.spans.len(), all.spans.len()), (2, 1, 1));
    assert_eq!(assistant.spans[1], response.spans[0]);
    assert_eq!((all.spans[0].clone(), all.kind), (1..all.ids.len(), Kind::Whole));
    assert_eq!(assistant.ids, all.ids);
}
