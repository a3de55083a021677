//! The configuration of a run, and `--set` overrides, one a line. What is accepted is written and read back the same.

use llamantino::config::load;
use llamantino::train::RunConfig;
use std::path::Path;

pub fn run(input: &[u8]) {
    let [text, overrides] = super::parts(input);
    let (Ok(text), Ok(overrides)) = (std::str::from_utf8(text), std::str::from_utf8(overrides)) else { return };
    let overrides: Vec<String> = overrides.lines().map(str::to_owned).collect();
    match load::<RunConfig>(text, Path::new("run.toml"), &overrides) {
        Ok(config) => {
            let written = config.to_toml().expect("an accepted configuration can be written");
            let again: RunConfig = load(&written, Path::new("config.toml"), &[]).expect("and read back");
            assert_eq!(config, again);
        }
        Err(error) => assert_eq!(error.exit_code(), 2, "{error}"),
    }
}
