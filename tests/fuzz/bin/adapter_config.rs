#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| llamantino_fuzz::targets::adapter_config::run(input));
