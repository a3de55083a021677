//! What is changed in a template's text before minijinja compiles it: one pass over its tokens.
//!
//! - `{% generation %}` becomes a call block, which minijinja knows; white space control stays as it is.
//! - What `{% set ns.name = value %}` puts into a namespace passes through the filter [`HELD`]. Values never change, but
//!   namespaces do: one that holds itself, or ever deeper lists, would overflow the stack when it is written or dropped,
//!   which no limit of minijinja stops.
//!
//! Text that is no template stays as it is: compiling it tells its error and line.

use minijinja::machinery::{tokenize, Span, Token};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{ObjectRepr, Value};
use minijinja::{Error, ErrorKind};

/// The filter between a value and a namespace: [`held`].
pub const HELD: &str = "_held";
/// Lists in lists that a namespace may hold, and values in one assignment.
const DEPTH: usize = 32;
const VALUES: usize = 1 << 16;

/// A text to put in the place of `start .. end`.
struct Edit {
    start: usize,
    end: usize,
    text: String,
}

impl Edit {
    fn insert(place: usize, text: impl Into<String>) -> Edit {
        Edit { start: place, end: place, text: text.into() }
    }
}

/// The template that minijinja gets.
pub fn rewritten(source: &str, syntax: &SyntaxConfig) -> String {
    let mut result = String::with_capacity(source.len() + source.len() / 16);
    let mut copied = 0;
    let mut tag = Vec::new();
    for token in tokenize(source, false, syntax.clone()) {
        let Ok((token, span)) = token else { return source.to_owned() };
        match token {
            Token::BlockStart => tag.clear(),
            Token::BlockEnd => {
                for Edit { start, end, text } in edits(&tag, span.start_offset as usize) {
                    result.push_str(&source[copied..start]);
                    result.push_str(&text);
                    copied = end;
                }
            }
            _ => tag.push((token, span)),
        }
    }
    result.push_str(&source[copied..]);
    result
}

/// What becomes of a tag with these tokens, which ends at `end`; from left to right.
fn edits(tag: &[(Token<'_>, Span)], end: usize) -> Vec<Edit> {
    let whole = |text: &str| {
        let (start, end) = (tag[0].1.start_offset as usize, tag[0].1.end_offset as usize);
        vec![Edit { start, end, text: text.into() }]
    };
    match tag {
        [(Token::Ident("generation"), _)] => whole("call _generation()"),
        [(Token::Ident("endgeneration"), _)] => whole("endcall"),
        [(Token::Ident("set"), _), rest @ ..] => {
            let operator = rest.iter().position(|(token, _)| matches!(token, Token::Assign | Token::Pipe));
            let target = &rest[..operator.unwrap_or(rest.len())];
            if !target.iter().any(|(token, _)| matches!(token, Token::Dot)) {
                return Vec::new();
            }
            match operator.map(|place| &rest[place]) {
                Some((Token::Assign, span)) => {
                    vec![Edit::insert(span.end_offset as usize, "("), Edit::insert(end, format!(") | {HELD} "))]
                }
                _ => vec![Edit::insert(end, format!(" | {HELD} "))],
            }
        }
        _ => Vec::new(),
    }
}

/// The value, if a namespace may hold it: nothing that can change, and not too deep.
///
/// # Errors
/// Another namespace, or a value that holds one; lists more than [`DEPTH`] deep; more than [`VALUES`] values.
pub fn held(value: Value) -> Result<Value, Error> {
    let mut left = VALUES;
    match is_plain(&value, DEPTH, &mut left) {
        true => Ok(value),
        false => {
            let text = "a namespace cannot hold another namespace, lists in lists in lists without end, or a huge list";
            Err(Error::new(ErrorKind::InvalidOperation, text))
        }
    }
}

fn is_plain(value: &Value, depth: usize, left: &mut usize) -> bool {
    if *left == 0 {
        return false;
    }
    *left -= 1;
    let Some(object) = value.as_object() else { return true };
    if depth == 0 || object.type_name().ends_with("::Namespace") {
        return false;
    }
    let mut plain = |value: Value| is_plain(&value, depth - 1, left);
    match object.repr() {
        ObjectRepr::Map => object.try_iter_pairs().into_iter().flatten().all(|(key, value)| plain(key) && plain(value)),
        ObjectRepr::Seq | ObjectRepr::Iterable => object.try_iter().into_iter().flatten().all(plain),
        // Functions and macros, which write their name.
        _ => true,
    }
}
