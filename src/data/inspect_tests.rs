//! Inspection: numbers that add up, stretches that spell the document, pages that hold hostile text.

use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::data::batch::BatchSettings;
use crate::data::load::load;
use crate::data::testing::{byte_level_folder, metaspace_folder, ModelFolder};
use crate::data::DataConfig;

fn inspected(folder: &ModelFolder, lines: &[&str], length: usize) -> Inspection {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("a.jsonl");
    std::fs::write(&path, lines.join("\n")).unwrap();
    let tokenizer = folder.load();
    let config = DataConfig {
        template: "llamantino-chat".into(),
        system: Some(String::new()),
        sequence_length: length,
        cache: "off".into(),
        ..DataConfig::of_paths(&[path.to_string_lossy().into_owned()])
    };
    let data = load(&config, &tokenizer, Path::new(""), &mut |_| ()).unwrap();
    let settings =
        BatchSettings { sequence_length: length, packing: true, group_by_length: false, windows: 1, seed: 1 };
    let batches = Batches::new(Arc::new(data.train.clone()), settings).unwrap();
    inspect(&data, &batches, &tokenizer, (10, 1)).unwrap()
}

const CHATS: &[&str] =
    &[r#"{"data": ["ciao", "salve"]}"#, r#"{"data": ["<script>alert(1)</script>", "no & poi </s>", "x", "un dio"]}"#];

#[test]
fn stretches_spell_the_example_and_mark_the_answers() {
    for folder in [metaspace_folder(), byte_level_folder()] {
        let inspection = inspected(&folder, CHATS, 512);
        let example = &inspection.examples[0];
        let trained: String = example.stretches.iter().filter(|s| s.trained).map(|s| s.text.as_str()).collect();
        assert!(trained.trim_start().starts_with("salve") && trained.len() > "salve ".len(), "{trained:?}");
        let all: String = example.stretches.iter().map(|stretch| stretch.text.as_str()).collect();
        assert!(all.contains("[INST]ciao[/INST] salve"), "{all:?}");
        assert_eq!(example.stretches.iter().map(|stretch| stretch.ids.len()).sum::<usize>(), example.tokens);
        let count =
            example.stretches.iter().filter(|stretch| stretch.trained).map(|stretch| stretch.ids.len()).sum::<usize>();
        assert_eq!(count, example.trained);
        let source = &inspection.report.sources[0];
        assert_eq!(
            inspection.examples.iter().map(|example| example.trained as u64).sum::<u64>(),
            source.trained_tokens
        );
        assert_eq!(inspection.epoch.trained_rows, source.trained_tokens);
        assert_eq!(inspection.lengths.iter().map(|count| count.documents).sum::<u64>(), 2);
        let rows = inspection.examples.iter().map(|example| example.tokens as u64 - 1).sum::<u64>();
        assert_eq!((inspection.epoch.rows, inspection.epoch.windows), (rows, 1));
        assert!((inspection.epoch.efficiency - rows as f64 / 512.0).abs() < 1e-12);
    }
}

#[test]
fn what_is_cut_off_is_said() {
    let inspection = inspected(&metaspace_folder(), CHATS, 60);
    let source = &inspection.report.sources[0];
    assert_eq!((source.documents, source.cut + source.dropped_long), (inspection.examples.len() as u64, 1));
    assert_eq!(inspection.examples.iter().filter(|example| example.cut > 0).count() as u64, source.cut);
}

#[test]
fn the_page_escapes_what_data_say() {
    let page = inspected(&metaspace_folder(), CHATS, 512).to_html();
    assert!(!page.contains("<script>") && page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"), "{page}");
    assert!(page.contains("no &amp; poi"));
    assert_eq!(page.matches("<mark ").count(), page.matches("</mark>").count() - 1);
}
