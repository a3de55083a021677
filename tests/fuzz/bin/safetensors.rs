//! Fuzz target `safetensors`; what it demands is in `targets/safetensors.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| llamantino_fuzz::targets::safetensors::run(input));
