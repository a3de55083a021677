//! Fuzz target `data_lines`; what it demands is in `targets/data_lines.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| llamantino_fuzz::targets::data_lines::run(input));
