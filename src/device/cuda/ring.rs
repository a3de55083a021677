//! Which part of a page-locked buffer the next upload passes through.
//!
//! The buffer is cut into slots that are used in turn; small uploads share one, large ones are cut over several. The GPU
//! copies out of a slot while the host fills the next one, so that the host waits only where it comes back to a slot out of
//! which the GPU has not copied yet.
//!
//! Invariant: bytes of a slot are given out once until the slot is entered anew, which [`Piece::enters`] tells.

/// Starts of pieces are multiples of this.
const ALIGNMENT: usize = 256;

/// The slots, and how far the present one is used.
#[derive(Debug)]
pub struct Ring {
    slots: usize,
    slot_bytes: usize,
    slot: usize,
    used: usize,
}

/// A part of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Which slot.
    pub slot: usize,
    /// First byte in the whole buffer.
    pub start: usize,
    /// As many as were wanted, or as fit.
    pub bytes: usize,
    /// Whether this is the slot's first piece: what was copied out of it before must be done.
    pub enters: bool,
}

impl Ring {
    /// So many slots of so many bytes, a multiple of 256.
    pub fn new(slots: usize, slot_bytes: usize) -> Ring {
        assert!(slots > 0 && slot_bytes > 0 && slot_bytes.is_multiple_of(ALIGNMENT));
        Ring { slots, slot_bytes, slot: slots - 1, used: slot_bytes }
    }

    /// A place for `wanted` bytes (at least 1), or for the first of them.
    pub fn take(&mut self, wanted: usize) -> Piece {
        let left = self.slot_bytes - self.used;
        // What fits into a slot is not cut.
        let enters = left == 0 || (left < wanted && wanted <= self.slot_bytes);
        if enters {
            (self.slot, self.used) = ((self.slot + 1) % self.slots, 0);
        }
        let bytes = wanted.min(self.slot_bytes - self.used);
        let start = self.slot * self.slot_bytes + self.used;
        self.used = (self.used + bytes).next_multiple_of(ALIGNMENT);
        Piece { slot: self.slot, start, bytes, enters }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_uploads_share_a_slot_and_large_ones_take_several() {
        let mut ring = Ring::new(2, 1024);
        let piece = |slot, start, bytes, enters| Piece { slot, start, bytes, enters };
        assert_eq!(ring.take(10), piece(0, 0, 10, true));
        assert_eq!(ring.take(300), piece(0, 256, 300, false));
        assert_eq!(ring.take(300), piece(1, 1024, 300, true));
        assert_eq!(ring.take(1500), piece(1, 1536, 512, false));
        assert_eq!(ring.take(988), piece(0, 0, 988, true));
        assert_eq!(ring.take(1024), piece(1, 1024, 1024, true));
        assert_eq!(ring.take(1), piece(0, 0, 1, true));
    }

    #[test]
    fn no_byte_is_given_out_twice_before_its_slot_is_entered_anew() {
        let (slots, slot_bytes) = (3, 2048);
        let mut ring = Ring::new(slots, slot_bytes);
        let mut lent = vec![false; slots * slot_bytes];
        for i in 0..5000usize {
            let mut wanted = 1 + i * i % 5000;
            while wanted > 0 {
                let piece = ring.take(wanted);
                assert!(piece.bytes > 0 && piece.bytes <= wanted && piece.start.is_multiple_of(ALIGNMENT));
                let slot = piece.slot * slot_bytes..(piece.slot + 1) * slot_bytes;
                assert!(piece.start >= slot.start && piece.start + piece.bytes <= slot.end);
                if piece.enters {
                    lent[slot].fill(false);
                }
                let bytes = &mut lent[piece.start..piece.start + piece.bytes];
                assert!(bytes.iter().all(|lent| !lent), "upload {i}");
                bytes.fill(true);
                wanted -= piece.bytes;
            }
        }
    }
}
