//! What computing on a GPU needs: a card with bf16 tensor cores, a driver as new as the kernels, cuBLAS. And what to do
//! where one of them is missing.
//!
//! Nothing here asks a driver, so that every refusal is tested on machines without one. Reference: "CUDA Compatibility"
//! (within a major version machine code runs on older drivers, PTX does not), error numbers of cuda.h.

use crate::error::{Error, Result};

/// Compute capability from which on there are kernels: bf16 tensor cores.
pub const OLDEST_CARD: (i32, i32) = (8, 0);

/// Compute capability up to whose major number there is machine code; the driver translates PTX for newer cards.
const NEWEST_MACHINE_CODE: i32 = 9;

/// What frees memory of a card.
pub const FREE_THE_CARD: &str = "end other programs that use the card (`nvidia-smi` lists them)";

/// [`FREE_THE_CARD`], or a card that has memory.
pub fn more_memory() -> String {
    format!("{FREE_THE_CARD}, or take another one: --device cuda:1")
}

/// What a machine offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Each GPU's name, compute capability and memory in bytes.
    pub cards: Vec<(String, (i32, i32), usize)>,
    /// CUDA version that the driver speaks, such as 13000.
    pub driver: i32,
    /// CUDA version of the compiler that made the kernels.
    pub kernels: i32,
    /// Whether cuBLAS can be opened.
    pub cublas: bool,
}

impl Found {
    /// Whether the driver speaks an older major version than the kernels were built with.
    pub fn is_driver_older(&self) -> bool {
        self.driver / 1000 < self.kernels / 1000
    }
}

/// `13010` as `13.1`.
pub fn version(number: i32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

/// Refuses GPU number `ordinal` of this machine where something of what it needs is missing.
///
/// # Errors
/// No such GPU, one that is too old, a driver that is too old, no cuBLAS.
pub fn check(found: &Found, ordinal: usize) -> Result<()> {
    let Some((name, capability, _)) = found.cards.get(ordinal) else {
        return Err(Error::failed(format!("no GPU number {ordinal}: this machine has {}", found.cards.len()))
            .hint("`llamantino doctor` lists them; --device cuda names the first, --device cpu none"));
    };
    if *capability < OLDEST_CARD {
        let ((major, minor), (least, least_minor)) = (capability, OLDEST_CARD);
        return Err(Error::failed(format!(
            "{name} has compute capability {major}.{minor}; the kernels need {least}.{least_minor} or newer (bf16 tensor cores)"
        ))
        .hint("name a newer card (`llamantino doctor` lists them), or use --device cpu"));
    }
    let is_translated = capability.0 > NEWEST_MACHINE_CODE;
    if found.is_driver_older() || (is_translated && found.driver < found.kernels) {
        let branch = match found.kernels / 1000 {
            13 => " (version 580 or newer)",
            12 => " (version 525 or newer)",
            _ => "",
        };
        return Err(Error::failed(format!(
            "the NVIDIA driver is too old for this program: it speaks CUDA {}, the kernels were built with {}",
            version(found.driver),
            version(found.kernels)
        ))
        .hint(format!(
            "install a driver for CUDA {}{branch}, build with the toolkit of your driver (CUDA_HOME), or use --device cpu",
            version(found.kernels)
        )));
    }
    if !found.cublas {
        return Err(Error::failed("cuBLAS cannot be opened (libcublas.so.13 or .12)")
            .hint("install CUDA's libraries, put their folder into LD_LIBRARY_PATH, or use --device cpu"));
    }
    Ok(())
}

/// What to do about an error of the driver, by its number in cuda.h.
pub fn advice(error: u32) -> Option<&'static str> {
    Some(match error {
        100 => "`nvidia-smi` shows which cards the driver sees (CUDA_VISIBLE_DEVICES may hide them); --device cpu needs none",
        209 | 222 => {
            "this build has no kernels for this GPU and driver: a newer driver may translate them, or build with your own CUDA \
             toolkit"
        }
        803 => "the driver's library and its kernel module are of two versions: restart after an update of the driver",
        46 | 802 | 999 => "the card is busy or not ready: `nvidia-smi` shows its state; a restart of the driver may help",
        700 | 715 | 717 | 718 | 719 => {
            "a kernel went wrong, and every later call of this process fails: `llamantino bench gpu` compares each with the \
             CPU; a run goes on from its last checkpoint"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(capability: (i32, i32), driver: i32) -> Found {
        let cards = vec![("NVIDIA card".to_string(), capability, 80 << 30)];
        Found { cards, driver, kernels: 13000, cublas: true }
    }

    /// Message and hint of a refusal.
    fn refused(found: &Found, ordinal: usize) -> String {
        let error = check(found, ordinal).expect_err("a refusal");
        format!("{} | {}", error.message(), error.hint_text().expect("what to do"))
    }

    #[test]
    fn what_is_enough_is_taken() {
        for (capability, driver) in [((8, 0), 13000), ((8, 9), 13010), ((9, 0), 13000), ((12, 0), 13000)] {
            check(&found(capability, driver), 0).unwrap();
        }
        // Kernels of an older toolkit run on every later driver.
        check(&Found { kernels: 12040, ..found((8, 0), 13000) }, 0).unwrap();
        // Within a major version machine code does, PTX does not.
        check(&Found { kernels: 13010, ..found((9, 0), 13000) }, 0).unwrap();
        let text = refused(&Found { kernels: 13010, ..found((10, 0), 13000) }, 0);
        assert!(text.contains("speaks CUDA 13.0, the kernels were built with 13.1"), "{text}");
    }

    #[test]
    fn what_is_missing_is_named_with_what_to_do() {
        let text = refused(&found((9, 0), 13000), 1);
        assert!(text.contains("no GPU number 1: this machine has 1 | ") && text.contains("--device cuda"), "{text}");
        let text = refused(&found((7, 5), 13000), 0);
        assert!(text.contains("NVIDIA card has compute capability 7.5; the kernels need 8.0 or newer"), "{text}");
        assert!(text.contains("--device cpu"), "{text}");
        let text = refused(&found((8, 0), 12080), 0);
        assert!(
            text.contains("driver is too old for this program: it speaks CUDA 12.8, the kernels were built with 13.0")
        );
        assert!(text.contains("driver for CUDA 13.0 (version 580 or newer)") && text.contains("CUDA_HOME"), "{text}");
        let text = refused(&Found { cublas: false, ..found((8, 0), 13000) }, 0);
        assert!(text.contains("libcublas.so.13") && text.contains("LD_LIBRARY_PATH"), "{text}");
    }

    #[test]
    fn errors_of_the_driver_that_a_user_can_mend_come_with_advice() {
        for error in [46, 100, 209, 222, 700, 719, 802, 803, 999] {
            assert!(advice(error).is_some(), "{error}");
        }
        assert_eq!((advice(0), advice(1)), (None, None));
    }
}
