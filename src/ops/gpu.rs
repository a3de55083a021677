//! Matrices in GPU memory: the buffers of the GPU's training step, as [`super::matrix`] has those of the CPU's.
//!
//! Invariant: after the first step of a given shape no memory is requested from the driver; a dropped [`Buffer`] goes
//! back to its [`Gpu`] and is lent again. That is safe without waiting, because the GPU works in the order of one
//! stream. Contents of a fresh buffer are unspecified.
//! Where a buffer lies is decided by [`Space`], as on the CPU, so the memory planner can replay it.

use super::space::{Place, Space};
use crate::device::cuda::requirements::more_memory;
use crate::device::cuda::{Argument, Driver, Launch, Operand, Output, Product};
use crate::error::{Error, Result};
use half::bf16;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Threads of a block where nothing else is said.
pub const THREADS: u32 = 256;

/// Most blocks of an element-wise kernel; its threads take more elements each then.
const MOST_BLOCKS: u32 = 1 << 15;

#[derive(Default)]
struct State {
    space: Space,
    regions: Vec<u64>,
}

struct Shared {
    driver: Arc<dyn Driver>,
    state: Mutex<State>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        state.regions.iter().for_each(|&region| self.driver.release(region));
    }
}

/// A GPU that lends buffers. Clones share its memory.
#[derive(Clone)]
pub struct Gpu(Arc<Shared>);

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gpu({})", self.0.driver.name())
    }
}

/// What a buffer holds.
pub trait Element: Copy + Send + Sync + 'static {}
impl Element for f32 {}
impl Element for bf16 {}
impl Element for u8 {}
impl Element for u32 {}
impl Element for i32 {}
impl Element for u64 {}
impl Element for f64 {}

