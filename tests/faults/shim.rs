//! A library put before the C library (LD_PRELOAD): the n-th call that changes something under a folder goes wrong.
//!
//! It stands below everything that saves, so that no way to write a file can be left out. What counts: creating,
//! writing, cutting and syncing files, and creating and renaming names. Removing never fails: it is how a failed save
//! clears up.
//!
//! Environment: `FAULT_UNDER` the folder, `FAULT_AT` the call (from 0), `FAULT_ERRNO` its error number, `FAULT_LASTS`
//! if every later call fails too (a full or read-only disk), `FAULT_SHORT` the most bytes that any write takes,
//! `FAULT_LOG` a file that gets one byte for each call that failed.

use std::ffi::{c_char, c_int, c_void, CStr, CString};
use std::os::unix::ffi::OsStringExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::OnceLock;

const O_ACCMODE: c_int = 3;
const O_CREAT: c_int = 0o100;
const RTLD_NEXT: *mut c_void = -1isize as *mut c_void;

extern "C" {
    fn dlsym(handle: *mut c_void, symbol: *const c_char) -> *mut c_void;
    fn __errno_location() -> *mut c_int;
}

struct Plan {
    under: Vec<u8>,
    /// Whether names without a leading slash are in the folder too.
    works_there: bool,
    at: usize,
    errno: c_int,
    lasts: bool,
    short: usize,
    log: Option<CString>,
}

fn plan() -> Option<&'static Plan> {
    static PLAN: OnceLock<Option<Plan>> = OnceLock::new();
    PLAN.get_or_init(|| {
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<usize>().ok());
        let under = std::env::var_os("FAULT_UNDER")?;
        Some(Plan {
            works_there: std::env::current_dir().is_ok_and(|folder| folder.starts_with(&under)),
            under: under.into_vec(),
            at: number("FAULT_AT").unwrap_or(usize::MAX),
            errno: number("FAULT_ERRNO").unwrap_or(5) as c_int,
            lasts: std::env::var_os("FAULT_LASTS").is_some(),
            short: number("FAULT_SHORT").unwrap_or(usize::MAX),
            log: std::env::var_os("FAULT_LOG").and_then(|path| CString::new(path.into_vec()).ok()),
        })
    })
    .as_ref()
}

/// Whether each file descriptor belongs to the folder.
static UNDER: [AtomicBool; 4096] = [const { AtomicBool::new(false) }; 4096];
static CALLS: AtomicUsize = AtomicUsize::new(0);

fn note(fd: c_int, under: bool) {
    if let Some(slot) = usize::try_from(fd).ok().and_then(|fd| UNDER.get(fd)) {
        slot.store(under, Ordering::SeqCst);
    }
}

fn is_noted(fd: c_int) -> bool {
    usize::try_from(fd).ok().and_then(|fd| UNDER.get(fd)).is_some_and(|slot| slot.load(Ordering::SeqCst))
}

fn is_under(path: *const c_char) -> bool {
    plan().is_some_and(|plan| {
        // SAFETY: callers of the C library pass paths that end in a zero byte.
        let path = if path.is_null() { return false } else { unsafe { CStr::from_ptr(path) }.to_bytes() };
        path.starts_with(&plan.under) || (plan.works_there && !path.starts_with(b"/"))
    })
}

/// Counts a call; true if it is to fail, with the error number set.
fn fails() -> bool {
    let Some(plan) = plan() else { return false };
    let call = CALLS.fetch_add(1, Ordering::SeqCst);
    if call != plan.at && !(plan.lasts && call > plan.at) {
        return false;
    }
    if let Some(log) = &plan.log {
        // SAFETY: the functions have these types, and the path ends in a zero byte.
        unsafe {
            let fd = real_open(c"open64", log.as_ptr(), 0o2001 | O_CREAT, 0o644);
            real_write(fd, c"x".as_ptr().cast(), 1);
            real_close(fd);
        }
    }
    // SAFETY: the C library gives each thread its own place for the error number.
    unsafe { *__errno_location() = plan.errno };
    true
}

/// The function that would have been called without this library.
macro_rules! real {
    ($symbol:expr, fn($($argument:ty),*) -> $result:ty) => {
        std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($argument),*) -> $result>(dlsym(RTLD_NEXT, $symbol.as_ptr()))
    };
}

