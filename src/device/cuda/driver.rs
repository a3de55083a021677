//! The CUDA driver and cuBLAS behind [`Driver`], opened at run time: the program starts without either, and says what is
//! missing when a GPU is asked for.
//!
//! One stream, one cuBLAS handle with a workspace of its own (which makes its results repeatable), the kernels out of the
//! fat binaries that the build embedded. Calls may come from any thread: the context is made current in each.
//! Reference: CUDA driver API and cuBLAS documentation; bindings by cudarc.

use super::pinned::Pinned;
use super::requirements::{advice, check, more_memory, Found};
use super::{DeviceMemory, Driver, Launch, Output, Product};
use crate::error::{Error, Result};
use cudarc::cublas::{result as cublas, sys as blas};
use cudarc::driver::{result as cuda, sys};
use std::collections::HashMap;
use std::ffi::{c_int, c_void, CString};
use std::sync::{Arc, Mutex, PoisonError};

/// The embedded kernels: name of the source and its fat binary.
static KERNELS: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// Bytes of cuBLAS' workspace: what its documentation asks for on Hopper.
const WORKSPACE: usize = 32 << 20;

/// Shared memory of a block that needs no permission.
const PLAIN_SHARED_BYTES: u32 = 48 << 10;

/// CUDA version of the compiler that made the kernels.
const KERNELS_CUDA: i32 = include!(concat!(env!("OUT_DIR"), "/cuda_version.rs"));

fn fault(what: &str, error: impl std::fmt::Display) -> Error {
    Error::failed(format!("GPU: {what}: {error}"))
}

/// What is known where the driver says so; who planned the memory says more.
fn no_memory(what: &str) -> Error {
    Error::out_of_memory(format!("GPU: {what}: out of memory")).hint(more_memory())
}

fn blas_error(what: &'static str) -> impl Fn(cublas::CublasError) -> Error {
    move |error| match error.0 {
        blas::cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED => no_memory(what),
        _ => fault(what, format!("{error:?}")),
    }
}

pub(super) fn driver_error(what: &'static str) -> impl Fn(cuda::DriverError) -> Error {
    move |error| {
        let text = error.error_string().ok().and_then(|text| text.to_str().ok()).unwrap_or("unknown error").to_owned();
        match error.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => no_memory(what),
            number => match advice(number as u32) {
                Some(advice) => fault(what, text).hint(advice),
                None => fault(what, text),
            },
        }
    }
}

/// What this machine has, without using it.
///
/// # Errors
/// No driver, with what to do about it.
pub fn probe() -> Result<Found> {
    // SAFETY: opening the driver's library runs its initialisers, as any program that uses CUDA does.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::failed("no NVIDIA driver: libcuda.so.1 cannot be opened")
            .hint("install the driver (version 580 or newer), or use --device cpu"));
    }
    cuda::init().map_err(driver_error("the driver does not start"))?;
    let mut driver = 0;
    // SAFETY: the pointer is to an int.
    unsafe { sys::cuDriverGetVersion(&mut driver) }.result().map_err(driver_error("driver version"))?;
    let count = cuda::device::get_count().map_err(driver_error("counting GPUs"))?;
    let cards = (0..count).map(describe).collect::<Result<_>>()?;
    // SAFETY: as above.
    let cublas = unsafe { blas::is_culib_present() };
    Ok(Found { cards, driver, kernels: KERNELS_CUDA, cublas })
}

fn describe(ordinal: c_int) -> Result<(String, (i32, i32), usize)> {
    let device = cuda::device::get(ordinal).map_err(driver_error("opening a GPU"))?;
    let name = cuda::device::get_name(device).map_err(driver_error("a GPU's name"))?;
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    // SAFETY: `device` is one.
    let [major, minor] = [MAJOR, MINOR].map(|which| unsafe { cuda::device::get_attribute(device, which) });
    let capability =
        (major.map_err(driver_error("compute capability"))?, minor.map_err(driver_error("compute capability"))?);
    // SAFETY: as above.
    let memory = unsafe { cuda::device::total_mem(device) }.map_err(driver_error("a GPU's memory"))?;
    Ok((name, capability, memory))
}

/// Opens GPU number `ordinal`.
///
/// # Errors
/// No driver; what [`check`] refuses; what the driver says.
pub fn open(ordinal: usize) -> Result<Arc<dyn Driver>> {
    let found = probe()?;
    check(&found, ordinal)?;
    Ok(Arc::new(Cuda::open(ordinal as c_int, found.cards[ordinal].0.clone())?))
}

