//! Fuzz target `tokenizer`; what it demands is in `targets/tokenizer.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| llamantino_fuzz::targets::tokenizer::run(input));
