//! Words whose ids are known: most words of a text were seen before, and looking one up costs a tenth of encoding it.
//!
//! A text is cut wherever [`super::pieces`] proves that it may be, so that the ids of its words are the ids of the whole.
//! Each word that is short enough has one place in a table, by its hash; another word with the same place takes it over.
//! A word's ids are kept when it is seen for the second time: until then it is encoded together with its neighbours, so
//! that a text whose words never come again costs no more than without the table. What stands in a place is compared in
//! full, so that ids never depend on what was encoded before, or by which thread.

use std::sync::{Mutex, MutexGuard, TryLockError};

/// Longest word that is kept, in bytes, and most ids: with their two lengths a cache line.
const WORD_BYTES: usize = 30;
const WORD_IDS: usize = 8;
/// Words that a table holds: 2 MiB.
const SLOTS: usize = 1 << 15;

/// Stands for the number of ids of a word that was seen once.
const SEEN_ONCE: u8 = u8::MAX;

/// A word with its ids; `length` 0 where there is none.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Slot {
    ids: [u32; WORD_IDS],
    text: [u8; WORD_BYTES],
    length: u8,
    count: u8,
}

const EMPTY: Slot = Slot { ids: [0; WORD_IDS], text: [0; WORD_BYTES], length: 0, count: 0 };

/// What is known of a word.
#[derive(Debug, PartialEq, Eq)]
pub enum Known<'a> {
    /// Its ids.
    Ids(&'a [u32]),
    /// That it was seen before: its ids are worth keeping.
    Seen,
    /// Nothing; from now on it counts as seen.
    Nothing,
}

/// Words with their ids.
pub struct Words {
    slots: Vec<Slot>,
}

/// A word on its way to its place: padded with zeros, and the place.
pub struct Key {
    text: [u8; WORD_BYTES],
    length: u8,
    place: usize,
}

impl Key {
    /// The key of a word; none for one that is not kept.
    pub fn of(word: &str) -> Option<Key> {
        if word.is_empty() || word.len() > WORD_BYTES {
            return None;
        }
        let mut text = [0; WORD_BYTES];
        text[..word.len()].copy_from_slice(word.as_bytes());
        // Multiply and fold (as in wyhash); the length tells words apart that end in zeros.
        let mut hash = word.len() as u64;
        for chunk in text.chunks(8) {
            let mut bytes = [0; 8];
            bytes[..chunk.len()].copy_from_slice(chunk);
            let mixed = u128::from(hash ^ u64::from_le_bytes(bytes));
            let product = mixed.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835);
            hash = (product >> 64) as u64 ^ product as u64;
        }
        Some(Key { text, length: word.len() as u8, place: (hash >> 32) as usize % SLOTS })
    }
}

impl Words {
    /// What is known of a word.
    pub fn look_up(&mut self, key: &Key) -> Known<'_> {
        let slot = &mut self.slots[key.place];
        if slot.length != key.length || slot.text != key.text {
            (slot.text, slot.length, slot.count) = (key.text, key.length, SEEN_ONCE);
            return Known::Nothing;
        }
        match slot.count {
            SEEN_ONCE => Known::Seen,
            count => Known::Ids(&slot.ids[..usize::from(count)]),
        }
    }

    /// Keeps the ids of a word, if they are not too many.
    pub fn put(&mut self, key: &Key, ids: &[u32]) {
        if ids.len() > WORD_IDS {
            return;
        }
        let slot = &mut self.slots[key.place];
        slot.ids[..ids.len()].copy_from_slice(ids);
        (slot.text, slot.length, slot.count) = (key.text, key.length, ids.len() as u8);
    }
}

/// One table for each thread that encodes.
pub struct Tables(Vec<Mutex<Words>>);

impl Tables {
    /// As many tables as there are threads, each empty until it is used.
    pub fn new() -> Tables {
        Tables((0..rayon::current_num_threads().max(1)).map(|_| Mutex::new(Words { slots: Vec::new() })).collect())
    }

    /// This thread's table; none while another one has it.
    pub fn own(&self) -> Option<MutexGuard<'_, Words>> {
        let number = rayon::current_thread_index().unwrap_or(0) % self.0.len();
        let mut words = match self.0[number].try_lock() {
            Ok(words) => words,
            Err(TryLockError::WouldBlock) => return None,
            // Whoever panicked had not begun to write, or had written a slot that is whole.
            Err(TryLockError::Poisoned(words)) => words.into_inner(),
        };
        if words.slots.is_empty() {
            words.slots = vec![EMPTY; SLOTS];
        }
        Some(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words() -> Words {
        Words { slots: vec![EMPTY; SLOTS] }
    }

    #[test]
    fn what_is_kept_is_found_and_nothing_else() {
        let mut words = words();
        let key = Key::of(" perché").unwrap();
        assert_eq!(words.look_up(&key), Known::Nothing);
        assert_eq!(words.look_up(&key), Known::Seen);
        words.put(&key, &[7, 8]);
        assert_eq!(words.look_up(&key), Known::Ids(&[7, 8]));
        for other in [" perch", " perché\0", "perché", " Perché"] {
            assert_eq!(words.look_up(&Key::of(other).unwrap()), Known::Nothing, "{other:?}");
        }
        words.put(&Key::of("a\0").unwrap(), &[1]);
        assert_eq!(words.look_up(&Key::of("a").unwrap()), Known::Nothing);
        words.put(&Key::of("x").unwrap(), &[]);
        assert_eq!(words.look_up(&Key::of("x").unwrap()), Known::Ids(&[]));
    }

    #[test]
    fn long_words_and_many_ids_are_not_kept() {
        let mut words = words();
        assert!(Key::of("").is_none() && Key::of(&"a".repeat(31)).is_none());
        let key = Key::of(&"a".repeat(30)).unwrap();
        words.put(&key, &[1; 9]);
        assert_eq!(words.look_up(&key), Known::Nothing);
        words.put(&key, &[1; 8]);
        assert_eq!(words.look_up(&key), Known::Ids(&[1; 8]));
    }

    #[test]
    fn a_word_whose_place_is_taken_over_is_gone() {
        let mut words = words();
        let keys: Vec<Key> = (0..4 * SLOTS).map(|number| Key::of(&number.to_string()).unwrap()).collect();
        for (number, key) in keys.iter().enumerate() {
            words.put(key, &[number as u32]);
        }
        // The last word of each place is there, and the hash reaches nearly all of them. Looking up takes places over
        // too: the later words first.
        let mut found = 0;
        for (number, key) in keys.iter().enumerate().rev() {
            if let Known::Ids(ids) = words.look_up(key) {
                assert_eq!(ids, [number as u32]);
                found += 1;
            }
        }
        assert!(found > SLOTS * 9 / 10, "{found} of {SLOTS}");
    }
}
