//! 200,000 generated documents to tokens and packed windows, against the tokenizers library alone on the same texts in
//! memory, both on two threads. One JSON line.
//!
//!     cargo bench --bench data [-- DOCUMENTS [TOKENIZER_FOLDER]]
//!
//! The documents are made of Italian-like words by a fixed rule, 20 to 220 words each. Ours reads them from a JSON lines
//! file and packs them; the library's texts lie in memory already, and the time
//! to make them is not counted. The best of three.
//!
//! Memory is what the first run of all adds to the process, tokens kept on disk as usual: `peak_mib` with the pages of
//! files that are mapped, `peak_anonymous_mib` without them. `allowed_mib` is 300 MB and 16 bytes a document.

use llamantino::data::batch::{BatchSettings, Batches};
use llamantino::data::load::load;
use llamantino::data::tokenize::Tokenizer;
use llamantino::data::DataConfig;
use rayon::prelude::*;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

const THREADS: usize = 2;

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

/// The most anonymous memory while something runs, in MiB, looked at every two milliseconds.
fn anonymous_peak(work: impl FnOnce()) -> f64 {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most = 0.0f64;
            while !done.load(Ordering::Relaxed) {
                most = most.max(status("RssAnon:"));
                std::thread::sleep(Duration::from_millis(2));
            }
            most
        });
        work();
        done.store(true, Ordering::Relaxed);
        watch.join().expect("a peak")
    })
}

/// One pass of ours.
struct Pass {
    seconds: f64,
    tokens: usize,
    windows: usize,
    efficiency: f64,
}

fn ours(path: &Path, cache: &Path, tokenizer: &Tokenizer, model: &Path) -> Pass {
    let start = Instant::now();
    let cache = cache.to_string_lossy().into_owned();
    let config = DataConfig { cache, ..DataConfig::of_paths(&[path.to_string_lossy().into_owned()]) };
    let data = load(&config, tokenizer, model, &mut |_| ()).expect("documents");
    let settings = BatchSettings { sequence_length: 512, packing: true, group_by_length: false, windows: 1, seed: 1 };
    let tokens = data.train.text_tokens();
    let mut batches = Batches::new(Arc::new(data.train), settings).expect("windows");
    let packed = start.elapsed().as_secs_f64();
    let windows = batches.windows();
    let rows: usize = batches.rows_by_window().sum();
    // Not in the time, as the library makes none: a training run makes each batch when it needs it.
    assert_eq!(batches.next_micro_batch().segments[0].start, 0);
    Pass { seconds: packed, tokens, windows, efficiency: rows as f64 / (512 * windows) as f64 }
}

fn main() {
    rayon::ThreadPoolBuilder::new().num_threads(THREADS).build_global().expect("threads");
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

    let cache = folder.path().join("cache");
    let run = |cache: &Path| ours(&path, cache, &tokenizer, &model);
    let (before, anonymous_before) = (status("VmRSS:"), status("RssAnon:"));
    let mut first = None;
    let anonymous = anonymous_peak(|| first = Some(run(&cache))) - anonymous_before;
    let peak = status("VmHWM:") - before;
    let mut runs = vec![first.expect("a run")];
    let again = run(&cache);
    for _ in 0..2 {
        std::fs::remove_dir_all(&cache).expect("the cache");
        runs.push(run(&cache));
    }
    let best = runs.into_iter().min_by(|a, b| a.seconds.total_cmp(&b.seconds)).expect("three runs");
    std::fs::remove_dir_all(&cache).expect("the cache");
    let kept_nowhere = (0..3).map(|_| run(Path::new("off")).seconds).fold(f64::INFINITY, f64::min);

    let texts: Vec<String> = (0..count).map(|number| document(number, &words)).collect();
    let bytes: usize = texts.iter().map(String::len).sum();
    let library = (0..3).map(|_| {
        let start = Instant::now();
        let encode = |text: &String| tokenizer.inner().encode_fast(text.as_str(), false).expect("ids").len();
        let found: usize = texts.par_iter().map(encode).sum();
        assert_eq!(found, best.tokens, "the same tokens");
        start.elapsed().as_secs_f64()
    });
    let library = library.fold(f64::INFINITY, f64::min);
    let line = serde_json::json!({
        "documents": count, "text_mb": bytes as f64 / 1e6, "tokens": best.tokens, "windows": best.windows,
        "packing_efficiency": best.efficiency, "threads": rayon::current_num_threads(), "library_s": library,
        "ours_s": best.seconds, "ours_kept_nowhere_s": kept_nowhere, "ours_from_cache_s": again.seconds,
        "speed_against_library": library / best.seconds,
        "speed_kept_nowhere_against_library": library / kept_nowhere,
        "peak_mib": peak, "peak_anonymous_mib": anonymous, "allowed_mib": (300e6 + 16.0 * count as f64) / 1048576.0,
    });
    println!("{line}");
}
