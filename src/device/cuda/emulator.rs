//! A GPU without a GPU, for tests: the `.cu` files compiled as C++ (`tests/cuda/cuda_on_cpu.h`), memory of the host, and
//! plain loops for the matrix products.
//!
//! Memory is filled with NaN when it is given out, and every range that a call touches must lie in memory that was given
//! out, so that reading what nobody wrote, or writing beyond the end of a copy, does not go unseen.

use super::{Argument, DeviceMemory, Driver, Launch, Operand, Output, Product};
use crate::error::{Error, Result};
use half::bf16;
use std::collections::BTreeMap;
use std::ffi::{c_char, c_int, c_void, CString};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// `on_cpu_launch` of `tests/cuda/launch.h`: 0, or 1 for an unknown kernel, 2 for a wrong number of arguments.
type LaunchFunction = unsafe extern "C" fn(*const c_char, *const u32, u32, usize, *mut *mut c_void, c_int) -> c_int;

/// The compiled kernels; they run one at a time.
struct Kernels {
    launch: LaunchFunction,
    turn: Mutex<()>,
}

/// The emulated GPU.
pub struct Emulator {
    kernels: &'static Kernels,
    /// Address to size of what is given out.
    memory: Mutex<BTreeMap<u64, Box<[u64]>>>,
    limit: Arc<AtomicUsize>,
}

/// An emulated GPU, or None where there is no C++ compiler.
pub fn emulator() -> Option<Arc<dyn Driver>> {
    emulator_with(usize::MAX)
}

/// An emulated GPU of so many bytes.
pub fn emulator_with(limit: usize) -> Option<Arc<dyn Driver>> {
    emulator_that_changes(Arc::new(AtomicUsize::new(limit)))
}

/// An emulated GPU of as many bytes as `limit` says at any time: others take of a card what they want.
pub fn emulator_that_changes(limit: Arc<AtomicUsize>) -> Option<Arc<dyn Driver>> {
    static KERNELS: OnceLock<Option<Kernels>> = OnceLock::new();
    let kernels = KERNELS.get_or_init(|| compiled().map(|launch| Kernels { launch, turn: Mutex::new(()) })).as_ref()?;
    Some(Arc::new(Emulator { kernels, memory: Mutex::default(), limit }))
}

/// The repository's `.cu` files in alphabetical order.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "cu") {
            found.push(path);
        }
    }
    found.sort();
}

/// Names of the kernels that a source defines: what follows `KERNEL`, and those that a macro makes for a head size.
fn kernel_names(source: &str) -> Vec<String> {
    let sizes: Vec<&str> =
        source.lines().filter_map(|line| line.strip_prefix("ATTENTION_OF(")?.split(')').next()).collect();
    let mut names = Vec::new();
    for part in source.split("KERNEL ").skip(1) {
        let part = part.trim_start_matches(|c: char| c != ')').trim_start_matches(')').trim_start();
        let name: String = part.chars().take_while(|c| c.is_alphanumeric() || "_#".contains(*c)).collect();
        match name.strip_suffix("##D") {
            Some(stem) => names.extend(sizes.iter().map(|size| format!("{stem}{size}"))),
            None => names.push(name),
        }
    }
    names
}

/// Compiles all kernels into one library, once for each state of the sources, and opens it.
fn compiled() -> Option<LaunchFunction> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    sources(&root.join("src"), &mut paths);
    let mut program = String::from("#define CUDA_ON_CPU\n");
    let mut table = String::new();
    let mut hasher = blake3::Hasher::new();
    for path in &paths {
        let source = std::fs::read_to_string(path).expect("a readable source");
        program += &format!("#include \"{}\"\n", path.display());
        kernel_names(&source).iter().for_each(|name| table += &format!("  {{\"{name}\", caller({name})}},\n"));
        hasher.update(source.as_bytes());
    }
    program +=
        &format!("#include \"launch.h\"\nstatic const Entry entries[] = {{\n{table}}};\nON_CPU_LAUNCH(entries)\n");
    hasher.update(program.as_bytes());
    for header in ["src/device/cuda/kernel.cuh", "src/quant/nf4.cuh", "tests/cuda/cuda_on_cpu.h", "tests/cuda/launch.h"]
    {
        hasher.update(&std::fs::read(root.join(header)).expect("a readable header"));
    }
    let folder = root.join("target/cuda-on-cpu");
    let library = folder.join(format!("{}.so", &hasher.finalize().to_hex()[..16]));
    if !library.is_file() {
        std::fs::create_dir_all(&folder).expect("a folder for the library");
        let building = tempfile::tempdir_in(&folder).expect("a folder to build in");
        std::fs::write(building.path().join("kernels.cpp"), program).expect("the program");
        let output = Command::new("g++")
            .args([
                "-O2",
                "-std=c++17",
                "-shared",
                "-fPIC",
                "-ffp-contract=off",
                "-w",
                "-o",
                "kernels.so",
                "kernels.cpp",
            ])
            .arg("-I")
            .arg(root.join("src/device/cuda"))
            .arg("-I")
            .arg(root.join("tests/cuda"))
            .current_dir(building.path())
            .output();
        let output = output.ok()?;
        assert!(output.status.success(), "the kernels do not compile:\n{}", String::from_utf8_lossy(&output.stderr));
        std::fs::rename(building.path().join("kernels.so"), &library).expect("the library in its place");
    }
    let name = CString::new(library.as_os_str().as_encoded_bytes()).expect("a path without NUL");
    // SAFETY: a library that was just compiled from this repository; its symbol has the type of LaunchFunction.
    unsafe {
        let handle = libc::dlopen(name.as_ptr(), libc::RTLD_NOW);
        assert!(!handle.is_null(), "{} cannot be opened", library.display());
        let symbol = libc::dlsym(handle, c"on_cpu_launch".as_ptr());
        assert!(!symbol.is_null(), "no on_cpu_launch");
        Some(std::mem::transmute::<*mut c_void, LaunchFunction>(symbol))
    }
}

