//! A model's tokenizer. Parts: `tokenizer.json`, then `tokenizer_config.json`, `special_tokens_map.json`,
//! `generation_config.json`, `config.json`, each where it has any content.
//!
//! What is loaded keeps the promise of [`Tokenizer::encode_plain`]: no control token but the one for what the tokenizer
//! does not know, and no id without an embedding.

use llamantino::data::tokenize::Tokenizer;

const TEXTS: [&str; 4] = ["", " Città e perché: 3,5 €\n\n", "<s>a</s> <|im_end|>", "日本\u{0301}\u{200d}🙂\0x"];

pub fn run(input: &[u8]) {
    let [tokenizer, others @ ..] = super::parts::<5>(input);
    let folder = super::Folder::new();
    folder.write("tokenizer.json", tokenizer);
    let names = ["tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "config.json"];
    names.iter().zip(others).for_each(|(name, content)| folder.write_if_any(name, content));
    if let Ok(tokenizer) = Tokenizer::load(folder.path(), None) {
        use_it(&tokenizer);
    }
}

/// Encodes and decodes.
pub fn use_it(tokenizer: &Tokenizer) {
    for text in TEXTS {
        if let Ok(ids) = tokenizer.encode_plain(text) {
            assert!(ids.iter().all(|&id| (id as usize) < tokenizer.embedding_rows()), "{text:?}: {ids:?}");
            let mut closed = ids.iter().filter(|&&id| tokenizer.is_closed(id));
            let unknown = closed.next();
            assert!(closed.all(|id| Some(id) == unknown), "{text:?}: {ids:?}");
            let _ = tokenizer.decode(&ids, true);
        }
    }
    for id in [0, 1, u32::MAX] {
        let _ = (tokenizer.token(id), tokenizer.decode(&[id], false));
    }
}
