//! Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
//!
//! A value depends on the seed, the stream and its index only, never on the order of drawing or the number of threads.
//! Nothing has to be saved to resume: the stream of a step is named by the step.

/// A family of random values, addressed by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RandomStream {
    key: [u32; 2],
    stream: u64,
}

impl RandomStream {
    /// The stream number `stream` of `seed`.
    pub fn new(seed: u64, stream: u64) -> RandomStream {
        RandomStream { key: [seed as u32, (seed >> 32) as u32], stream }
    }

    /// A stream of the same seed named by a label and numbers (what it is for, step, micro-step, layer, ...).
    pub fn derive(seed: u64, label: &str, numbers: &[u64]) -> RandomStream {
        // FNV-1a over the label and the numbers: spreads names over streams, which is all that is asked of it.
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        let numbers = numbers.iter().flat_map(|n| n.to_le_bytes());
        for byte in label.bytes().chain(numbers) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        RandomStream::new(seed, hash)
    }

    /// Seed and stream number, for kernels that draw the same words elsewhere.
    pub(crate) fn names(&self) -> (u64, u64) {
        (u64::from(self.key[0]) | u64::from(self.key[1]) << 32, self.stream)
    }

    /// Four 32-bit words: number `index` of the stream.
    #[inline]
    pub fn words(&self, index: u64) -> [u32; 4] {
        let mut counter = [index as u32, (index >> 32) as u32, self.stream as u32, (self.stream >> 32) as u32];
        let mut key = self.key;
        for _ in 0..10 {
            let low = u64::from(counter[0]) * 0xD251_1F53;
            let high = u64::from(counter[2]) * 0xCD9E_8D57;
            counter = [
                (high >> 32) as u32 ^ counter[1] ^ key[0],
                high as u32,
                (low >> 32) as u32 ^ counter[3] ^ key[1],
                low as u32,
            ];
            key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
        }
        counter
    }

    /// `words(first + call)` for `CALLS` consecutive indices: word `j` of call `c` at `[j][c]`, in a form that vector
    /// kernels compute side by side.
    #[inline(always)]
    pub(crate) fn words_of_calls<const CALLS: usize>(&self, first: u64) -> [[u32; CALLS]; 4] {
        // 64-bit lanes: a word sits in the low half and the high half is ignored, so that nothing has to be widened.
        const LOW: u64 = 0xffff_ffff;
        let [mut a, mut b, mut c, mut d] = [[0u64; CALLS]; 4];
        for call in 0..CALLS {
            a[call] = first.wrapping_add(call as u64);
            b[call] = a[call] >> 32;
            c[call] = self.stream;
            d[call] = self.stream >> 32;
        }
        let mut key = self.key;
        for _ in 0..10 {
            for call in 0..CALLS {
                let low = (a[call] & LOW) * 0xD251_1F53;
                let high = (c[call] & LOW) * 0xCD9E_8D57;
                a[call] = (high >> 32) ^ b[call] ^ u64::from(key[0]);
                b[call] = high;
                c[call] = (low >> 32) ^ d[call] ^ u64::from(key[1]);
                d[call] = low;
            }
            key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
        }
        let mut words = [[0; CALLS]; 4];
        for (words, lanes) in words.iter_mut().zip([a, b, c, d]) {
            for call in 0..CALLS {
                words[call] = lanes[call] as u32;
            }
        }
        words
    }

    /// One 32-bit word: element `index` of the stream (four elements share a Philox call).
    #[inline]
    pub fn word(&self, index: u64) -> u32 {
        self.words(index / 4)[(index % 4) as usize]
    }

    /// Uniform in [0, 1) with 24 bits.
    #[inline]
    pub fn uniform(&self, index: u64) -> f32 {
        (self.word(index) >> 8) as f32 * (1.0 / 16_777_216.0)
    }

    /// Standard normal (Box-Muller on two words of the same call).
    pub fn normal(&self, index: u64) -> f32 {
        let words = self.words(index);
        let radius = (f64::from(words[0]) + 1.0) / 4_294_967_296.0;
        let angle = f64::from(words[1]) / 4_294_967_296.0 * std::f64::consts::TAU;
        ((-2.0 * radius.ln()).sqrt() * angle.cos()) as f32
    }

    /// A permutation of `0..len` (Fisher-Yates).
    pub fn permutation(&self, len: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..len).collect();
        self.shuffle(&mut order);
        order
    }

    /// Puts items into the order of [`RandomStream::permutation`].
    pub fn shuffle<T>(&self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            let words = self.words(i as u64);
            let draw = (u64::from(words[0]) << 32 | u64::from(words[1])) as u128;
            items.swap(i, ((draw * (i as u128 + 1)) >> 64) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_the_published_philox_vectors() {
        // Random123 kat_vectors, philox4x32 10 rounds.
        let zero = RandomStream::new(0, 0).words(0);
        assert_eq!(zero, [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        let ones = RandomStream::new(u64::MAX, u64::MAX).words(u64::MAX);
        assert_eq!(ones, [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    }

    #[test]
    fn calls_side_by_side_give_the_same_words() {
        let stream = RandomStream::new(5, u64::MAX - 3);
        for first in [0, 1000, u64::from(u32::MAX) - 3] {
            let block = stream.words_of_calls::<16>(first);
            for call in 0..16 {
                assert_eq!(block.map(|words| words[call]), stream.words(first + call as u64));
            }
        }
    }

    #[test]
    fn permutation_is_one() {
        let mut order = RandomStream::new(7, 1).permutation(1000);
        assert_ne!(order, (0..1000).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..1000).collect::<Vec<_>>());
    }
}
