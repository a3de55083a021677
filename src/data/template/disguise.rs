//! Keeps names of control tokens in messages apart from those that a Jinja template writes.
//!
//! A template is a program over the text of messages: it strips, splits and joins it, so that its output does not say
//! which characters it wrote itself. Before it runs, one character of each control token's name in a message is replaced
//! by a stand-in from Unicode's private use area that occurs in no message and not in the template; afterwards each name
//! found in the output is the template's, and the stand-ins are changed back. Messages without such names are not
//! touched, so that whatever the template does with them, it does to the real text.
//!
//! Invariant: `reveal(hide(text)) == text`, byte for byte; no control token can be spelled by message text, alone, with
//! other messages or with the template's own text beside it.

use std::collections::HashSet;

/// Stand-ins of one conversation.
#[derive(Debug)]
pub struct Disguise<'a> {
    names: Vec<&'a str>,
    /// Original and stand-in.
    pairs: Vec<(char, char)>,
    taken: HashSet<char>,
}

/// Text with its stand-ins changed back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revealed {
    /// The text.
    pub text: String,
    /// Bytes of the disguised text behind which all places move, and by how much in all.
    shifts: Vec<(usize, usize)>,
}

/// Stand-ins come from supplementary private use area A.
const STAND_INS: std::ops::RangeInclusive<char> = '\u{F0000}'..='\u{FFFFD}';

impl<'a> Disguise<'a> {
    /// Hides `names` (each at least one character). `texts` is everything that must not be mistaken for a stand-in.
    pub fn new<'t>(names: impl IntoIterator<Item = &'a str>, texts: impl IntoIterator<Item = &'t str>) -> Disguise<'a> {
        let private = texts.into_iter().flat_map(str::chars).filter(|character| STAND_INS.contains(character));
        Disguise { names: names.into_iter().collect(), pairs: Vec::new(), taken: private.collect() }
    }

    /// `text` with one character of each name in it replaced.
    pub fn hide(&mut self, text: &str) -> String {
        let mut places: Vec<usize> = self.whole_names(text);
        places.extend(self.joints(text));
        places.sort_unstable();
        places.dedup();
        let mut hidden = String::with_capacity(text.len() + 4 * places.len());
        let mut done = 0;
        for place in places {
            let Some(character) = text[place..].chars().next() else { continue };
            hidden.push_str(&text[done..place]);
            hidden.push(self.stand_in(character));
            done = place + character.len_utf8();
        }
        hidden.push_str(&text[done..]);
        hidden
    }

    /// Where names begin. A template may change the case of text, so case does not count.
    fn whole_names(&self, text: &str) -> Vec<usize> {
        let mut starts = [false; 256];
        for first in self.names.iter().filter_map(|name| name.bytes().next()) {
            starts[first.to_ascii_lowercase() as usize] = true;
            starts[first.to_ascii_uppercase() as usize] = true;
        }
        let bytes = text.as_bytes();
        let here = |place: &usize| self.names.iter().any(|name| begins(&bytes[*place..], name.as_bytes()));
        (0..bytes.len())
            .filter(|&place| starts[bytes[place] as usize] && text.is_char_boundary(place))
            .filter(here)
            .collect()
    }

    /// Characters at the ends of `text` that text beside it could complete to a name. White space at the ends does not
    /// count: templates strip it.
    fn joints(&self, text: &str) -> Vec<usize> {
        let core = text.trim();
        if core.is_empty() {
            return Vec::new();
        }
        let start = text.len() - text.trim_start().len();
        let mut places = Vec::new();
        for name in &self.names {
            for (cut, _) in name.char_indices().skip(1) {
                let (head, tail) = name.as_bytes().split_at(cut);
                let bytes = core.as_bytes();
                if begins(bytes, tail) || begins(tail, bytes) {
                    places.push(start);
                }
                let end = bytes.len().saturating_sub(head.len());
                if core.is_char_boundary(end) && bytes.len() >= head.len() && begins(&bytes[end..], head) {
                    places.push(start + end);
                }
            }
        }
        places
    }

    fn stand_in(&mut self, character: char) -> char {
        if let Some((_, stand_in)) = self.pairs.iter().find(|(original, _)| *original == character) {
            return *stand_in;
        }
        // A conversation that uses up 65 534 private characters keeps its own text rather than a wrong one.
        let free = STAND_INS.clone().find(|candidate| !self.taken.contains(candidate)).unwrap_or(character);
        self.taken.insert(free);
        self.pairs.push((character, free));
        free
    }

    /// Changes the stand-ins in `text` back.
    pub fn reveal(&self, text: &str) -> Revealed {
        let mut revealed = Revealed { text: String::with_capacity(text.len()), shifts: Vec::new() };
        for (place, character) in text.char_indices() {
            let original =
                self.pairs.iter().find(|(_, stand_in)| *stand_in == character).map(|(original, _)| *original);
            revealed.text.push(original.unwrap_or(character));
            if original.is_some() {
                let end = place + character.len_utf8();
                revealed.shifts.push((end, end - revealed.text.len()));
            }
        }
        revealed
    }
}

/// Whether `text` begins with `name`, whatever the case of ASCII letters.
fn begins(text: &[u8], name: &[u8]) -> bool {
    text.len() >= name.len() && text[..name.len()].eq_ignore_ascii_case(name)
}

impl Revealed {
    /// Where byte `place` of the disguised text is now.
    pub fn place(&self, place: usize) -> usize {
        let before = self.shifts.partition_point(|(end, _)| *end <= place);
        place - before.checked_sub(1).map_or(0, |last| self.shifts[last].1)
    }
}
