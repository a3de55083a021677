//! Uploads through page-locked memory: the host fills one part of it while the GPU copies out of another, and goes on as
//! soon as its own bytes are copied.
//!
//! Out of ordinary memory a copy is staged by the driver, which waits where its own buffer is full. Invariant: a part of the
//! buffer is written only after the copies out of it are done (its event), in the order that [`Ring`] gives.
//! Reference: CUDA driver API, "API synchronization behavior".

use super::driver::driver_error;
use super::ring::{Piece, Ring};
use crate::error::Result;
use cudarc::driver::{result as cuda, sys};
use rayon::prelude::*;

/// A slot: large enough that the cost of asking for a copy does not show beside it.
const SLOT_BYTES: usize = 4 << 20;
/// Small uploads of a step pass through without the host coming round to a slot in use.
const SLOTS: usize = 8;
/// What a thread copies: one of them alone is slower than the bus.
const COPY: usize = 512 << 10;

/// The buffer, its slots, and for each the event behind its last copy.
pub struct Pinned {
    memory: *mut u8,
    events: Vec<sys::CUevent>,
    ring: Ring,
}

// SAFETY: the memory and the events belong to this value and the driver's objects may be used from any thread.
unsafe impl Send for Pinned {}

impl Pinned {
    /// # Safety
    /// The context that is to use it is current.
    pub unsafe fn new() -> Result<Pinned> {
        // SAFETY: a plain allocation in the current context; freed in drop.
        let memory = unsafe { cuda::malloc_host(SLOTS * SLOT_BYTES, 0) }
            .map_err(driver_error("page-locked memory for uploads"))?;
        let mut pinned = Pinned { memory: memory.cast(), events: Vec::new(), ring: Ring::new(SLOTS, SLOT_BYTES) };
        for _ in 0..SLOTS {
            let event = cuda::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
                .map_err(driver_error("an event for uploads"))?;
            pinned.events.push(event);
        }
        Ok(pinned)
    }

    /// Has the stream copy `bytes` to `to`; they may change when this returns.
    ///
    /// # Safety
    /// `to` has room for them; the context is current and is the stream's.
    pub unsafe fn upload(&mut self, to: u64, bytes: &[u8], stream: sys::CUstream) -> Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let Piece { slot, start, bytes: count, enters } = self.ring.take(bytes.len() - done);
            let event = self.events[slot];
            // SAFETY: the piece lies within the buffer; the event was made here, and once it has passed nothing reads the
            // slot; what is copied out of the piece stays until then.
            unsafe {
                if enters {
                    // An event that was never recorded has passed.
                    cuda::event::synchronize(event).map_err(driver_error("waiting for an upload"))?;
                }
                let piece = std::slice::from_raw_parts_mut(self.memory.add(start), count);
                fill(piece, &bytes[done..done + count]);
                cuda::memcpy_htod_async(to + done as u64, piece, stream).map_err(driver_error("copying to the GPU"))?;
                cuda::event::record(event, stream).map_err(driver_error("an event behind an upload"))?;
            }
            done += count;
        }
        Ok(())
    }
}

/// Copies, with several threads where one would take longer than waking them.
fn fill(piece: &mut [u8], bytes: &[u8]) {
    match bytes.len() <= COPY {
        true => piece.copy_from_slice(bytes),
        false => piece.par_chunks_mut(COPY).zip(bytes.par_chunks(COPY)).for_each(|(to, from)| to.copy_from_slice(from)),
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // Nothing can be done about errors here.
        // SAFETY: made by this value; the driver has synchronised the stream before it lets go of this.
        unsafe {
            for &event in &self.events {
                let _ = cuda::event::destroy(event);
            }
            let _ = cuda::free_host(self.memory.cast());
        }
    }
}
