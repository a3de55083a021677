//! What `doctor` says of GPUs: NVIDIA's files, what the driver answers where this build can ask it, and who computes.

use super::{Item, State};
use crate::device::cuda::requirements::{check, version, Found, OLDEST_CARD};
use crate::device::machine::Nvidia;
use crate::error::Error;
use crate::train::memory::shown;
use std::path::PathBuf;

/// What the CUDA driver answered.
#[derive(Debug)]
pub enum Answer {
    /// This build has no kernels for GPUs and asks no driver.
    NotBuilt,
    /// There is no driver, or none that starts.
    Refused(Error),
    /// It works.
    Works(Found),
}

/// Asks the driver.
#[cfg(feature = "cuda")]
pub fn ask() -> Answer {
    crate::device::cuda::probe().map_or_else(Answer::Refused, Answer::Works)
}

/// Asks nobody.
#[cfg(not(feature = "cuda"))]
pub fn ask() -> Answer {
    Answer::NotBuilt
}

/// How the program was built.
pub(super) fn build(answer: &Answer) -> &'static str {
    match answer {
        Answer::NotBuilt => "without CUDA",
        Answer::Refused(_) | Answer::Works(_) => "with CUDA",
    }
}

/// The lines about GPUs.
pub(super) fn items(files: &Nvidia, answer: &Answer) -> Vec<Item> {
    let mut items = vec![module(files)];
    match answer {
        Answer::NotBuilt => {
            if files.cuda.is_some() || files.cublas.is_some() || files.driver.is_some() {
                items.push(library("libcuda.so.1", &files.cuda));
                items.push(library("libcublas", &files.cublas));
            }
        }
        Answer::Refused(error) => {
            let item = Item::new("CUDA driver", State::Note, error.message());
            items.push(match error.hint_text() {
                Some(hint) => item.hint(hint),
                None => item,
            });
        }
        Answer::Works(found) => {
            let Found { cards, driver, kernels, cublas } = found;
            let speaks = format!("CUDA {}, {} GPUs", version(*driver), cards.len());
            items.push(match found.is_driver_older() {
                false => Item::new("CUDA driver", State::Fine, speaks),
                true => Item::new("CUDA driver", State::Note, speaks)
                    .hint(format!("the kernels were built with CUDA {}: install a newer driver", version(*kernels))),
            });
            items.extend(cards.iter().map(card));
            items.push(match cublas {
                true => Item::new("cuBLAS", State::Fine, "can be opened"),
                false => Item::new("cuBLAS", State::Note, "cannot be opened (libcublas.so.13 or .12)")
                    .hint("install CUDA's libraries, or put their folder into LD_LIBRARY_PATH"),
            });
        }
    }
    items.push(Item::new("GPU in use", State::Note, in_use(answer)));
    items
}

/// What `--device auto` comes to: it takes the first GPU or none.
fn in_use(answer: &Answer) -> String {
    let reason = match answer {
        Answer::NotBuilt => "this program was built without CUDA".into(),
        Answer::Refused(_) => "the driver does not answer".into(),
        Answer::Works(found) => match check(found, 0) {
            Ok(()) => return "yes, the first one, by commands that take --device".into(),
            Err(error) => error.to_string(),
        },
    };
    format!("no: {reason}; the CPU does all work")
}

fn module(files: &Nvidia) -> Item {
    let cards = if files.cards.is_empty() { String::new() } else { format!(", {}", files.cards.join(", ")) };
    match &files.driver {
        Some(version) => Item::new("NVIDIA driver", State::Fine, format!("{version}{cards}")),
        None if files.cuda.is_some() => {
            Item::new("NVIDIA driver", State::Note, "library there, kernel module not loaded")
        }
        None => Item::new("NVIDIA driver", State::Note, "none: /proc/driver/nvidia is not there"),
    }
}

fn library(name: &'static str, path: &Option<PathBuf>) -> Item {
    Item::new(name, State::Note, path.as_ref().map_or("not found".into(), |path| path.display().to_string()))
}

fn card((name, capability, memory): &(String, (i32, i32), usize)) -> Item {
    let (major, minor) = capability;
    let found = format!("{name}, compute capability {major}.{minor}, {}", shown(*memory as u64));
    match *capability >= OLDEST_CARD {
        true => Item::new("GPU", State::Fine, found),
        false => Item::new("GPU", State::Note, found)
            .hint(format!("the kernels need {}.{} (bf16 tensor cores) or newer", OLDEST_CARD.0, OLDEST_CARD.1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(files: &Nvidia, answer: &Answer) -> String {
        super::super::table(&items(files, answer))
    }

    #[test]
    fn a_build_says_what_it_can_know() {
        let none = Nvidia::default();
        let plain = text(&none, &Answer::NotBuilt);
        assert!(plain.contains("no: this program was built without CUDA") && !plain.contains("libcuda"), "{plain}");
        let files = Nvidia { driver: Some("580.1".into()), cuda: Some("/lib/libcuda.so.1".into()), ..none.clone() };
        let plain = text(&files, &Answer::NotBuilt);
        assert!(plain.contains("580.1") && plain.contains("/lib/libcuda.so.1") && plain.contains("not found"));

        let refused = Answer::Refused(Error::failed("no NVIDIA driver: libcuda.so.1 cannot be opened").hint("install"));
        let refused = text(&none, &refused);
        assert!(refused.contains("-- CUDA driver") && refused.contains("install"), "{refused}");
        assert!(!refused.contains("without CUDA"), "{refused}");
    }

    #[test]
    fn cards_that_are_too_old_and_a_missing_library_are_named() {
        let cards = vec![("NVIDIA H100".to_string(), (9, 0), 80 << 30), ("Tesla T4".to_string(), (7, 5), 15 << 30)];
        let found = Found { cards, driver: 13010, kernels: 13000, cublas: false };
        let all = text(&Nvidia::default(), &Answer::Works(found.clone()));
        assert!(all.contains("CUDA 13.1, 2 GPUs") && all.contains("ok GPU"), "{all}");
        assert!(all.contains("NVIDIA H100, compute capability 9.0, 80.00 GiB"), "{all}");
        assert!(all.contains("-- GPU                Tesla T4") && all.contains("need 8.0"), "{all}");
        assert!(all.contains("cannot be opened (libcublas.so.13 or .12)"), "{all}");
        assert!(all.contains("no: cuBLAS cannot be opened"), "{all}");
        let whole = Found { cublas: true, ..found.clone() };
        let all = text(&Nvidia::default(), &Answer::Works(whole.clone()));
        assert!(all.contains("yes, the first one, by commands"), "{all}");
        let all = text(&Nvidia::default(), &Answer::Works(Found { driver: 12040, ..whole }));
        assert!(all.contains("-- CUDA driver") && all.contains("install a newer driver"), "{all}");
        assert!(all.contains("no: the NVIDIA driver is too old"), "{all}");
    }

    #[test]
    fn this_build_asks_as_it_was_built() {
        let built = !matches!(ask(), Answer::NotBuilt);
        assert_eq!(built, cfg!(feature = "cuda"));
        assert_eq!(build(&ask()), if built { "with CUDA" } else { "without CUDA" });
    }
}
