//! GGUF files made in tests, and the real ones that an environment variable names.

use std::path::PathBuf;

/// Makes the bytes of a GGUF file.
#[derive(Clone)]
pub struct Builder {
    pub version: u32,
    pub alignment: usize,
    metadata: Vec<Vec<u8>>,
    tensors: Vec<Tensor>,
}

#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    /// Outermost first.
    pub shape: Vec<usize>,
    pub kind: u32,
    pub bytes: Vec<u8>,
    /// Added to the place in the data where it would lie.
    pub shift: i64,
}

impl Builder {
    pub fn new() -> Builder {
        Builder { version: 3, alignment: 32, metadata: Vec::new(), tensors: Vec::new() }
    }

    fn length(&self, value: usize) -> Vec<u8> {
        match self.version {
            1 => (value as u32).to_le_bytes().to_vec(),
            _ => (value as u64).to_le_bytes().to_vec(),
        }
    }

    fn string(&self, text: &str) -> Vec<u8> {
        [&self.length(text.len())[..], text.as_bytes()].concat()
    }

    /// A value of type number `kind` with these bytes.
    pub fn raw(&mut self, key: &str, kind: u32, bytes: &[u8]) -> &mut Builder {
        let entry = [&self.string(key)[..], &kind.to_le_bytes(), bytes].concat();
        self.metadata.push(entry);
        self
    }

    pub fn text(&mut self, key: &str, text: &str) -> &mut Builder {
        let bytes = self.string(text);
        self.raw(key, 8, &bytes)
    }

    pub fn u32(&mut self, key: &str, value: u32) -> &mut Builder {
        self.raw(key, 4, &value.to_le_bytes())
    }

    pub fn f32(&mut self, key: &str, value: f32) -> &mut Builder {
        self.raw(key, 6, &value.to_le_bytes())
    }

    pub fn flag(&mut self, key: &str, value: bool) -> &mut Builder {
        self.raw(key, 7, &[u8::from(value)])
    }

    pub fn list(&mut self, key: &str, kind: u32, count: usize, elements: &[u8]) -> &mut Builder {
        let bytes = [&kind.to_le_bytes()[..], &self.length(count), elements].concat();
        self.raw(key, 9, &bytes)
    }

    pub fn texts(&mut self, key: &str, texts: &[&str]) -> &mut Builder {
        let elements: Vec<u8> = texts.iter().flat_map(|text| self.string(text)).collect();
        self.list(key, 8, texts.len(), &elements)
    }

    pub fn i32s(&mut self, key: &str, values: &[i32]) -> &mut Builder {
        let elements: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.list(key, 5, values.len(), &elements)
    }

    pub fn f32s(&mut self, key: &str, values: &[f32]) -> &mut Builder {
        let elements: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.list(key, 6, values.len(), &elements)
    }

    pub fn tensor(&mut self, name: &str, kind: u32, shape: &[usize], bytes: &[u8]) -> &mut Builder {
        self.tensors.push(Tensor { name: name.into(), shape: shape.to_vec(), kind, bytes: bytes.to_vec(), shift: 0 });
        self
    }

    pub fn f32_tensor(&mut self, name: &str, shape: &[usize], values: &[f32]) -> &mut Builder {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensor(name, 0, shape, &bytes)
    }

    /// Removes a metadata value.
    pub fn without(&mut self, key: &str) -> &mut Builder {
        let start = self.string(key);
        self.metadata.retain(|entry| !entry.starts_with(&start));
        self
    }

    pub fn tensors(&mut self) -> &mut Vec<Tensor> {
        &mut self.tensors
    }

