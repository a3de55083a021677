//! White space around streamed text: what stands before the first word is dropped, what stands behind the last one is
//! held back until more text comes.

/// Trims a stream of text.
#[derive(Debug)]
pub struct Trim {
    active: bool,
    started: bool,
    held: String,
}

impl Trim {
    /// A trimmer; one that is not `active` passes everything on.
    pub fn new(active: bool) -> Trim {
        Trim { active, started: false, held: String::new() }
    }

    /// Adds text; returns what is certain to lie inside.
    pub fn push(&mut self, piece: &str) -> String {
        if !self.active {
            return piece.to_owned();
        }
        let piece = if self.started { piece } else { piece.trim_start() };
        self.started |= !piece.is_empty();
        let end = piece.trim_end().len();
        if end == 0 {
            self.held.push_str(piece);
            return String::new();
        }
        let mut text = std::mem::take(&mut self.held);
        text.push_str(&piece[..end]);
        self.held.push_str(&piece[end..]);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trimmed_stream_is_the_trimmed_text() {
        let text = " \n Ecco:\n\n- uno \n- due\u{a0} \n\n";
        for size in 1..text.chars().count() {
            let characters: Vec<char> = text.chars().collect();
            let mut trim = Trim::new(true);
            let streamed: String = characters.chunks(size).map(|c| trim.push(&c.iter().collect::<String>())).collect();
            assert_eq!(streamed, text.trim());
        }
        assert_eq!(Trim::new(false).push(" a "), " a ");
    }
}
