//! HellaSwag in Italian: which of four sentences goes on.
//! Prompt and cleaning: lm-evaluation-harness `hellaswag_it`.

use super::json::{self, Record};
use super::{choices, Task};
use crate::error::Result;
use crate::eval::Example;

/// The task.
pub const TASK: Task = Task {
    name: "hellaswag_it",
    about: "how a short scene goes on, HellaSwag translated",
    source: "files of alexandrainst/m_hellaswag (it, val); prompt and acc_norm of lm-evaluation-harness",
    load: |path| json::examples(path, example),
    judge: choices::judge,
    metrics: choices::ACC_NORM_FIRST,
};

fn example(record: &Record<'_>) -> Result<Example> {
    let scene = format!("{} {}", record.text("ctx_a")?, capitalize(record.text("ctx_b")?));
    let context = clean(&format!("{}: {scene}", record.text("activity_label")?));
    let endings = record.value["endings"].as_array().ok_or_else(|| record.wrong("endings", "a list"))?;
    let endings: Option<Vec<String>> = endings.iter().map(|ending| ending.as_str().map(clean)).collect();
    let endings = endings.ok_or_else(|| record.wrong("endings", "a list of texts"))?;
    let right = record.choice("label", record.number("label")?, endings.len())?;
    Ok(choices::example(record.index.to_string(), context, endings, right))
}

/// Takes out what WikiHow's mark-up left behind: ` [title]` becomes a full stop, other brackets vanish, then two spaces
/// become one.
pub fn clean(text: &str) -> String {
    let text = text.trim().replace(" [title]", ". ");
    let mut kept = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(open) = rest.find('[') {
        kept.push_str(&rest[..open]);
        let bracket = &rest[open..];
        // The nearest closing bracket of the same line.
        let close = bracket.find([']', '\n']).filter(|&end| bracket[end..].starts_with(']'));
        let keep = if close.is_some() { 0 } else { 1 };
        kept.push_str(&bracket[..keep]);
        rest = &bracket[close.map_or(1, |end| end + 1)..];
    }
    kept.push_str(rest);
    kept.replace("  ", " ")
}

/// First letter upper case, all others lower case, as Python's `str.capitalize`.
fn capitalize(text: &str) -> String {
    let mut characters = text.chars();
    let first = characters.next().into_iter().flat_map(char::to_uppercase);
    first.chain(characters.as_str().to_lowercase().chars()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleaning_by_hand() {
        assert_eq!(clean(" Fai così [title] Prendi [step] l'acqua  calda "), "Fai così. Prendi l'acqua calda");
        assert_eq!(clean("a [b [c] d] e"), "a d] e", "the nearest bracket closes");
        assert_eq!(clean("a [b\nc] d"), "a [b\nc] d", "not across lines");
        assert_eq!(clean("a [b"), "a [b");
        assert_eq!(clean("a    b"), "a  b", "pairs, once");
        assert_eq!(capitalize("èlla VA a Roma"), "Èlla va a roma");
        assert_eq!(capitalize(""), "");
    }
}