    pub fn build(&self) -> Vec<u8> {
        let mut file = [&b"GGUF"[..], &self.version.to_le_bytes()].concat();
        file.extend(self.length(self.tensors.len()));
        file.extend(self.length(self.metadata.len()));
        self.metadata.iter().for_each(|entry| file.extend(entry));
        let mut offset = 0;
        for tensor in &self.tensors {
            file.extend(self.string(&tensor.name));
            file.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().rev().for_each(|&size| file.extend(self.length(size)));
            file.extend(tensor.kind.to_le_bytes());
            file.extend((offset as i64 + tensor.shift).to_le_bytes());
            offset = (offset + tensor.bytes.len()).next_multiple_of(self.alignment);
        }
        for tensor in &self.tensors {
            file.resize(file.len().next_multiple_of(self.alignment), 0);
            file.extend(&tensor.bytes);
        }
        file
    }

    /// Writes the file into a temporary folder.
    pub fn write(&self) -> (tempfile::TempDir, PathBuf) {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("model.gguf");
        std::fs::write(&path, self.build()).unwrap();
        (place, path)
    }

    /// A model of one layer: width 8, two heads of 4, one of keys, inner width 8, 6 tokens, all weights F32.
    pub fn tiny() -> Builder {
        Builder::tiny_of(3)
    }

    pub fn tiny_of(version: u32) -> Builder {
        let mut builder = Builder { version, ..Builder::new() };
        builder.text("general.architecture", "llama").u32("llama.block_count", 1).u32("llama.context_length", 64);
        builder.u32("llama.embedding_length", 8).u32("llama.feed_forward_length", 8);
        builder.u32("llama.attention.head_count", 2).u32("llama.attention.head_count_kv", 1);
        builder.f32("llama.attention.layer_norm_rms_epsilon", 1e-5).f32("llama.rope.freq_base", 500_000.0);
        builder.text("tokenizer.ggml.model", "gpt2").text("tokenizer.ggml.pre", "gpt-2");
        builder.texts("tokenizer.ggml.tokens", &["<s>", "</s>", "a", "b", "ab", "Ġ"]);
        builder.i32s("tokenizer.ggml.token_type", &[3, 3, 1, 1, 1, 1]).texts("tokenizer.ggml.merges", &["a b"]);
        builder.u32("tokenizer.ggml.bos_token_id", 0).u32("tokenizer.ggml.eos_token_id", 1);
        let shapes: [(&str, &[usize]); 12] = [
            ("token_embd", &[6, 8]),
            ("output_norm", &[8]),
            ("output", &[6, 8]),
            ("blk.0.attn_norm", &[8]),
            ("blk.0.attn_q", &[8, 8]),
            ("blk.0.attn_k", &[4, 8]),
            ("blk.0.attn_v", &[4, 8]),
            ("blk.0.attn_output", &[8, 8]),
            ("blk.0.ffn_norm", &[8]),
            ("blk.0.ffn_gate", &[8, 8]),
            ("blk.0.ffn_up", &[8, 8]),
            ("blk.0.ffn_down", &[8, 8]),
        ];
        for (i, (name, shape)) in shapes.into_iter().enumerate() {
            let values: Vec<f32> = (0..shape.iter().product()).map(|j| (100 * i + j) as f32).collect();
            builder.f32_tensor(&format!("{name}.weight"), shape, &values);
        }
        builder
    }
}

/// The file or folder that an environment variable names. Without it the test is said to be skipped, on stderr (past the
/// harness, which keeps what passing tests print) and in the file that `LLAMANTINO_SKIPPED` names.
pub fn asset(variable: &str, test: &str) -> Option<PathBuf> {
    use std::io::Write;
    if let Some(path) = std::env::var_os(variable).filter(|value| !value.is_empty()) {
        return Some(PathBuf::from(path));
    }
    let line = format!("{test}: {variable} names nothing");
    writeln!(std::io::stderr(), "skipped: {line}").unwrap();
    if let Some(skips) = std::env::var_os("LLAMANTINO_SKIPPED") {
        let mut file = std::fs::File::options().create(true).append(true).open(skips).unwrap();
        writeln!(file, "{line}").unwrap();
    }
    None
}
