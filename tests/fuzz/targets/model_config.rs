//! A model's `config.json`, and what is computed from the sizes in it.

use llamantino::model::ModelConfig;

pub fn run(input: &[u8]) {
    let folder = super::Folder::new();
    folder.write("config.json", input);
    let Ok(config) = ModelConfig::from_folder(folder.path()) else { return };
    let _ = (config.query_width(), config.kv_width(), config.linear_shapes(0), config.initializer_range());
    let again = ModelConfig::from_json(config.json_with_quantization(None)).expect("what was written can be read");
    assert_eq!(again.query_width(), config.query_width());
}
