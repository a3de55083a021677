//! The files that belong to a model beside config and weights: tokenizer, templates, generation settings, licences.

/// Whether a file of this name is one of them.
pub fn is_companion(name: &str) -> bool {
    const NAMES: [&str; 10] = [
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "chat_template.jinja",
        "chat_template.json",
        "generation_config.json",
    ];
    let legal = ["LICENSE", "LICENCE", "NOTICE", "USE_POLICY"];
    NAMES.contains(&name) || legal.iter().any(|prefix| name.to_uppercase().starts_with(prefix))
}
