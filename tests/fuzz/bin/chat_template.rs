//! Fuzz target `chat_template`; what it demands is in `targets/chat_template.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| llamantino_fuzz::targets::chat_template::run(input));