/// A kernel's handle.
struct Function(sys::CUfunction);

struct Cuda {
    name: String,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    blas: blas::cublasHandle_t,
    workspace: sys::CUdeviceptr,
    modules: Vec<sys::CUmodule>,
    /// What uploads pass through; there from the end of `open` until the drop.
    pinned: Mutex<Option<Pinned>>,
    /// Kernels found so far.
    functions: Mutex<HashMap<&'static str, Function>>,
}

// SAFETY: the driver's objects may be used from any thread once the context is current in it, which every call sees to.
unsafe impl Send for Cuda {}
// SAFETY: as above; the driver locks what it shares, and cuBLAS' handle is used on one stream whose calls `Gpu` makes in turn.
unsafe impl Sync for Cuda {}

impl Cuda {
    fn open(ordinal: c_int, name: String) -> Result<Cuda> {
        let device = cuda::device::get(ordinal).map_err(driver_error("opening the GPU"))?;
        // SAFETY: `device` is one; everything made here is undone in drop.
        unsafe {
            let context = cuda::primary_ctx::retain(device).map_err(driver_error("making a context"))?;
            cuda::ctx::set_current(context).map_err(driver_error("using the context"))?;
            let stream =
                cuda::stream::create(cuda::stream::StreamKind::NonBlocking).map_err(driver_error("making a stream"))?;
            let mut gpu = Cuda {
                name,
                device,
                context,
                stream,
                blas: std::ptr::null_mut(),
                workspace: 0,
                modules: Vec::new(),
                pinned: Mutex::default(),
                functions: Mutex::default(),
            };
            gpu.load_kernels()?;
            gpu.pinned = Mutex::new(Some(Pinned::new()?));
            gpu.blas = cublas::create_handle().map_err(blas_error("cuBLAS does not start"))?;
            cublas::set_stream(gpu.blas, stream.cast()).map_err(blas_error("cuBLAS' stream"))?;
            // Otherwise results in bf16 may be summed in bf16 too; sums are f32 everywhere here.
            let exact = blas::cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
            blas::cublasSetMathMode(gpu.blas, exact).result().map_err(blas_error("cuBLAS' mode"))?;
            gpu.workspace = cuda::malloc_sync(WORKSPACE).map_err(driver_error("cuBLAS' workspace"))?;
            blas::cublasSetWorkspace_v2(gpu.blas, gpu.workspace as *mut c_void, WORKSPACE)
                .result()
                .map_err(blas_error("cuBLAS' workspace"))?;
            Ok(gpu)
        }
    }

    /// # Safety
    /// The context is current.
    unsafe fn load_kernels(&mut self) -> Result<()> {
        for (source, image) in KERNELS {
            // SAFETY: a whole fat binary as nvcc wrote it.
            let module = unsafe { cuda::module::load_data(image.as_ptr().cast()) }
                .map_err(|error| driver_error("loading kernels")(error).at(source))?;
            self.modules.push(module);
        }
        Ok(())
    }

    /// The kernel of that name, from whichever source defines it.
    fn function(&self, name: &'static str) -> Result<sys::CUfunction> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = functions.get(name) {
            return Ok(found.0);
        }
        let symbol = CString::new(name).map_err(|error| fault("a kernel's name", error))?;
        // SAFETY: the modules are loaded as long as self lives.
        let found =
            self.modules.iter().find_map(|&module| unsafe { cuda::module::get_function(module, symbol.clone()).ok() });
        let function = found.ok_or_else(|| fault("no kernel of this name", name))?;
        functions.insert(name, Function(function));
        Ok(function)
    }

    /// Makes the context current in this thread.
    fn enter(&self) -> Result<()> {
        // SAFETY: the context lives as long as self.
        unsafe { cuda::ctx::set_current(self.context) }.map_err(driver_error("using the context"))
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        if self.enter().is_err() {
            return;
        }
        // Nothing can be done about errors here; the process is usually about to end.
        // SAFETY: each object was made by this value and is not used afterwards.
        unsafe {
            let _ = cuda::stream::synchronize(self.stream);
            drop(self.pinned.get_mut().unwrap_or_else(PoisonError::into_inner).take());
            if !self.blas.is_null() {
                let _ = cublas::destroy_handle(self.blas);
            }
            if self.workspace != 0 {
                let _ = cuda::free_sync(self.workspace);
            }
            for &module in &self.modules {
                let _ = cuda::module::unload(module);
            }
            let _ = cuda::stream::destroy(self.stream);
            let _ = cuda::primary_ctx::release(self.device);
        }
    }
}

