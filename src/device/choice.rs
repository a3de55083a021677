//! Where the user wants to compute: `cpu`, `cuda` or `cuda:1`, or `auto`.
//!
//! Invariant: what was asked for by name is what runs. Only `auto` may end on the CPU where there is a GPU build, and says why.

use super::cuda::{self, Driver};
use crate::error::Result;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A device by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum DeviceChoice {
    /// The first GPU if the program was built for GPUs and one answers, otherwise the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of this number.
    Cuda(usize),
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Cuda(0) => f.write_str("cuda"),
            DeviceChoice::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<DeviceChoice, String> {
        let number = |digits: &str| digits.parse().ok().filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()));
        match text {
            "auto" => Some(DeviceChoice::Auto),
            "cpu" => Some(DeviceChoice::Cpu),
            "cuda" => Some(DeviceChoice::Cuda(0)),
            _ => text.strip_prefix("cuda:").and_then(number).map(DeviceChoice::Cuda),
        }
        .ok_or_else(|| format!("expected auto, cpu, cuda or cuda:NUMBER, found \"{text}\""))
    }
}

impl From<DeviceChoice> for String {
    fn from(choice: DeviceChoice) -> String {
        choice.to_string()
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<DeviceChoice, String> {
        text.parse()
    }
}

/// A device that answered.
pub struct Opened {
    /// The GPU; none for the CPU.
    pub gpu: Option<Arc<dyn Driver>>,
    /// What was chosen, where that is worth a line.
    pub note: Option<String>,
}

impl DeviceChoice {
    /// Opens it.
    ///
    /// # Errors
    /// A GPU asked for by name that is not there or cannot be used, with the reason.
    pub fn open(self) -> Result<Opened> {
        let (gpu, note) = match self {
            DeviceChoice::Cpu => (None, None),
            DeviceChoice::Auto if !cuda::BUILT => (None, None),
            DeviceChoice::Auto => match cuda::open(0) {
                Ok(driver) => (Some(driver), None),
                Err(error) => (None, Some(format!("computing on the CPU: {error}"))),
            },
            DeviceChoice::Cuda(number) => (Some(cuda::open(number)?), None),
        };
        let note = gpu.as_ref().map(|driver| format!("computing on the GPU: {}", driver.name())).or(note);
        Ok(Opened { gpu, note })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        for (text, choice) in [
            ("auto", DeviceChoice::Auto),
            ("cpu", DeviceChoice::Cpu),
            ("cuda", DeviceChoice::Cuda(0)),
            ("cuda:3", DeviceChoice::Cuda(3)),
        ] {
            assert_eq!(text.parse(), Ok(choice));
            assert_eq!(choice.to_string(), text);
        }
        assert_eq!("cuda:0".parse(), Ok(DeviceChoice::Cuda(0)));
        for text in ["", "CPU", "gpu", "cuda:", "cuda:-1", "cuda:+1", "cuda:one", "cuda:99999999999999999999"] {
            assert!(text.parse::<DeviceChoice>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_cpu_is_always_there_and_a_gpu_is_never_pretended() {
        assert!(DeviceChoice::Cpu.open().unwrap().gpu.is_none());
        let error = DeviceChoice::Cuda(4096).open().err().expect("no such GPU");
        assert!(error.hint_text().is_some_and(|hint| hint.contains("--device cpu")), "{error}");
    }
}
