//! An inspection as one self-contained page. Everything that comes from data is escaped.

use std::fmt::Write;

use super::{Example, Inspection};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;\
color:#222;background:#fff}table{border-collapse:collapse}td,th{padding:.15rem .8rem .15rem 0;text-align:left}\
td.n{text-align:right;font-variant-numeric:tabular-nums}pre{white-space:pre-wrap;overflow-wrap:anywhere;\
background:#f4f4f2;padding:.8rem;border-radius:.4rem;color:#777}mark{background:#cdebd3;color:#0b4a1c}\
.bar{background:#8bbf97;height:.8rem}.cut{color:#a33}\
@media(prefers-color-scheme:dark){body{color:#ddd;background:#1b1b1b}pre{background:#262626;color:#8a8a8a}\
mark{background:#1f4d2b;color:#d5f5dc}}";

/// The page.
pub fn page(inspection: &Inspection) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>Data</title><style>{STYLE}</style>\n<h1>What the model sees</h1>\n"
    );
    sources(&mut page, inspection);
    let epoch = &inspection.epoch;
    let _ = write!(
        page,
        "<h2>One epoch</h2><p>{} windows of at most {} rows; {} rows, {} of them predict a trained token; the windows are \
         {:.1} % full.</p>\n<h2>Lengths</h2><table><tr><th>tokens<th>documents<th></tr>",
        epoch.windows,
        epoch.sequence_length,
        epoch.rows,
        epoch.trained_rows,
        100.0 * epoch.efficiency
    );
    let most = inspection.lengths.iter().map(|count| count.documents).max().unwrap_or(1).max(1);
    for count in &inspection.lengths {
        let width = 20.0 * count.documents as f64 / most as f64;
        let _ = write!(
            page,
            "<tr><td>{}–{}<td class=n>{}<td><div class=bar style=\"width:{width:.2}rem\"></div></tr>",
            count.from, count.to, count.documents
        );
    }
    page.push_str("</table>\n<h2>Examples</h2><p><mark>Trained</mark>, and not trained.</p>\n");
    inspection.examples.iter().for_each(|one| example(&mut page, one));
    page.push_str("</html>\n");
    page
}

fn sources(page: &mut String, inspection: &Inspection) {
    for source in &inspection.report.sources {
        let _ =
            write!(page, "<h2>{}</h2><p>{}</p><table>", escaped(&source.name), escaped(&source.recognised.join("; ")));
        let rows = [
            ("files", source.files),
            ("documents to train on", source.documents),
            ("documents held out", source.held_out_documents),
            ("tokens", source.tokens),
            ("trained tokens", source.trained_tokens),
            ("cut to their first turns", source.cut),
            ("in several windows", source.split),
            ("dropped: too long for a window", source.dropped_long),
            ("dropped: no token", source.without_tokens),
            ("unusable records", source.bad_lines.count),
            ("name control tokens in their text", source.naming_control_tokens),
        ];
        for (name, count) in rows {
            let _ = write!(page, "<tr><td>{name}<td class=n>{count}</tr>");
        }
        page.push_str("</table>");
        if !source.bad_lines.first.is_empty() {
            let _ = write!(page, "<pre class=cut>{}</pre>", escaped(&source.bad_lines.first.join("\n")));
        }
        page.push('\n');
    }
}

fn example(page: &mut String, example: &Example) {
    let Example { source, line, tokens, trained, cut, stretches } = example;
    let _ = write!(page, "<h3>{}, line {line}: {tokens} tokens, {trained} trained</h3><pre>", escaped(source));
    for stretch in stretches {
        let text = escaped(&stretch.text);
        let ids: Vec<String> = stretch.ids.iter().map(u32::to_string).collect();
        let (open, close) = if stretch.trained { ("<mark", "</mark>") } else { ("<span", "</span>") };
        let _ = write!(page, "{open} title=\"{}\">{text}{close}", ids.join(" "));
    }
    if *cut > 0 {
        let _ = write!(page, "<span class=cut> … {cut} tokens cut off</span>");
    }
    page.push_str("</pre>\n");
}

fn escaped(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => result.push_str("&amp;"),
            '<' => result.push_str("&lt;"),
            '>' => result.push_str("&gt;"),
            '"' => result.push_str("&quot;"),
            '\'' => result.push_str("&#39;"),
            // Characters that no HTML page may hold.
            '\0'..='\u{8}' | '\u{b}' | '\u{c}' | '\u{e}'..='\u{1f}' | '\u{7f}' => result.push('\u{fffd}'),
            other => result.push(other),
        }
    }
    result
}
