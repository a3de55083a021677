//! Golden vectors: reading them, and comparing with every failing case listed at once.
//!
//! The folder is `tests/golden`, or the one in `LLAMANTINO_GOLDEN` (made by the same generators: other values, another
//! width). Files are read with the `safetensors` crate alone, so that the project's own reader is not trusted here.

#![allow(dead_code)] // not every test file uses every helper

use safetensors::tensor::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The folder of golden vectors in use.
pub fn folder() -> PathBuf {
    match std::env::var_os("LLAMANTINO_GOLDEN") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden"),
    }
}

/// One stored tensor.
pub struct Tensor {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Tensor {
    /// Values of a 16-bit dtype as bits.
    pub fn u16(&self) -> Vec<u16> {
        assert_eq!(self.dtype.bitsize(), 16);
        self.bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect()
    }

    /// Values of a floating-point dtype, widened or narrowed to f32.
    pub fn f32(&self) -> Vec<f32> {
        match self.dtype {
            Dtype::F32 => self.bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
            Dtype::BF16 => self.u16().iter().map(|&bits| half::bf16::from_bits(bits).to_f32()).collect(),
            Dtype::F16 => self.u16().iter().map(|&bits| half::f16::from_bits(bits).to_f32()).collect(),
            _ => self.f64().iter().map(|&value| value as f32).collect(),
        }
    }

    /// Values of F64, or of anything [`Tensor::f32`] reads.
    pub fn f64(&self) -> Vec<f64> {
        match self.dtype {
            Dtype::F64 => self.bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect(),
            Dtype::F32 | Dtype::F16 | Dtype::BF16 => self.f32().into_iter().map(f64::from).collect(),
            other => panic!("not a floating-point tensor: {other:?}"),
        }
    }

    /// Values of an integer or boolean dtype.
    pub fn i64(&self) -> Vec<i64> {
        match self.dtype {
            Dtype::I64 => self.bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect(),
            Dtype::I32 => {
                self.bytes.chunks_exact(4).map(|b| i64::from(i32::from_le_bytes(b.try_into().unwrap()))).collect()
            }
            Dtype::U8 | Dtype::BOOL => self.bytes.iter().map(|&b| i64::from(b)).collect(),
            other => panic!("not an integer tensor: {other:?}"),
        }
    }
}

/// The tensors of a file and the description beside it.
pub struct Golden {
    pub tensors: BTreeMap<String, Tensor>,
    pub meta: serde_json::Value,
}

impl Golden {
    /// `name.safetensors` and `name.json` of the golden folder.
    pub fn load(name: &str) -> Golden {
        let json = folder().join(format!("{name}.json"));
        let text = std::fs::read_to_string(&json).unwrap_or_else(|e| panic!("{}: {e}", json.display()));
        Golden {
            tensors: tensors_of(&folder().join(format!("{name}.safetensors"))),
            meta: serde_json::from_str(&text).unwrap(),
        }
    }

    /// A tensor that must be there.
    pub fn tensor(&self, name: &str) -> &Tensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("no tensor {name} in the golden file"))
    }
}

/// Every tensor of a safetensors file.
pub fn tensors_of(path: &Path) -> BTreeMap<String, Tensor> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.tensors()
        .into_iter()
        .map(|(name, view)| {
            let tensor = Tensor { dtype: view.dtype(), shape: view.shape().to_vec(), bytes: view.data().to_vec() };
            (name, tensor)
        })
        .collect()
}

/// Collects what differs, to be shown at once by [`Differences::finish`].
#[derive(Default)]
pub struct Differences {
    found: Vec<String>,
    compared: usize,
}

impl Differences {
    /// Notes a difference unless `same`.
    pub fn check(&mut self, same: bool, what: impl FnOnce() -> String) {
        self.compared += 1;
        if !same {
            self.found.push(what());
        }
    }

    /// Bytes must be equal.
    pub fn bytes(&mut self, what: &str, expected: &[u8], found: &[u8]) {
        let first = expected.iter().zip(found).position(|(a, b)| a != b);
        self.check(expected == found, || match first {
            Some(i) => format!("{what}: byte {i}: expected {}, found {}", expected[i], found[i]),
            None => format!("{what}: expected {} bytes, found {}", expected.len(), found.len()),
        });
    }

    /// Values must be equal bit for bit (so -0.0 is not 0.0).
    pub fn bits(&mut self, what: &str, expected: &[f32], found: &[f32]) {
        let differ = |(a, b): (&f32, &f32)| a.to_bits() != b.to_bits();
        let first = expected.iter().zip(found).position(differ);
        let count = expected.iter().zip(found).filter(|&pair| differ(pair)).count();
        self.check(expected.len() == found.len() && first.is_none(), || match first {
            Some(i) => {
                format!("{what}: {count} values differ, first {i}: expected {:e}, found {:e}", expected[i], found[i])
            }
            None => format!("{what}: expected {} values, found {}", expected.len(), found.len()),
        });
    }

    /// The largest difference must be at most `tolerance` times the largest expected magnitude.
    pub fn close(&mut self, what: &str, expected: &[f32], found: &[f32], tolerance: f64) {
        let largest = expected.iter().fold(0.0f64, |max, &v| max.max(f64::from(v).abs()));
        let mut worst = (0.0f64, 0);
        for (i, (&a, &b)) in expected.iter().zip(found).enumerate() {
            let error = (f64::from(a) - f64::from(b)).abs();
            let error = if error.is_nan() { f64::INFINITY } else { error };
            if error > worst.0 {
                worst = (error, i);
            }
        }
        let fine = expected.len() == found.len() && worst.0 <= tolerance * largest;
        self.check(fine, || {
            let (error, i) = worst;
            match (expected.get(i), found.get(i)) {
                (Some(a), Some(b)) => {
                    let relative = error / largest;
                    format!("{what} (tolerance {tolerance:.0e}): {i}: {a:e} expected, {b:e} found, {relative:.1e} of the max")
                }
                _ => format!("{what}: expected {} values, found {}", expected.len(), found.len()),
            }
        });
    }

    /// Values must be at most `ulps` representable numbers apart.
    pub fn ulps(&mut self, what: &str, expected: f32, found: f32, ulps: u32) {
        let distance = ordered(expected).abs_diff(ordered(found));
        self.check(distance <= u64::from(ulps), || {
            format!("{what}: expected {expected:e}, found {found:e}: {distance} ulp apart (allowed {ulps})")
        });
    }

    /// Fails if anything differed, listing everything; `name` and the number of comparisons go to the test's output.
    pub fn finish(self, name: &str) {
        assert!(self.compared > 0, "{name}: nothing was compared");
        println!("{name}: {} comparisons", self.compared);
        let shown = self.found.len().min(40);
        assert!(
            self.found.is_empty(),
            "{name}: {} of {} comparisons differ:\n{}",
            self.found.len(),
            self.compared,
            self.found[..shown].join("\n")
        );
    }
}

/// Integers in the order of the floats, neighbours one apart.
fn ordered(value: f32) -> i64 {
    let bits = i64::from(value.to_bits() & 0x7fff_ffff);
    if value.is_sign_negative() {
        -bits
    } else {
        bits
    }
}
