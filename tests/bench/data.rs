//! 200,000 generated documents to tokens and packed windows, against the tokenizers library alone on the same texts in
//! memory, both on all threads. One JSON line.
//!
//!     cargo bench --bench data [-- DOCUMENTS [TOKENIZER_FOLDER]]
//!
//! The documents are made of Italian-like words by a fixed rule, 20 to 220 words each. Ours reads them from a JSON lines
//! file; the library's texts lie in memory already, and the time to make them is not counted. The best of three.

use llamantino::data::batch::{BatchSettings, Batches};
use llamantino::data::load::load;
use llamantino::data::tokenize::Tokenizer;
use llamantino::data::DataConfig;
use rayon::prelude::*;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// A number that depends on its place alone.
fn noise(place: u64) -> u64 {
    let mut state = place.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03;
    state = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    state ^ (state >> 31)
}

fn word(number: u64) -> String {
    const SYLLABLES: &[&str] = &[
        "ca", "ro", "sì", "men", "te", "gli", "pa", "no", "zio", "ne", "là", "che", "for", "ma", "tu", "è", "scri",
        "ve",
    ];
    let random = noise(number);
    let count = 1 + (random >> 60) % 4;
    (0..count).map(|place| SYLLABLES[(random >> (8 * place)) as usize % SYLLABLES.len()]).collect()
}

fn document(number: u64, words: &[String]) -> String {
    let count = 20 + noise(number << 20) % 201;
    let mut text = String::new();
    for place in 0..count {
        // Small numbers come more often, as words do.
        let draw = noise(number << 20 | place) as f64 / u64::MAX as f64;
        let _ = write!(text, "{} ", words[(draw * draw * words.len() as f64) as usize % words.len()]);
    }
    text.push('.');
    text
}

/// A line of `/proc/self/status` in MiB.
fn status(name: &str) -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(f64::NAN) / 1024.0
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let count: u64 = arguments.first().and_then(|count| count.parse().ok()).unwrap_or(200_000);
    let model = arguments
        .get(1)
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("data/quickstart/model"), PathBuf::from);
    let tokenizer = Tokenizer::load(&model, None).expect("a tokenizer");
    let words: Vec<String> = (0..20_000).map(word).collect();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("documents.jsonl");
    let mut file = std::io::BufWriter::new(std::fs::File::create(&path).expect("a file"));
    for number in 0..count {
        writeln!(file, "{}", serde_json::json!({ "text": document(number, &words) })).expect("a line");
    }
    file.flush().expect("all lines");
    drop(file);

    let ours = |cache: String| {
        let start = Instant::now();
        let config = DataConfig { cache, ..DataConfig::of_paths(&[path.to_string_lossy().into_owned()]) };
        let data = load(&config, &tokenizer, &model, &mut |_| ()).expect("documents");
        let settings =
            BatchSettings { sequence_length: 512, packing: true, group_by_length: false, windows: 1, seed: 1 };
        let tokens = data.train.text_tokens();
        let batches = Batches::new(Arc::new(data.train), settings).expect("windows");
        (start.elapsed().as_secs_f64(), tokens, batches.windows())
    };
    let before = status("VmRSS");
    let cached = folder.path().join("cache");
    let mut first_cached = f64::INFINITY;
    for _ in 0..3 {
        // The memory of the usual way: tokens on disk, mapped.
        first_cached = first_cached.min(ours(cached.to_string_lossy().into_owned()).0);
        let _ = std::fs::remove_dir_all(&cached);
    }
    let (peak, written) = (status("VmHWM") - before, first_cached);
    ours(cached.to_string_lossy().into_owned());
    let (again, ..) = ours(cached.to_string_lossy().into_owned());
    let runs: Vec<_> = (0..3).map(|_| ours("off".into())).collect();
    let (in_memory, tokens, windows) = runs.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).expect("three runs");

    let texts: Vec<String> = (0..count).map(|number| document(number, &words)).collect();
    let bytes: usize = texts.iter().map(String::len).sum();
    let library = (0..3).map(|_| {
        let start = Instant::now();
        let encode = |text: &String| tokenizer.inner().encode_fast(text.as_str(), false).expect("ids").len();
        let found: usize = texts.par_iter().map(encode).sum();
        assert_eq!(found, tokens, "the same tokens");
        start.elapsed().as_secs_f64()
    });
    let library = library.fold(f64::INFINITY, f64::min);
    let line = serde_json::json!({
        "documents": count, "text_mb": bytes as f64 / 1e6, "tokens": tokens, "windows": windows,
        "threads": rayon::current_num_threads(), "library_s": library, "ours_in_memory_s": in_memory,
        "ours_to_disk_s": written, "ours_from_cache_s": again, "speed_against_library": library / in_memory,
        "speed_to_disk_against_library": library / written, "peak_mib_with_cache": peak,
    });
    println!("{line}");
}
