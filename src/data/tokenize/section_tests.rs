//! Sections: as the tokenizers library encodes the whole text, but for what is closed and what is cut.

use serde_json::json;

use super::*;
use crate::data::testing::{byte_level, byte_level_folder, metaspace, metaspace_folder, ModelFolder};

/// Ids of template text with marks.
fn marked(tokenizer: &Tokenizer, text: &str, marks: &[usize]) -> MarkedIds {
    tokenizer.encode_marked(text, &tokenizer.find_controls(text), marks).unwrap()
}

/// Metaspace as a pre-tokenizer that puts a space before the first word of a text only.
fn first_only_folder() -> ModelFolder {
    let folder = metaspace_folder();
    let mut json = metaspace();
    json["normalizer"] = Value::Null;
    json["pre_tokenizer"] = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false});
    folder.write("tokenizer.json", &json);
    folder
}

#[test]
fn template_text_is_encoded_as_the_library_does_it() {
    for folder in [metaspace_folder(), first_only_folder(), byte_level_folder()] {
        let tokenizer = folder.load();
        for text in [
            "dio</s> dio<s> <s>dio </s>",
            "</s></s>dio è  ",
            " <|im_end|>\n\nio<|end_of_text|> io <|im_end|><|begin_of_text|>",
            "un <dio> </s",
            "",
        ] {
            let library = tokenizer.inner().encode(text, false).unwrap();
            assert_eq!(tokenizer.encode_template(text).unwrap(), library.get_ids(), "{text:?}");
        }
    }
}

#[test]
fn control_tokens_swallow_white_space_as_their_file_says() {
    let mut json = byte_level();
    json["added_tokens"][1]["rstrip"] = true.into();
    json["added_tokens"][2]["lstrip"] = true.into();
    let tokenizer = ModelFolder::new(&json).load();
    for text in ["a <|end_of_text|> \n b", "a \n <|im_end|> b", "<|end_of_text|>  <|im_end|>", " <|im_end|>"] {
        let library = tokenizer.inner().encode(text, false).unwrap();
        assert_eq!(marked(&tokenizer, text, &[]).ids, library.get_ids(), "{text:?}");
        let marks: Vec<usize> = (0..=text.len())
            .filter(|&at| {
                tokenizer.find_controls(text).iter().all(|control| at <= control.range.start || at >= control.range.end)
            })
            .collect();
        assert_eq!(marked(&tokenizer, text, &marks).marks.len(), marks.len());
    }
}

#[test]
fn the_longest_of_the_leftmost_names_is_found() {
    let mut json = byte_level();
    let mut longer = json["added_tokens"][2].clone();
    let id = json["added_tokens"].as_array().unwrap().last().unwrap()["id"].as_u64().unwrap() + 1;
    (longer["content"], longer["id"]) = ("<|im_end|>|>".into(), id.into());
    json["added_tokens"].as_array_mut().unwrap().push(longer);
    let tokenizer = ModelFolder::new(&json).load();
    let found = tokenizer.find_controls("è<|im_end|>|><|im_end|><|im_end");
    let end = tokenizer.token_id("<|im_end|>").unwrap();
    assert_eq!(
        found.iter().map(|place| (place.range.clone(), place.id)).collect::<Vec<_>>(),
        [(2..14, id as u32), (14..24, end)]
    );
}

#[test]
fn a_token_across_a_mark_is_cut_there_and_nowhere_else() {
    let tokenizer = byte_level_folder().load();
    let ids = |text: &str| tokenizer.encode_plain(text).unwrap();
    // `io` is one token.
    assert_eq!(ids("dio").len(), 2);
    assert_eq!(marked(&tokenizer, "dio", &[1]), MarkedIds { ids: ids("dio"), marks: vec![1] });
    let cut = marked(&tokenizer, "dio dio", &[2]);
    assert_eq!(cut.ids, [ids("di"), ids("o dio")].concat());
    assert_eq!(cut.marks, [2]);
    let twice = marked(&tokenizer, "dio<|im_end|>io", &[0, 2, 3, 13, 14, 15]);
    let end = tokenizer.token_id("<|im_end|>").unwrap();
    assert_eq!(twice.ids, [ids("di"), ids("o"), vec![end], ids("i"), ids("o")].concat());
    assert_eq!(twice.marks, [0, 2, 3, 4, 5, 6]);
}

#[test]
fn text_behind_a_cut_gets_no_space_of_its_own() {
    for folder in [metaspace_folder(), first_only_folder()] {
        let tokenizer = folder.load();
        // `▁dio` is one token, and `ci` is.
        let cut = marked(&tokenizer, "dic", &[2]);
        assert_eq!(tokenizer.decode(&cut.ids, false).unwrap(), "dic");
        let cut = marked(&tokenizer, "dio", &[2]);
        assert_eq!(cut.marks, [cut.ids.len() - 1]);
        assert_eq!(tokenizer.decode(&cut.ids, false).unwrap(), "dio");
        assert_eq!(tokenizer.token(*cut.ids.last().unwrap()), "o");
    }
}

#[test]
fn ids_up_to_a_mark_do_not_depend_on_what_follows() {
    let texts = ["dio\n\nio", "</s>dio cio </s> è dio", "🦙<|im_end|>\n<|im_end|> un dio", "  c  io  "];
    for folder in [metaspace_folder(), first_only_folder(), byte_level_folder()] {
        let tokenizer = folder.load();
        for text in texts {
            let controls = tokenizer.find_controls(text);
            let outside = |at: &usize| controls.iter().all(|c| *at <= c.range.start || *at >= c.range.end);
            let marks: Vec<usize> = (0..=text.len()).filter(|at| text.is_char_boundary(*at) && outside(at)).collect();
            let whole = tokenizer.encode_marked(text, &controls, &marks).unwrap();
            for (index, &mark) in marks.iter().enumerate() {
                let before: Vec<ControlPlace> = controls.iter().filter(|c| c.range.end <= mark).cloned().collect();
                let start = tokenizer.encode_marked(&text[..mark], &before, &marks[..index]).unwrap();
                assert_eq!(start.ids, whole.ids[..whole.marks[index]], "{text:?} up to {mark}");
            }
        }
    }
}
