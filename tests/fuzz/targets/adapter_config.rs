//! A PEFT adapter. Parts: `adapter_config.json`, `llamantino.json` where it has any content, the weights file.

use llamantino::adapter::peft;

pub fn run(input: &[u8]) {
    let [config, provenance, weights] = super::parts(input);
    let folder = super::Folder::new();
    folder.write("adapter_config.json", config);
    folder.write_if_any("llamantino.json", provenance);
    folder.write("adapter_model.safetensors", weights);
    let Ok(adapter) = peft::read(folder.path()) else { return };
    for (name, linear) in adapter.linears() {
        assert_eq!(linear.a.len(), linear.rank * linear.cols, "{name}");
        assert_eq!(linear.b.len(), linear.rank * linear.rows, "{name}");
        assert!(linear.scale.is_finite(), "{name}");
        assert!(adapter.for_linear(name, linear.rows, linear.cols).is_ok(), "{name}");
    }
    for (name, saved) in adapter.saved() {
        assert_eq!(saved.values.len(), saved.rows * saved.cols, "{name}");
    }
}