impl Emulator {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Box<[u64]>>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Panics unless the range lies in memory that was given out.
    fn check(&self, address: u64, bytes: usize) {
        let memory = self.lock();
        let (start, block) = memory.range(..=address).next_back().expect("an address that was given out");
        // The 128 bytes of alignment are nobody's.
        assert!(
            address + bytes as u64 <= start + 8 * (block.len() - 16) as u64,
            "{bytes} bytes at {address:#x} end outside"
        );
    }

    fn slice<T>(&self, address: u64, count: usize) -> &[T] {
        self.check(address, count * size_of::<T>());
        // SAFETY: in bounds by the check; tests do not write to it meanwhile.
        unsafe { std::slice::from_raw_parts(address as *const T, count) }
    }

    /// Element `(row, column)` of an operand after transposition.
    fn at(&self, operand: &Operand, row: usize, column: usize) -> f32 {
        let (row, column) = if operand.transposed { (column, row) } else { (row, column) };
        // SAFETY: `product` has checked the operand's extent.
        let bits = unsafe { *(operand.address as *const u16).add(row * operand.stride + column) };
        bf16::from_bits(bits).to_f32()
    }

    fn check_operand(&self, operand: &Operand, rows: usize, columns: usize) {
        let (rows, columns) = if operand.transposed { (columns, rows) } else { (rows, columns) };
        assert!(operand.stride >= columns, "rows overlap");
        if rows > 0 && columns > 0 {
            self.check(operand.address, 2 * ((rows - 1) * operand.stride + columns));
        }
    }
}

impl Driver for Emulator {
    fn name(&self) -> String {
        "emulated GPU".into()
    }

    fn memory(&self) -> Result<DeviceMemory> {
        let used: usize = self.lock().values().map(|block| 8 * block.len()).sum();
        let total = self.limit.load(Ordering::Relaxed);
        Ok(DeviceMemory { free: total.saturating_sub(used), total })
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        if bytes > self.memory()?.free {
            return Err(Error::out_of_memory("allocating memory: out of memory"));
        }
        // All bits set is NaN in f32 and bf16. 128 bytes more than asked for let the address be rounded up.
        let block = vec![u64::MAX; bytes.div_ceil(8) + 16].into_boxed_slice();
        let address = (block.as_ptr() as u64).next_multiple_of(128);
        self.lock().insert(address, block);
        Ok(address)
    }

    fn release(&self, address: u64) {
        assert!(self.lock().remove(&address).is_some(), "an address that was given out");
    }

    fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        self.check(to, bytes.len());
        // SAFETY: in bounds by the check; the host's slice is another allocation.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len()) };
        Ok(())
    }

    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        bytes.copy_from_slice(self.slice(from, bytes.len()));
        Ok(())
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        assert!(from + bytes as u64 <= to || to + bytes as u64 <= from, "the ranges overlap");
        self.upload(to, self.slice(from, bytes))
    }

    fn clear(&self, address: u64, bytes: usize) -> Result<()> {
        self.check(address, bytes);
        // SAFETY: in bounds by the check.
        unsafe { std::ptr::write_bytes(address as *mut u8, 0, bytes) };
        Ok(())
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        assert!(launch.threads.is_multiple_of(32) && launch.threads <= 1024 && launch.grid[1] <= 65_535);
        for argument in launch.arguments {
            if let Argument::Pointer(address) = argument {
                assert!(*address == 0 || self.lock().range(..=address).next_back().is_some());
            }
        }
        let name = CString::new(launch.kernel).expect("a name without NUL");
        let count = launch.arguments.len() as c_int;
        let _turn = self.kernels.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = launch.shared_bytes as usize;
        // SAFETY: the kernel gets as many arguments as it takes (checked there); addresses are the caller's promise.
        let code = launch.with_pointers(|pointers| unsafe {
            (self.kernels.launch)(
                name.as_ptr(),
                launch.grid.as_ptr(),
                launch.threads,
                shared,
                pointers.as_mut_ptr(),
                count,
            )
        });
        assert_eq!(code, 0, "{}: {}", launch.kernel, ["", "no such kernel", "other arguments"][code as usize]);
        Ok(())
    }

    fn product(&self, product: &Product) -> Result<()> {
        let Product { m, n, k, a, b, c, c_stride, output, alpha, beta } = *product;
        self.check_operand(&a, m, k);
        self.check_operand(&b, k, n);
        let width = if output == Output::F32 { 4 } else { 2 };
        assert!(c_stride >= n && m > 0 && n > 0 && k > 0);
        self.check(c, width * ((m - 1) * c_stride + n));
        for row in 0..m {
            for column in 0..n {
                let sum: f32 = (0..k).map(|i| self.at(&a, row, i) * self.at(&b, i, column)).sum();
                let at = row * c_stride + column;
                // SAFETY: in bounds by the check above.
                unsafe {
                    match output {
                        Output::F32 => {
                            let element = (c as *mut f32).add(at);
                            let old = if beta == 0.0 { 0.0 } else { beta * *element };
                            *element = alpha * sum + old;
                        }
                        Output::Bf16 => {
                            let element = (c as *mut u16).add(at);
                            let old = if beta == 0.0 { 0.0 } else { beta * bf16::from_bits(*element).to_f32() };
                            *element = bf16::from_f32(alpha * sum + old).to_bits();
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
}
