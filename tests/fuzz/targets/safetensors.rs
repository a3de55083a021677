//! A weights file, alone or as the shard `a.safetensors` of an index. Parts: the index, if the input has any, and the
//! file. All tensors are read, 4-bit ones are dequantised.

use super::Folder;
use llamantino::model::weights::{check_finite, Checkpoint};
use llamantino::quant::file::read_weight;

/// Largest matrix that is dequantised, in elements.
const MOST: usize = 1 << 16;

pub fn run(input: &[u8]) {
    let folder = Folder::new();
    let opened = match super::parts(input) {
        [file, []] => Checkpoint::open(&folder.write("model.safetensors", file)),
        [index, file] => {
            folder.write("model.safetensors.index.json", index);
            folder.write("a.safetensors", file);
            Checkpoint::open(folder.path())
        }
    };
    let Ok(checkpoint) = opened else { return };
    let mut bytes = 0;
    for name in checkpoint.names() {
        if let Ok(tensor) = checkpoint.get(name) {
            bytes += tensor.bytes.len();
            assert_eq!(tensor.elements(), tensor.shape.iter().product::<usize>());
            let _ = check_finite(name, &tensor);
        }
        if checkpoint.is_nf4(name) {
            let Ok(matrix) = read_weight(name, &|part| checkpoint.find(part)) else { continue };
            if matrix.len() <= MOST {
                let mut values = vec![0.0; matrix.len()];
                matrix.dequantize(&mut values);
            }
        }
    }
    assert!(bytes <= input.len(), "{bytes} bytes of tensors in {} bytes of files", input.len());
}
