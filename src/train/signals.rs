//! Signals that ask a run to stop: Ctrl-C (SIGINT), SIGTERM, SIGUSR1 (Slurm's warning before a job's end), SIGHUP (the
//! terminal is gone).
//!
//! Invariant: the first one only sets a flag, which the loop reads between steps; Ctrl-C after any of them ends the process at
//! once with code 130. The handler does nothing but atomic stores, `write` and `_exit`, which POSIX allows in a handler.
//! SIGINT and SIGHUP stay ignored where they were (`nohup`, background jobs).

use std::sync::atomic::{AtomicI32, Ordering};

/// The signal that asked to stop; 0 for none.
static REQUESTED: AtomicI32 = AtomicI32::new(0);

/// A signal that asked the run to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal(i32);

impl Signal {
    /// Its name.
    pub fn name(self) -> &'static str {
        #[cfg(unix)]
        match self.0 {
            libc::SIGINT => return "Ctrl-C",
            libc::SIGTERM => return "SIGTERM",
            libc::SIGUSR1 => return "SIGUSR1",
            libc::SIGHUP => return "SIGHUP",
            _ => {}
        }
        "a signal"
    }
}

/// The first signal since [`install`] that asked to stop.
pub fn requested() -> Option<Signal> {
    match REQUESTED.load(Ordering::Relaxed) {
        0 => None,
        signal => Some(Signal(signal)),
    }
}

/// Catches the signals from now on. Does nothing on systems without them.
pub fn install() {
    REQUESTED.store(0, Ordering::Relaxed);
    #[cfg(unix)]
    unix::install();
}

#[cfg(unix)]
mod unix {
    use super::REQUESTED;
    use libc::c_int;
    use std::sync::atomic::Ordering;

    /// What Ctrl-C says: a step may take a while.
    const NOTICE: &[u8] = b"\nstopping after this step; Ctrl-C again stops at once\n";

    pub fn install() {
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGUSR1, libc::SIGHUP] {
            // SAFETY: `action` is a valid sigaction (all-zero is one); a null pointer only asks for the present action.
            let ignored = unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                libc::sigaction(signal, std::ptr::null(), &mut action) == 0 && action.sa_sigaction == libc::SIG_IGN
            };
            if ignored && matches!(signal, libc::SIGINT | libc::SIGHUP) {
                continue;
            }
            // SAFETY: `handle` has the signature of a handler without SA_SIGINFO and only does what a handler may;
            // `action` lives until the call returns. SA_RESTART keeps interrupted writes whole.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = handle as extern "C" fn(c_int) as usize;
                action.sa_flags = libc::SA_RESTART;
                libc::sigemptyset(&mut action.sa_mask);
                libc::sigaction(signal, &action, std::ptr::null_mut());
            }
        }
    }

    extern "C" fn handle(signal: c_int) {
        let before = REQUESTED.compare_exchange(0, signal, Ordering::Relaxed, Ordering::Relaxed);
        if signal != libc::SIGINT {
            return;
        }
        if before.is_err() {
            // SAFETY: `_exit` is async-signal-safe; nothing of this process is used afterwards.
            unsafe { libc::_exit(130) };
        }
        let error = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
        // SAFETY: `write` is async-signal-safe and the bytes are static.
        let _ = unsafe { libc::write(libc::STDERR_FILENO, NOTICE.as_ptr().cast(), NOTICE.len()) };
        restore_errno(error);
    }

    /// The interrupted code must not see the errno of the handler's `write`.
    fn restore_errno(error: c_int) {
        #[cfg(any(target_os = "linux", target_os = "emscripten"))]
        // SAFETY: the pointer is this thread's errno.
        unsafe {
            *libc::__errno_location() = error;
        }
        #[cfg(any(target_os = "macos", target_os = "ios", target_os = "freebsd"))]
        // SAFETY: the pointer is this thread's errno.
        unsafe {
            *libc::__error() = error;
        }
        let _ = error;
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn the_first_signal_sets_the_flag_and_later_ones_do_not_change_it() {
        install();
        assert_eq!(requested(), None);
        for signal in [libc::SIGUSR1, libc::SIGTERM] {
            // SAFETY: the handler is installed; raising a signal has no memory effects of its own.
            unsafe { libc::raise(signal) };
        }
        assert_eq!(requested().map(Signal::name), Some("SIGUSR1"));
        install();
        assert_eq!(requested(), None, "a new run starts without a request");
    }
}