unsafe fn real_open(symbol: &CStr, path: *const c_char, flags: c_int, mode: c_int) -> c_int {
    // SAFETY: as the caller's.
    unsafe { real!(symbol, fn(*const c_char, c_int, c_int) -> c_int)(path, flags, mode) }
}

unsafe fn real_write(fd: c_int, bytes: *const c_void, len: usize) -> isize {
    // SAFETY: as the caller's.
    unsafe { real!(c"write", fn(c_int, *const c_void, usize) -> isize)(fd, bytes, len) }
}

unsafe fn real_close(fd: c_int) -> c_int {
    // SAFETY: as the caller's.
    unsafe { real!(c"close", fn(c_int) -> c_int)(fd) }
}

/// Opening counts where it may write; a folder or a file to read is only remembered, for what is synced through it.
unsafe fn opened(symbol: &CStr, path: *const c_char, flags: c_int, mode: c_int) -> c_int {
    let under = is_under(path);
    if under && flags & (O_ACCMODE | O_CREAT) != 0 && fails() {
        return -1;
    }
    // SAFETY: as the caller's.
    let fd = unsafe { real_open(symbol, path, flags, mode) };
    note(fd, under);
    fd
}

/// # Safety
/// As open(2). (The mode is a variadic argument there, which arrives like a third one.)
#[no_mangle]
pub unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: c_int) -> c_int {
    // SAFETY: as the caller's.
    unsafe { opened(c"open", path, flags, mode) }
}

/// # Safety
/// As open(2).
#[no_mangle]
pub unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: c_int) -> c_int {
    // SAFETY: as the caller's.
    unsafe { opened(c"open64", path, flags, mode) }
}

/// # Safety
/// As close(2).
#[no_mangle]
pub unsafe extern "C" fn close(fd: c_int) -> c_int {
    note(fd, false);
    // SAFETY: as the caller's.
    unsafe { real_close(fd) }
}

/// A write that fails stores half of its bytes first, as a disk that fills up does.
///
/// # Safety
/// As write(2).
#[no_mangle]
pub unsafe extern "C" fn write(fd: c_int, bytes: *const c_void, len: usize) -> isize {
    if !is_noted(fd) {
        // SAFETY: as the caller's.
        return unsafe { real_write(fd, bytes, len) };
    }
    if fails() {
        // SAFETY: as the caller's, with fewer bytes.
        unsafe {
            let errno = *__errno_location();
            real_write(fd, bytes, len / 2);
            *__errno_location() = errno;
        }
        return -1;
    }
    let most = plan().map_or(usize::MAX, |plan| plan.short);
    // SAFETY: as the caller's, with at most as many bytes.
    unsafe { real_write(fd, bytes, len.min(most)) }
}

/// Functions that fail or are passed on, by what tells whether they count.
macro_rules! passed_on {
    ($($name:ident($($argument:ident: $type:ty),*) -> $result:ty, $symbol:expr, if $counts:expr;)*) => {$(
        /// # Safety
        /// As the C library's function of this name.
        #[no_mangle]
        pub unsafe extern "C" fn $name($($argument: $type),*) -> $result {
            if $counts && fails() {
                return -1;
            }
            // SAFETY: as the caller's.
            unsafe { real!($symbol, fn($($type),*) -> $result)($($argument),*) }
        }
    )*};
}

passed_on! {
    pwrite64(fd: c_int, bytes: *const c_void, len: usize, at: i64) -> isize, c"pwrite64", if is_noted(fd);
    writev(fd: c_int, parts: *const c_void, count: c_int) -> isize, c"writev", if is_noted(fd);
    copy_file_range(from: c_int, from_at: *mut i64, fd: c_int, at: *mut i64, len: usize, flags: u32) -> isize,
        c"copy_file_range", if is_noted(fd);
    sendfile64(fd: c_int, from: c_int, at: *mut i64, len: usize) -> isize, c"sendfile64", if is_noted(fd);
    ftruncate64(fd: c_int, len: i64) -> c_int, c"ftruncate64", if is_noted(fd);
    fsync(fd: c_int) -> c_int, c"fsync", if is_noted(fd);
    fdatasync(fd: c_int) -> c_int, c"fdatasync", if is_noted(fd);
    mkdir(path: *const c_char, mode: u32) -> c_int, c"mkdir", if is_under(path);
    rename(from: *const c_char, to: *const c_char) -> c_int, c"rename", if is_under(to);
}
