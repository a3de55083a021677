//! Fuzz target `config`; what it demands is in `targets/config.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| llamantino_fuzz::targets::config::run(input));
