//! Fuzz target `model_config`; what it demands is in `targets/model_config.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| llamantino_fuzz::targets::model_config::run(input));
