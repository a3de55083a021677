//! Bytes of a weight: owned, or a slice of a memory-mapped file that stays mapped while anyone reads it.

use memmap2::MmapMut;
use std::any::Any;
use std::ops::{Deref, Range};
use std::sync::Arc;

/// Immutable bytes, cheap to clone.
#[derive(Clone)]
pub struct Bytes(Inner);

#[derive(Clone)]
enum Inner {
    /// 64-bit words so that any element type up to 8 bytes is aligned; the length is in bytes.
    Owned(Arc<Vec<u64>>, usize),
    /// Part of memory from the system, for bytes of several huge pages.
    Pages(Arc<MmapMut>, Range<usize>),
    Mapped {
        _owner: Arc<dyn Any + Send + Sync>,
        pointer: *const u8,
        len: usize,
    },
}

// SAFETY: the bytes are never written after construction and the owner keeps the mapping alive.
unsafe impl Send for Bytes {}
// SAFETY: as above; shared reads of immutable memory.
unsafe impl Sync for Bytes {}

impl Bytes {
    /// Copies bytes into aligned memory.
    pub fn owned(bytes: &[u8]) -> Bytes {
        Bytes::filled(bytes.len(), |copy| copy.copy_from_slice(bytes))
    }

    /// `len` bytes written by `fill` into fresh aligned memory (zeroed before), without a copy.
    ///
    /// Large memory comes from the system, which clears each page when it is first written: the threads of `fill` share
    /// that work, where the allocator would clear on the calling thread what it had lent before.
    pub fn filled(len: usize, fill: impl FnOnce(&mut [u8])) -> Bytes {
        if let Some((mut pages, place)) = huge_pages(len) {
            fill(&mut pages[place.clone()]);
            return Bytes(Inner::Pages(Arc::new(pages), place));
        }
        let mut words = vec![0u64; len.div_ceil(8)];
        // SAFETY: the words hold at least `len` bytes, and u8 has no alignment or validity demands.
        fill(unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast::<u8>(), len) });
        Bytes(Inner::Owned(Arc::new(words), len))
    }

    /// Bytes of `tensor`, which must be a slice out of the mapping that `owner` is or keeps. Copied if they are not
    /// `alignment`-aligned.
    pub fn mapped<Map: Any + Send + Sync>(owner: &Arc<Map>, tensor: &[u8], alignment: usize) -> Bytes {
        if !(tensor.as_ptr() as usize).is_multiple_of(alignment) {
            return Bytes::owned(tensor);
        }
        Bytes(Inner::Mapped { _owner: owner.clone(), pointer: tensor.as_ptr(), len: tensor.len() })
    }

    /// Says that the bytes will not be read soon. Pages of a file mapping leave this process's memory (the system may
    /// keep them cached) and come back when they are read again; owned bytes stay.
    pub fn release(&self) {
        #[cfg(unix)]
        if let Inner::Mapped { pointer, len, .. } = &self.0 {
            // SAFETY: sysconf has no preconditions.
            let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096).max(1);
            let (start, end) = (*pointer as usize, *pointer as usize + len);
            // Pages at the ends may belong to a neighbour too.
            let (first, last) = (start.next_multiple_of(page), end / page * page);
            if first < last {
                // SAFETY: the range lies in a mapping that `_owner` keeps; it is a shared mapping of a file, of which
                // DONTNEED drops no contents.
                unsafe { libc::madvise(first as *mut libc::c_void, last - first, libc::MADV_DONTNEED) };
            }
        }
    }

    /// Whether the bytes live in a file mapping.
    pub fn is_mapped(&self) -> bool {
        matches!(self.0, Inner::Mapped { .. })
    }

    /// The bytes as little-endian 16-bit words. The length must be even and the bytes aligned (both constructors see to it).
    pub fn as_u16(&self) -> &[u16] {
        let (bytes, len) = (self.as_ptr(), self.len());
        assert!(len.is_multiple_of(2) && (bytes as usize).is_multiple_of(2));
        // SAFETY: aligned and in bounds by the assertion; any bit pattern is a u16.
        unsafe { std::slice::from_raw_parts(bytes.cast(), len / 2) }
    }

    /// The bytes as f32. The length must be a multiple of 4 and the bytes aligned (both constructors see to it).
    pub fn as_f32(&self) -> &[f32] {
        let (bytes, len) = (self.as_ptr(), self.len());
        assert!(len.is_multiple_of(4) && (bytes as usize).is_multiple_of(4));
        // SAFETY: aligned and in bounds by the assertion; any bit pattern is an f32.
        unsafe { std::slice::from_raw_parts(bytes.cast(), len / 4) }
    }
}

/// Memory with a place for `len` bytes in it, on huge pages where that is worth it and the system grants it: filling it
/// page by page costs more than what fills it. None: the allocator serves.
fn huge_pages(len: usize) -> Option<(MmapMut, Range<usize>)> {
    const HUGE: usize = 2 << 20;
    if len < 2 * HUGE {
        return None;
    }
    // What is never touched, here up to the first border of a huge page, takes no memory.
    let pages = MmapMut::map_anon(len + HUGE).ok()?;
    let start = (pages.as_ptr() as usize).next_multiple_of(HUGE) - pages.as_ptr() as usize;
    #[cfg(target_os = "linux")]
    // Whole pages only, so that the last one takes no more than its bytes; a refusal makes it slower, no more.
    let _ = pages.advise_range(memmap2::Advice::HugePage, start, len / HUGE * HUGE);
    Some((pages, start..start + len))
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match &self.0 {
            // SAFETY: the words hold at least `len` bytes.
            Inner::Owned(words, len) => unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), *len) },
            Inner::Pages(pages, place) => &pages[place.clone()],
            // SAFETY: the owner keeps the mapping alive as long as self.
            Inner::Mapped { pointer, len, .. } => unsafe { std::slice::from_raw_parts(*pointer, *len) },
        }
    }
}