/// A dimension as cuBLAS takes it.
fn dimension(value: usize) -> Result<c_int> {
    c_int::try_from(value).map_err(|_| Error::failed(format!("GPU: a matrix of {value} rows or columns is too large")))
}

impl Driver for Cuda {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn memory(&self) -> Result<DeviceMemory> {
        self.enter()?;
        let (free, total) = cuda::mem_get_info().map_err(driver_error("memory"))?;
        Ok(DeviceMemory { free, total })
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        self.enter()?;
        // SAFETY: a plain allocation in the current context.
        unsafe { cuda::malloc_sync(bytes) }.map_err(driver_error("allocating memory"))
    }

    fn release(&self, address: u64) {
        if self.enter().is_ok() {
            // SAFETY: from `allocate`; the free waits for work on it. An error has nowhere to go and no consequence.
            let _ = unsafe { cuda::free_sync(address) };
        }
    }

    fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        self.enter()?;
        let mut pinned = self.pinned.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(pinned) = pinned.as_mut() else { return Err(fault("copying to the GPU", "it is closed")) };
        // SAFETY: the caller's promise on `to`; the context is current and the stream its own.
        unsafe { pinned.upload(to, bytes, self.stream) }
    }

    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        self.enter()?;
        // SAFETY: the caller's promise on `from`; the wait below ends before `bytes` is given back.
        unsafe { cuda::memcpy_dtoh_async(bytes, from, self.stream) }.map_err(driver_error("copying from the GPU"))?;
        self.synchronize()
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.enter()?;
        // SAFETY: the caller's promise on the addresses.
        unsafe { cuda::memcpy_dtod_async(to, from, bytes, self.stream) }.map_err(driver_error("copying on the GPU"))
    }

    fn clear(&self, address: u64, bytes: usize) -> Result<()> {
        self.enter()?;
        // SAFETY: the caller's promise on the address.
        unsafe { cuda::memset_d8_async(address, 0, bytes, self.stream) }.map_err(driver_error("clearing memory"))
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        self.enter()?;
        let function = self.function(launch.kernel)?;
        let [x, y] = launch.grid;
        launch.with_pointers(|pointers| {
            // SAFETY: the function is loaded; its parameters are the caller's promise.
            unsafe {
                if launch.shared_bytes > PLAIN_SHARED_BYTES {
                    let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                    cuda::function::set_function_attribute(function, attribute, launch.shared_bytes as i32)
                        .map_err(|error| driver_error("asking for shared memory")(error).at(launch.kernel))?;
                }
                let block = (launch.threads, 1, 1);
                cuda::launch_kernel(function, (x, y, 1), block, launch.shared_bytes, self.stream, pointers)
                    .map_err(|error| driver_error("starting a kernel")(error).at(launch.kernel))
            }
        })
    }

    fn product(&self, product: &Product) -> Result<()> {
        self.enter()?;
        let Product { m, n, k, a, b, c, c_stride, output, alpha, beta } = *product;
        // cuBLAS counts by columns: it is asked for cᵀ = bᵀ · aᵀ, for which the memory is just right.
        let operation = |transposed| match transposed {
            false => blas::cublasOperation_t::CUBLAS_OP_N,
            true => blas::cublasOperation_t::CUBLAS_OP_T,
        };
        let c_type = match output {
            Output::F32 => blas::cudaDataType_t::CUDA_R_32F,
            Output::Bf16 => blas::cudaDataType_t::CUDA_R_16BF,
        };
        let half = blas::cudaDataType_t::CUDA_R_16BF;
        // SAFETY: the caller's promise on addresses and strides; alpha and beta are read before the call returns.
        unsafe {
            cublas::gemm_ex(
                self.blas,
                operation(b.transposed),
                operation(a.transposed),
                dimension(n)?,
                dimension(m)?,
                dimension(k)?,
                std::ptr::from_ref(&alpha).cast(),
                b.address as *const c_void,
                half,
                dimension(b.stride)?,
                a.address as *const c_void,
                half,
                dimension(a.stride)?,
                std::ptr::from_ref(&beta).cast(),
                c as *mut c_void,
                c_type,
                dimension(c_stride)?,
                blas::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                blas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .map_err(|error| blas_error("a matrix product")(error).at(format_args!("m = {m}, n = {n}, k = {k}")))
    }

    fn synchronize(&self) -> Result<()> {
        self.enter()?;
        // SAFETY: the stream lives as long as self.
        unsafe { cuda::stream::synchronize(self.stream) }.map_err(driver_error("work on the GPU failed"))
    }
}
