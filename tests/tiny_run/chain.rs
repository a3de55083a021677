//! A chain of three stages of the tiny model.

use super::{outcome, Tiny};
use llamantino::train::stages::{Recipe, StageConfig};
use llamantino::train::RunConfig;
use std::collections::BTreeMap;

/// Text, then text on top of the adapter, then a new adapter on the merged model: 4 + 3 + 3 steps.
pub fn recipe(tiny: &Tiny, name: &str) -> Recipe {
    for (file, seed) in [("second.txt", 5), ("third.txt", 6)] {
        tiny.write_text(file, seed, 2500);
    }
    let mut run: RunConfig = tiny.config(name);
    (run.training.steps, run.training.checkpoint_every, run.training.accumulation) = (4, 2, 2);
    let stage = |name: &str, more: String| -> StageConfig {
        toml::from_str(&format!("name = {name:?}\n{more}")).unwrap_or_else(|error| panic!("{error}"))
    };
    let text = |file: &str| tiny.path(file).display().to_string();
    let stage = vec![
        stage("adapt", String::new()),
        stage("chat", format!("[data]\npaths = [{:?}]\n[training]\nsteps = 3\n", text("second.txt"))),
        stage(
            "instruct",
            format!(
                "from = \"merge\"\n[data]\npaths = [{:?}]\n[training]\nsteps = 3\n[lora]\nr = 2\n[optimizer]\nlearning_rate = 1e-3\n",
                text("third.txt")
            ),
        ),
    ];
    Recipe { run, stage }
}

/// Everything of every stage that must be the same bits, without the chain's own folder in the texts.
pub fn outcomes(recipe: &Recipe) -> BTreeMap<String, Vec<u8>> {
    let folder = recipe.run.folder().display().to_string();
    let mut all = BTreeMap::new();
    for stage in recipe.stages().unwrap() {
        for (name, bytes) in outcome(&stage.config) {
            let bytes = match String::from_utf8(bytes) {
                Ok(text) => text.replace(&folder, "<chain>").into_bytes(),
                Err(error) => error.into_bytes(),
            };
            all.insert(format!("{}: {name}", stage.name), bytes);
        }
    }
    all
}
