//! Fuzz target `adapter_config`; what it demands is in `targets/adapter_config.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| llamantino_fuzz::targets::adapter_config::run(input));
