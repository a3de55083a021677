//! Fuzz target `gguf`; what it demands is in `targets/gguf.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| llamantino_fuzz::targets::gguf::run(input));
