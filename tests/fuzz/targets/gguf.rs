//! A GGUF model: header, configuration, every tensor, the tokenizer.

use super::Folder;
use llamantino::model::gguf::Gguf;

pub fn run(input: &[u8]) {
    let folder = Folder::new();
    let path = folder.write("model.gguf", input);
    let Ok(model) = Gguf::open(&path, None) else { return };
    for (name, dtype, shape) in model.tensors() {
        let Ok(tensor) = model.get(name) else { continue };
        assert_eq!((tensor.dtype, &tensor.shape[..]), (dtype, shape), "{name}");
        assert_eq!(tensor.elements(), shape.iter().product::<usize>(), "{name}");
    }
    if let Ok(files) = model.tokenizer() {
        assert!(files.tokenizer.is_object());
        // The expressions of a byte-level tokenizer take milliseconds to compile, a hundred times what all else does:
        // one tokenizer in eight is loaded, by the input alone. The target `tokenizer` does nothing but that.
        let loads = input.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) % 8 == 0;
        if !loads {
            return;
        }
        if let Ok(tokenizer) = model.load_tokenizer() {
            super::tokenizer::use_it(&tokenizer);
        }
    }
}