/// The bytes of plain numbers.
fn bytes_of<E: Element>(values: &[E]) -> &[u8] {
    // SAFETY: elements are numbers without padding, and u8 has no demands.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

impl Gpu {
    /// A GPU without buffers.
    pub fn new(driver: Arc<dyn Driver>) -> Gpu {
        Gpu(Arc::new(Shared { driver, state: Mutex::default() }))
    }

    /// The driver behind it.
    pub fn driver(&self) -> &dyn Driver {
        &*self.0.driver
    }

    /// The driver, for another [`Gpu`] on the same card with memory of its own.
    pub fn driver_handle(&self) -> Arc<dyn Driver> {
        self.0.driver.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A `[rows, cols]` buffer with unspecified contents.
    ///
    /// # Errors
    /// The GPU has no memory for it.
    pub fn buffer<E: Element>(&self, rows: usize, cols: usize) -> Result<Buffer<E>> {
        let mut state = self.lock();
        let place = state.space.take(rows * cols * size_of::<E>());
        let missing = state.space.region_sizes().nth(state.regions.len());
        if let Some(bytes) = missing {
            match self.0.driver.allocate(bytes) {
                Ok(region) => state.regions.push(region),
                Err(error) => {
                    state.space.give(place);
                    state.space.forget_region();
                    let held = state.space.region_sizes().sum();
                    return Err(if error.is_out_of_memory() { self.no_room(bytes, held) } else { error });
                }
            }
        }
        let address = state.regions[place.region] + place.start as u64;
        Ok(Buffer { rows, cols, address, place: Some(place), gpu: self.clone(), element: PhantomData })
    }

    /// Says what the card did not have.
    fn no_room(&self, wanted: usize, held: usize) -> Error {
        let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
        let free = self.0.driver.memory().map_or(String::new(), |memory| {
            format!(": {:.1} of its {:.1} MiB are free", mib(memory.free), mib(memory.total))
        });
        Error::out_of_memory(format!(
            "{}: no memory for {:.1} MiB beside the {:.1} MiB in use{free}",
            self.0.driver.name(),
            mib(wanted),
            mib(held)
        ))
        .hint(more_memory())
    }

    /// A `[rows, cols]` buffer with these values.
    pub fn upload<E: Element>(&self, values: &[E], rows: usize, cols: usize) -> Result<Buffer<E>> {
        let buffer = self.buffer(rows, cols)?;
        buffer.write(values)?;
        Ok(buffer)
    }

    /// A `[rows, cols]` buffer of zeros.
    pub fn zeros<E: Element>(&self, rows: usize, cols: usize) -> Result<Buffer<E>> {
        let buffer = self.buffer(rows, cols)?;
        buffer.clear()?;
        Ok(buffer)
    }

    /// Bytes that buffers may still take: what the card has left, and what was asked of it and is not lent.
    ///
    /// # Errors
    /// What the driver says.
    pub fn available(&self) -> Result<usize> {
        let free = self.0.driver.memory()?.free;
        let state = self.lock();
        let held: usize = state.space.region_sizes().sum();
        Ok(free + held - state.space.live().min(held))
    }

    /// Bytes in buffers that exist now.
    pub fn live_bytes(&self) -> usize {
        self.lock().space.live()
    }

    /// Largest value that [`Gpu::live_bytes`] has had.
    pub fn peak_bytes(&self) -> usize {
        self.lock().space.peak()
    }

    /// Bytes asked of the driver.
    pub fn allocated_bytes(&self) -> usize {
        self.lock().space.region_sizes().sum()
    }

    /// Runs a kernel with one thread (or one of its pieces) for each of `count` elements.
    pub fn each(&self, kernel: &'static str, count: usize, arguments: &[Argument]) -> Result<()> {
        let blocks = count.div_ceil(THREADS as usize).clamp(1, MOST_BLOCKS as usize) as u32;
        self.launch(&Launch { kernel, grid: [blocks, 1], threads: THREADS, shared_bytes: 0, arguments })
    }

    /// Runs a kernel with one block for each row.
    pub fn rows(&self, kernel: &'static str, rows: usize, threads: u32, arguments: &[Argument]) -> Result<()> {
        self.launch(&Launch { kernel, grid: [count(rows)?, 1], threads, shared_bytes: 0, arguments })
    }

    /// Runs a kernel; a grid without blocks is no work.
    pub fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        match launch.grid.contains(&0) {
            true => Ok(()),
            false => self.0.driver.launch(launch),
        }
    }

    /// `c[m,n] = alpha · a · b + beta · c`; see [`Product`]. A sum of no terms is 0: then c is cleared or stays, and no other
    /// `beta` is taken.
    pub fn product<E: Sum>(&self, a: View, b: View, c: &Buffer<E>, alpha: f32, beta: f32) -> Result<()> {
        let (m, k) = a.shape();
        let (inner, n) = b.shape();
        assert!(k == inner && (c.rows, c.cols) == (m, n), "[{m},{k}]·[{inner},{n}] into [{},{}]", c.rows, c.cols);
        if m == 0 || n == 0 {
            return Ok(());
        }
        if k == 0 {
            assert!(beta == 0.0 || beta == 1.0, "a product of no terms with beta = {beta}");
            return if beta == 0.0 { c.clear() } else { Ok(()) };
        }
        let (a, b) = (a.operand(), b.operand());
        let product = Product { m, n, k, a, b, c: c.address, c_stride: c.cols, output: E::OUTPUT, alpha, beta };
        self.0.driver.product(&product)
    }
}

/// A number of rows, columns or elements as kernels take it.
pub fn count(value: usize) -> Result<u32> {
    u32::try_from(value).ok().filter(|&value| value <= i32::MAX as u32).ok_or_else(|| {
        Error::failed(format!("{value} is more than a kernel can count")).hint("use a smaller micro-batch")
    })
}

/// What a product can be written as.
pub trait Sum: Element {
    /// The driver's name of it.
    const OUTPUT: Output;
}
impl Sum for f32 {
    const OUTPUT: Output = Output::F32;
}
impl Sum for bf16 {
    const OUTPUT: Output = Output::Bf16;
}

/// An owned `[rows, cols]` matrix in GPU memory, row-major and contiguous, at least 256-byte aligned.
pub struct Buffer<E: Element> {
    rows: usize,
    cols: usize,
    address: u64,
    place: Option<Place>,
    gpu: Gpu,
    element: PhantomData<E>,
}

impl<E: Element> Buffer<E> {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// As a kernel's argument.
    pub fn pointer(&self) -> Argument {
        Argument::Pointer(self.address)
    }

    /// Address of its first element on the GPU, for tables that kernels read.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The GPU that holds it.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Replaces the values.
    pub fn write(&self, values: &[E]) -> Result<()> {
        assert_eq!(values.len(), self.len(), "a [{}, {}] buffer", self.rows, self.cols);
        self.gpu.driver().upload(self.address, bytes_of(values))
    }

    /// Waits for the GPU and returns the values.
    pub fn read(&self) -> Result<Vec<E>> {
        let mut values: Vec<E> = Vec::with_capacity(self.len());
        // SAFETY: the memory is the vector's own; the download fills all of it, and any bits are a valid number.
        unsafe {
            let bytes = values.spare_capacity_mut().as_mut_ptr().cast::<u8>();
            std::ptr::write_bytes(bytes, 0, self.len() * size_of::<E>());
            let bytes = std::slice::from_raw_parts_mut(bytes, self.len() * size_of::<E>());
            self.gpu.driver().download(self.address, bytes)?;
            values.set_len(self.len());
        }
        Ok(values)
    }

    /// Fills it with zeros.
    pub fn clear(&self) -> Result<()> {
        self.gpu.driver().clear(self.address, self.len() * size_of::<E>())
    }

    /// Copies the values of a buffer of the same shape.
    pub fn copy_from(&self, other: &Buffer<E>) -> Result<()> {
        assert_eq!((self.rows, self.cols), (other.rows, other.cols));
        self.gpu.driver().copy(other.address, self.address, self.len() * size_of::<E>())
    }

    /// Elements `first .. first + count` as a column of their own, which borrows this buffer.
    pub fn part(&self, first: usize, count: usize) -> Part<'_, E> {
        assert!(first + count <= self.len());
        let address = self.address + (first * size_of::<E>()) as u64;
        let buffer = Buffer { rows: count, cols: 1, address, place: None, gpu: self.gpu.clone(), element: PhantomData };
        Part { buffer, of: PhantomData }
    }

    /// Rows `first .. first + count` as a matrix of their own, which borrows this buffer.
    pub fn row_part(&self, first: usize, count: usize) -> Part<'_, E> {
        let mut part = self.part(first * self.cols, count * self.cols);
        (part.buffer.rows, part.buffer.cols) = (count, self.cols);
        part
    }

    /// A new buffer with the same values.
    pub fn duplicate(&self) -> Result<Buffer<E>> {
        let copy = self.gpu.buffer(self.rows, self.cols)?;
        copy.copy_from(self)?;
        Ok(copy)
    }
}

