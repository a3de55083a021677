//! Pages: of a whole run, of an empty one, of one whose texts try to be HTML.

use super::*;
use serde_json::json;
use std::path::Path;

fn write(folder: &Path, name: &str, text: &str) {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

fn log(steps: u64) -> String {
    let mut lines = vec![json!({"event": "eval", "step": 0, "set": "held-out", "loss": 3.6, "perplexity": 36.6,
                                "bits_per_byte": 1.752})];
    lines.extend((1..=steps).map(|step| {
        json!({"event": "step", "step": step, "loss": 3.0 / step as f64, "lr": 2e-4, "grad_norm": 1.0,
               "tokens": step * 1000, "tokens_per_s": 500.0, "rss_mib": 800 + step})
    }));
    lines.push(json!({"event": "skip", "step": 3, "reason": "loss NaN"}));
    lines.push(json!({"event": "spike", "step": 4, "loss": 9.0, "mean": 2.0}));
    lines.push(json!({"event": "eval", "step": steps, "set": "held-out", "loss": 3.0, "perplexity": 20.1,
                      "bits_per_byte": 1.25}));
    lines.iter().map(|line| format!("{line}\n")).collect()
}

#[test]
fn a_run_is_told_in_full() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("my-run");
    write(&folder, "log.jsonl", &(log(10) + "{\"event\": \"half"));
    write(&folder, "config.toml", "method = \"qlora\"\nmodel = \"models/base\"\n[training]\ncompute = \"bf16\"\n");
    write(&folder, "adapter/adapter_config.json", "{}");
    let sample = |step, label| json!({"step": step, "label": label, "prompt": "Il mare", "text": format!("è {label}")});
    write(&folder, "samples.jsonl", &format!("{}\n{}\n", sample(0, "base"), sample(10, "result")));
    let metric = json!({"value": 0.4321, "interval_95": [0.4, 0.46], "better": "higher"});
    let results =
        json!({"program": "x", "model": {}, "tasks": {"xcopa_it": {"metrics": {"acc": metric}, "questions": 500}}});
    write(&folder, "eval/base/results.json", &results.to_string());
    let made_by = json!({"made_by": {"program": "llamantino 0.1.0", "kernel_path": "avx2"}});
    write(&folder, "checkpoints/step-000010/manifest.json", &made_by.to_string());
    let run = read(&folder).unwrap();
    assert_eq!((run.steps.len(), run.evaluations.len(), run.events.len(), run.unreadable), (10, 2, 2, 1));
    assert!(run.finished);
    let html = html(&run);
    assert!(html.starts_with(BEGINNING));
    let expected = [
        "<h1>my-run</h1>",
        "qlora of models/base — finished, 10 steps",
        "1.752 → 1.250",
        "10\u{202f}000",
        "20 s",
        "500",
        "810 MiB",
        "Held-out bits per byte",
        "Learning rate",
        "<td>xcopa_it</td><td>acc</td><td class=\"n\">0.4321</td><td class=\"n\">0.4 – 0.46</td><td class=\"n\">500</td>",
        "eval/base",
        "how “Il mare” goes on",
        "<b>base</b>\nè base",
        "left out: loss NaN",
        "spike: loss 9.0000",
        "avx2",
        "1 line(s) of the log could not be read",
        "compute = &quot;bf16&quot;",
    ];
    for text in expected {
        assert!(html.contains(text), "{text}");
    }
    assert_eq!(html.matches("<svg").count(), 6);
}

/// The page needs nothing from elsewhere, and no text of the run becomes part of it.
#[test]
fn texts_of_the_run_are_only_text() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("<img src=x>");
    let nasty = "</pre></title><script>alert('1')</script>&\"\u{0}";
    let row = json!({"event": "eval", "step": 0, "set": nasty, "loss": 1.0, "perplexity": 2.7, "bits_per_byte": 1.0});
    let later = json!({"event": "eval", "step": 5, "set": "b", "loss": 1.0, "perplexity": 2.7, "bits_per_byte": 1.0});
    let skip = json!({"event": "skip", "step": 1, "reason": nasty});
    write(&folder, "log.jsonl", &format!("{row}\n{later}\n{skip}\n"));
    write(&folder, "config.toml", &format!("model = {}\n# {nasty}", json!(nasty)));
    write(&folder, "samples.jsonl", &json!({"step": 0, "label": nasty, "prompt": nasty, "text": nasty}).to_string());
    let metric = json!({"value": 1.0});
    write(&folder, "results.json", &json!({"tasks": {nasty: {"metrics": {nasty: metric}}}}).to_string());
    let html = html(&read(&folder).unwrap());
    for part in ["<script", "<img", "http:", "https:", "src=", "href=", "@import", "url(", "\u{0}"] {
        assert!(!html.replace("&lt;img src=x&gt;", "").contains(part), "{part}");
    }
    assert_eq!(html.matches("</pre>").count(), 1);
    let dots = html.matches("<circle").count();
    assert_eq!(html.matches("</title>").count(), 1 + dots, "that of the page and of each point");
}

#[test]
fn a_run_that_has_only_begun_has_a_page_and_no_run_has_none() {
    let place = tempfile::tempdir().unwrap();
    write(place.path(), "log.jsonl", "");
    let run = read(place.path()).unwrap();
    assert!(!run.finished && html(&run).contains("not finished, 0 steps"));
    let error = read(&place.path().join("none")).unwrap_err();
    assert!(error.message().contains("log.jsonl: cannot read") && error.hint_text().unwrap().contains("runs/NAME"));
    write(place.path(), "chain/2-chat/log.jsonl", "");
    write(place.path(), "chain/1-adapt/log.jsonl", "");
    let error = read(&place.path().join("chain")).unwrap_err();
    assert!(error.hint_text().unwrap().ends_with("1-adapt"), "{error:?}");
    write(place.path(), "samples.jsonl", "{\"step\": 0}\n");
    assert!(read(place.path()).unwrap_err().message().contains("samples.jsonl:1: not a sample"));
}
