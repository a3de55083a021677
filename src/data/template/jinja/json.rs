//! The filter `tojson` as transformers defines it: Python's `json.dumps(value, ensure_ascii=False)`.

use minijinja::value::{Kwargs, Value};
use minijinja::Error;

/// minijinja's filter without its HTML escapes.
pub fn tojson(value: &Value, indent: Option<Value>, arguments: Kwargs) -> Result<Value, Error> {
    // json.dumps has further options; only the indentation changes anything here.
    for ignored in ["ensure_ascii", "separators", "sort_keys"] {
        let _: Option<Value> = arguments.get(ignored)?;
    }
    let indent = indent.or(arguments.get("indent")?).filter(|indent| !indent.is_none());
    arguments.assert_all_used()?;
    let text = minijinja::filters::tojson(value, indent, Kwargs::from_iter(std::iter::empty::<(&str, Value)>()))?;
    Ok(Value::from_safe_string(without_html_escapes(text.as_str().unwrap_or_default())))
}

fn without_html_escapes(json: &str) -> String {
    let escapes = [("\\u003c", "<"), ("\\u003e", ">"), ("\\u0026", "&"), ("\\u0027", "'")];
    let mut plain = String::with_capacity(json.len());
    let mut rest = json;
    while let Some(start) = rest.find('\\') {
        plain.push_str(&rest[..start]);
        rest = &rest[start..];
        let escape = escapes.iter().find(|(escape, _)| rest.starts_with(escape));
        let (taken, written) = match escape {
            Some((escape, character)) => (escape.len(), *character),
            // Any other escape: the backslash and what follows it belong together.
            None => {
                let length = 1 + rest[1..].chars().next().map_or(0, char::len_utf8);
                (length, &rest[..length])
            }
        };
        plain.push_str(written);
        rest = &rest[taken..];
    }
    plain.push_str(rest);
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_html_escapes_are_undone() {
        assert_eq!(without_html_escapes(r#""\u003cb\u003e \\u003c \n \u0026\u0027 è""#), r#""<b> \\u003c \n &' è""#);
    }
}