/// Some elements of a buffer that is borrowed meanwhile.
pub struct Part<'a, E: Element> {
    buffer: Buffer<E>,
    of: PhantomData<&'a Buffer<E>>,
}

impl<E: Element> std::ops::Deref for Part<'_, E> {
    type Target = Buffer<E>;
    fn deref(&self) -> &Buffer<E> {
        &self.buffer
    }
}

impl Buffer<bf16> {
    /// Its first elements as a `[rows, cols]` operand.
    pub fn view_as(&self, rows: usize, cols: usize) -> View {
        assert!(rows * cols <= self.len());
        View { address: self.address, rows, cols, stride: cols, transposed: false }
    }

    /// All of it as an operand.
    pub fn view(&self) -> View {
        View { address: self.address, rows: self.rows, cols: self.cols, stride: self.cols, transposed: false }
    }
}

impl<E: Element> Drop for Buffer<E> {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            self.gpu.lock().space.give(place);
        }
    }
}

/// A bf16 operand of a product: a whole buffer, some of its rows or columns, or the transpose of these.
#[derive(Debug, Clone, Copy)]
pub struct View {
    address: u64,
    rows: usize,
    cols: usize,
    stride: usize,
    transposed: bool,
}

impl View {
    /// The transpose.
    pub fn t(self) -> View {
        View { transposed: !self.transposed, ..self }
    }

    /// Some of the rows, before transposition.
    pub fn row_range(self, range: Range<usize>) -> View {
        assert!(range.start <= range.end && range.end <= self.rows);
        let address = self.address + (range.start * self.stride * size_of::<bf16>()) as u64;
        View { address, rows: range.len(), ..self }
    }

    fn shape(&self) -> (usize, usize) {
        if self.transposed {
            (self.cols, self.rows)
        } else {
            (self.rows, self.cols)
        }
    }

    fn operand(&self) -> Operand {
        Operand { address: self.address, stride: self.stride, transposed: self.transposed }
    }
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::{emulated_gpu, halves};

    #[test]
    fn a_product_of_no_terms_is_zero_or_what_was_there() {
        let Some(gpu) = emulated_gpu() else { return };
        let (a, b) = (gpu.zeros(2, 0).unwrap(), gpu.zeros(0, 3).unwrap());
        let of = |beta: f32| {
            let c = gpu.upload(&halves(&[1.0; 6]), 2, 3).unwrap();
            gpu.product(a.view(), b.view(), &c, 1.0, beta).unwrap();
            c.read().unwrap()
        };
        assert_eq!((of(0.0), of(1.0)), (halves(&[0.0; 6]), halves(&[1.0; 6])));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| of(0.5))).is_err());
        // What nobody wrote is NaN on the emulated GPU.
        let c = gpu.buffer::<f32>(2, 3).unwrap();
        gpu.product(a.view(), b.view(), &c, 2.0, 0.0).unwrap();
        assert_eq!(c.read().unwrap(), [0.0; 6]);
    }
}
