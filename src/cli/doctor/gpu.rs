//! What `doctor` says of GPUs: NVIDIA's files, what the driver answers where this build can ask it, and who computes.

use super::{Item, State};
use crate::device::machine::Nvidia;
use crate::error::Error;
use crate::train::memory::shown;
use std::path::PathBuf;

/// Compute capability from which on there are kernels: bf16 tensor cores.
const OLDEST: (i32, i32) = (8, 0);

/// What the CUDA driver answered.
#[derive(Debug)]
pub enum Answer {
    /// This build has no kernels for GPUs and asks no driver.
    NotBuilt,
    /// There is no driver, or none that starts.
    Refused(Error),
    /// It works.
    Works {
        /// CUDA version that it speaks, such as 13000.
        version: i32,
        /// Each GPU's name, compute capability and bytes of memory.
        cards: Vec<(String, (i32, i32), usize)>,
        /// Whether cuBLAS can be opened.
        cublas: bool,
    },
}

/// Asks the driver.
#[cfg(feature = "cuda")]
pub fn ask() -> Answer {
    use crate::device::cuda::{probe, Found};
    match probe() {
        Ok(Found { devices, driver_version, cublas }) => {
            Answer::Works { version: driver_version, cards: devices, cublas }
        }
        Err(error) => Answer::Refused(error),
    }
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
        Answer::Refused(_) | Answer::Works { .. } => "with CUDA",
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
        Answer::Works { version, cards, cublas } => {
            let speaks = format!("CUDA {}.{}, {} GPUs", version / 1000, version % 1000 / 10, cards.len());
            items.push(Item::new("CUDA driver", State::Fine, speaks));
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
fn in_use(answer: &Answer) -> &'static str {
    match answer {
        Answer::NotBuilt => "no: this program was built without CUDA; the CPU does all work",
        Answer::Refused(_) => "no: the driver does not answer; the CPU does all work",
        Answer::Works { cards, cublas: true, .. } if cards.first().is_some_and(|card| card.1 >= OLDEST) => {
            "yes, the first one, by commands that take --device"
        }
        Answer::Works { .. } => "no: the first GPU or its libraries do not do; the CPU does all work",
    }
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
    match *capability >= OLDEST {
        true => Item::new("GPU", State::Fine, found),
        false => Item::new("GPU", State::Note, found)
            .hint(format!("the kernels need {}.{} (bf16 tensor cores) or newer", OLDEST.0, OLDEST.1)),
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
        let all = text(&Nvidia::default(), &Answer::Works { version: 13010, cards, cublas: false });
        assert!(all.contains("CUDA 13.1, 2 GPUs") && all.contains("ok GPU"), "{all}");
        assert!(all.contains("NVIDIA H100, compute capability 9.0, 80.00 GiB"), "{all}");
        assert!(all.contains("-- GPU                Tesla T4") && all.contains("need 8.0"), "{all}");
        assert!(all.contains("cannot be opened (libcublas.so.13 or .12)"), "{all}");
        assert!(all.contains("no: the first GPU or its libraries"), "{all}");
        let cards = vec![("NVIDIA H100".to_string(), (9, 0), 80 << 30)];
        let all = text(&Nvidia::default(), &Answer::Works { version: 13010, cards, cublas: true });
        assert!(all.contains("yes, the first one, by commands"), "{all}");
    }

    #[test]
    fn this_build_asks_as_it_was_built() {
        let built = !matches!(ask(), Answer::NotBuilt);
        assert_eq!(built, cfg!(feature = "cuda"));
        assert_eq!(build(&ask()), if built { "with CUDA" } else { "without CUDA" });
    }
}
