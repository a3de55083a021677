//! The fuzz targets as a library, so that they are compiled once for all of the fuzzer's programs.

#[path = "targets/mod.rs"]
pub mod targets;
