//! A GPU: memory, kernels and matrix products, all in the order of one stream.
//!
//! [`Driver`] is everything that the engine asks of a GPU. The CUDA driver answers it (`driver.rs`, with the feature
//! `cuda`), and in tests so does the emulator, which runs the very same kernels on the CPU (`emulator.rs`): every line of
//! the engine above, whole training steps included, is tested on machines without a GPU.
//!
//! Invariant: work is done in the order in which it was asked for, so memory may be lent again as soon as its last use
//! has been asked for. Nothing waits for the GPU but [`Driver::download`] and [`Driver::synchronize`].

#[cfg(feature = "cuda")]
mod driver;
#[cfg(test)]
pub mod emulator;
#[cfg(feature = "cuda")]
mod pinned;
pub mod requirements;
#[cfg(any(test, feature = "cuda"))]
mod ring;

#[cfg(feature = "cuda")]
pub use driver::{open, probe};

use crate::error::Result;

/// Whether the program was built for GPUs.
pub const BUILT: bool = cfg!(feature = "cuda");

/// Says that the program was built without GPUs.
///
/// # Errors
/// Always.
#[cfg(not(feature = "cuda"))]
pub fn open(_ordinal: usize) -> Result<std::sync::Arc<dyn Driver>> {
    Err(crate::error::Error::usage("this program was built without GPU support").hint(
        "build it with `cargo build --release --features cuda` (needs nvcc: see the README), or use --device cpu",
    ))
}

/// Element type of the output of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// IEEE single precision.
    F32,
    /// bfloat16.
    Bf16,
}

/// A row-major bf16 operand of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operand {
    /// Address of the first element.
    pub address: u64,
    /// Elements from row to row.
    pub stride: usize,
    /// Whether the transpose takes part in the product.
    pub transposed: bool,
}

/// `c[m,n] = alpha · a[m,k] · b[k,n] + beta · c`, sums in f32. Shapes are those after transposition.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Product {
    /// Rows of c.
    pub m: usize,
    /// Columns of c.
    pub n: usize,
    /// Terms of each sum.
    pub k: usize,
    /// Left operand.
    pub a: Operand,
    /// Right operand.
    pub b: Operand,
    /// Address of c.
    pub c: u64,
    /// Elements from row to row of c.
    pub c_stride: usize,
    /// Element type of c.
    pub output: Output,
    /// Factor of the product.
    pub alpha: f32,
    /// Factor of what c holds; 0 overwrites whatever is there.
    pub beta: f32,
}

/// One argument of a kernel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Argument {
    /// An address, 0 for none.
    Pointer(u64),
    /// `int`.
    I32(i32),
    /// `unsigned`.
    U32(u32),
    /// `long long`.
    I64(i64),
    /// `uint64_t`.
    U64(u64),
    /// `float`.
    F32(f32),
}

// Only what runs kernels needs the bytes: the driver, and in tests the emulator.
#[cfg(any(test, feature = "cuda"))]
impl Argument {
    /// The argument's bytes, at the start of a word.
    fn word(self) -> u64 {
        match self {
            Argument::Pointer(value) | Argument::U64(value) => value,
            Argument::I32(value) => u64::from(value as u32),
            Argument::U32(value) => u64::from(value),
            Argument::I64(value) => value as u64,
            Argument::F32(value) => u64::from(value.to_bits()),
        }
    }
}

macro_rules! argument_from {
    ($($type:ty => $variant:ident),*) => {
        $(impl From<$type> for Argument {
            fn from(value: $type) -> Argument {
                Argument::$variant(value)
            }
        })*
    };
}
argument_from!(i32 => I32, u32 => U32, i64 => I64, u64 => U64, f32 => F32);

/// A kernel's launch.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// Name of the kernel in its `.cu` file.
    pub kernel: &'static str,
    /// Blocks along x and y.
    pub grid: [u32; 2],
    /// Threads of a block, a multiple of 32.
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared_bytes: u32,
    /// Its arguments, in order.
    pub arguments: &'a [Argument],
}

#[cfg(any(test, feature = "cuda"))]
impl Launch<'_> {
    /// Calls `use_pointers` with pointers to the arguments' values.
    fn with_pointers<R>(&self, use_pointers: impl FnOnce(&mut [*mut std::ffi::c_void]) -> R) -> R {
        let mut words: Vec<u64> = self.arguments.iter().map(|argument| argument.word()).collect();
        let mut pointers: Vec<*mut std::ffi::c_void> =
            words.iter_mut().map(|word| std::ptr::from_mut(word).cast()).collect();
        use_pointers(&mut pointers)
    }
}

/// Bytes of device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Not in use by anyone.
    pub free: usize,
    /// Of the card.
    pub total: usize,
}

/// A GPU and one stream of work on it.
///
/// Addresses are those that [`Driver::allocate`] gave, or lie within what it gave: like the kernels themselves, a driver
/// cannot check them. [`crate::ops::gpu`] is the layer that keeps them right.
pub trait Driver: Send + Sync {
    /// What the GPU is called.
    fn name(&self) -> String;

    /// Its memory now.
    fn memory(&self) -> Result<DeviceMemory>;

    /// At least 256-byte aligned memory with unspecified contents.
    ///
    /// # Errors
    /// Not enough memory, which [`crate::error::Error::is_out_of_memory`] tells.
    fn allocate(&self, bytes: usize) -> Result<u64>;

    /// Gives memory back.
    fn release(&self, address: u64);

    /// Copies bytes to the GPU; they may change as soon as this returns.
    fn upload(&self, to: u64, bytes: &[u8]) -> Result<()>;

    /// Waits for all work asked for and copies bytes from the GPU.
    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()>;

    /// Copies bytes on the GPU; the ranges do not overlap.
    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()>;

    /// Fills memory with zeros.
    fn clear(&self, address: u64, bytes: usize) -> Result<()>;

    /// Runs a kernel.
    fn launch(&self, launch: &Launch<'_>) -> Result<()>;

    /// Multiplies matrices.
    fn product(&self, product: &Product) -> Result<()>;

    /// Waits for all work asked for.
    ///
    /// # Errors
    /// What went wrong in any of it.
    fn synchronize(&self) -> Result<()>;
}
