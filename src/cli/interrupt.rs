//! Ctrl-C in a chat: it stops the answer, not the program.
//!
//! Invariant: the handler does nothing but atomic operations and `_exit`, which POSIX allows in a handler. The third
//! Ctrl-C that nobody took note of ends the process with code 130, so that a stuck one can be left.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// Whether Ctrl-C was pressed since [`clear`].
pub static PRESSED: AtomicBool = AtomicBool::new(false);
/// How often.
static COUNT: AtomicU8 = AtomicU8::new(0);

/// Catches Ctrl-C from now on. Where it is ignored (background jobs) it stays so; does nothing on systems without it.
pub fn install() {
    clear();
    #[cfg(unix)]
    unix::install();
}

/// Forgets what was pressed.
pub fn clear() {
    PRESSED.store(false, Ordering::Relaxed);
    COUNT.store(0, Ordering::Relaxed);
}

/// Whether Ctrl-C was pressed since [`clear`].
pub fn pressed() -> bool {
    PRESSED.load(Ordering::Relaxed)
}

#[cfg(unix)]
mod unix {
    use super::{Ordering, COUNT, PRESSED};
    use libc::c_int;

    pub fn install() {
        // SAFETY: all-zero is a valid sigaction; a null pointer only asks for the present action.
        let ignored = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            libc::sigaction(libc::SIGINT, std::ptr::null(), &mut action) == 0 && action.sa_sigaction == libc::SIG_IGN
        };
        if ignored {
            return;
        }
        // SAFETY: `handle` has the signature of a handler without SA_SIGINFO and only does what a handler may; `action`
        // lives until the call returns. SA_RESTART keeps interrupted reads and writes whole.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handle as extern "C" fn(c_int) as usize;
            action.sa_flags = libc::SA_RESTART;
            libc::sigemptyset(&mut action.sa_mask);
            libc::sigaction(libc::SIGINT, &action, std::ptr::null_mut());
        }
    }

    extern "C" fn handle(_signal: c_int) {
        PRESSED.store(true, Ordering::Relaxed);
        if COUNT.fetch_add(1, Ordering::Relaxed) >= 2 {
            // SAFETY: `_exit` is async-signal-safe; nothing of this process is used afterwards.
            unsafe { libc::_exit(130) };
        }
    }
}
