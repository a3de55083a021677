//! Progress bars on stderr; silent where stderr is no terminal.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::Duration;

/// A bar that counts parts of a job, with a message for the part at hand.
pub fn counted(total: u64, what: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    bar.set_style(style("{prefix} {wide_bar} {pos}/{len} {msg}"));
    bar.set_prefix(what.to_string());
    bar
}

/// Runs `work` with a bar, which it tells the parts done, their number, and the name of the last one.
pub fn counting<T>(what: &str, work: impl FnOnce(&mut dyn FnMut(usize, usize, &str)) -> T) -> T {
    let bar = counted(0, what);
    let result = work(&mut |done, total, name| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
        bar.set_message(name.to_string());
    });
    bar.finish_and_clear();
    result
}

/// A bar that counts parts of a long job, with the time left.
pub fn timed(total: u64, what: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    bar.set_style(style("{prefix} {wide_bar} {pos}/{len} · {eta} left"));
    bar.set_prefix(what.to_string());
    bar
}

/// The bar of a training run: step, loss, learning rate, tokens a second, time left, memory.
pub fn training(total: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    bar.set_style(style("{prefix} {pos}/{len} {wide_bar} {msg} · {eta} left"));
    bar.set_prefix("step");
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}

fn style(template: &str) -> ProgressStyle {
    // The templates are constants of this file; the default bar is a safe answer to a mistake in them.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━╸─")
}
