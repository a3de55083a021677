//! A configuration file: a run, or a chain of stages over it.
//!
//! Without `[[stage]]` the file is a [`RunConfig`]. With them, each stage is the file's top with the stage's keys over it,
//! table by table; lists are replaced whole but for `evaluation`, where a stage adds to the top's. The stages form a tree:
//! each starts from the one before it, or from the earlier one that `after` names. The first starts from `model`.
//!
//! Invariant: what a stage's folder is called depends on its place and its name alone: `<output>/<name>/<number>-<stage>`.

use super::config::{Handover, Stage, StageConfig};
use crate::config::{self, nearest, overlay, Problem, Problems, Section};
use crate::error::{Error, Result};
use crate::model::Method;
use crate::train::config::RunConfig;
use crate::train::save::result_path;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

/// What a configuration file holds.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Recipe {
    /// The run, or what all stages have in common.
    #[serde(flatten)]
    pub run: RunConfig,
    /// The stages; none makes it a single run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stage: Vec<StageConfig>,
}

impl Section for Recipe {
    fn example() -> Recipe {
        Recipe { run: RunConfig::example(), stage: vec![StageConfig::example()] }
    }

    fn check(&self, problems: &mut Problems) {
        if self.stage.is_empty() {
            return self.run.check(problems);
        }
        problems.sections("stage", &self.stage);
        self.check_order(problems);
        if !problems.found().is_empty() {
            return;
        }
        let stages: Vec<Stage> = match self.resolve() {
            Ok(stages) => stages,
            Err(error) => return problems.add("stage", error.message()),
        };
        self.check_handovers(&stages, problems);
        self.check_runs(&stages, problems);
    }
}

impl Recipe {
    /// The stages as they run; none for a single run.
    ///
    /// # Errors
    /// A recipe that does not pass its own check.
    pub fn stages(&self) -> Result<Vec<Stage>> {
        let mut problems = Problems::default();
        self.check(&mut problems);
        match problems.found().first() {
            Some(Problem { key, what }) => Err(Error::usage(format!("{key}: {what}"))),
            None => self.resolve(),
        }
    }

    /// The stages that a run up to the stage `name` takes: it and all that it starts from, in order. All without a name.
    ///
    /// # Errors
    /// No stage of this name.
    pub fn stages_up_to(&self, name: Option<&str>) -> Result<Vec<usize>> {
        let Some(name) = name else { return Ok((0..self.stage.len()).collect()) };
        let names = || self.stage.iter().map(|stage| stage.name.as_str());
        let Some(last) = names().position(|known| known == name) else {
            let advice = match (nearest::nearest(name, names()), self.stage.len()) {
                (_, 0) => "the configuration has no [[stage]]".to_string(),
                (Some(near), _) => format!("did you mean {near}?"),
                (None, _) => format!("the stages are {}", names().collect::<Vec<_>>().join(", ")),
            };
            return Err(Error::usage(format!("--stage {name}: there is no such stage")).hint(advice));
        };
        let mut wanted = vec![last];
        while let Some(parent) = self.parent(wanted[wanted.len() - 1]) {
            wanted.push(parent);
        }
        wanted.reverse();
        Ok(wanted)
    }

    /// The run of the stage `name`, as the planner sees it; without stages, the file's own run.
    ///
    /// # Errors
    /// No stage of this name, or none named where there are some.
    pub fn run_of(&self, name: Option<&str>) -> Result<RunConfig> {
        let wanted = self.stages_up_to(name)?;
        match (name, wanted.last()) {
            (_, None) => Ok(self.run.clone()),
            (Some(_), Some(&last)) => Ok(self.stages()?.swap_remove(last).planned),
            (None, Some(_)) => {
                let names: Vec<&str> = self.stage.iter().map(|stage| stage.name.as_str()).collect();
                Err(Error::usage("the configuration has several stages, each with data of its own")
                    .hint(format!("name one of them: --stage {}", names.join(", --stage "))))
            }
        }
    }

    /// The recipe as a TOML file.
    ///
    /// # Errors
    /// A value that TOML cannot hold.
    pub fn to_toml(&self) -> Result<String> {
        config::to_toml(self)
    }

    /// The stage that stage `index` starts from.
    fn parent(&self, index: usize) -> Option<usize> {
        match &self.stage[index].after {
            Some(name) => self.stage[..index].iter().position(|stage| stage.name == *name),
            None => index.checked_sub(1),
        }
    }

    fn check_order(&self, problems: &mut Problems) {
        for (index, stage) in self.stage.iter().enumerate() {
            let key = |key: &str| format!("stage[{index}].{key}");
            let earlier: Vec<&str> = self.stage[..index].iter().map(|stage| stage.name.as_str()).collect();
            problems.expect(!earlier.contains(&stage.name.as_str()), &key("name"), "a name of its own", &stage.name);
            if index == 0 {
                let none = "nothing: the first stage starts from model";
                problems.expect(stage.after.is_none(), &key("after"), none, &stage.after);
                problems.expect(stage.from.is_none(), &key("from"), none, stage.from);
            } else if let Some(after) = stage.after.as_ref().filter(|after| !earlier.contains(&after.as_str())) {
                let expected = format!("an earlier stage ({})", earlier.join(", "));
                problems.add(&key("after"), format!("expected {expected}, found {after:?}"));
            }
        }
    }

    /// Whether each stage can start from its parent as it says.
    fn check_handovers(&self, stages: &[Stage], problems: &mut Problems) {
        for (index, stage) in stages.iter().enumerate() {
            let Some((parent, handover)) = stage.after else { continue };
            let (config, before) = (&stage.config, &stages[parent].config);
            let key = |key: &str| format!("stage[{index}].{key}");
            if handover == Handover::Merge {
                continue;
            }
            if before.method == Method::Full {
                let what = "expected \"merge\": the stage before has method = \"full\" and leaves no adapter";
                problems.add(&key("from"), what);
                continue;
            }
            for (name, same) in [
                ("method", config.method == before.method),
                ("quantization", config.quantization == before.quantization),
                ("lora", !self.stage[index].changes.contain("lora")),
            ] {
                let what = "expected no change, as the adapter of the stage before is trained on; from = \"merge\" starts a new one";
                if !same {
                    problems.add(&key(name), what);
                }
            }
        }
        let threads = |stage: &Stage| stage.config.training.threads;
        if let Some(index) = stages.iter().position(|stage| threads(stage) != threads(&stages[0])) {
            problems.add(&format!("stage[{index}].training.threads"), "expected the same number in all stages");
        }
        let device = |stage: &Stage| stage.config.training.device;
        if let Some(index) = stages.iter().position(|stage| device(stage) != device(&stages[0])) {
            problems.add(&format!("stage[{index}].training.device"), "expected the same device in all stages");
        }
    }

    /// What each run finds wrong, at the key where it can be put right.
    fn check_runs(&self, stages: &[Stage], problems: &mut Problems) {
        let found: Vec<Vec<Problem>> = stages
            .iter()
            .map(|stage| {
                let mut problems = Problems::default();
                stage.config.check(&mut problems);
                problems.found().to_vec()
            })
            .collect();
        let at_the_top = |index: usize, problem: &Problem| {
            !self.stage[index].changes.contain(&problem.key) && found.iter().all(|found| found.contains(problem))
        };
        for (index, own) in found.iter().enumerate() {
            for problem in own {
                match at_the_top(index, problem) {
                    false => problems.add(&format!("stage[{index}].{}", problem.key), &problem.what),
                    true if problems.found().contains(problem) => {}
                    true => problems.add(&problem.key, &problem.what),
                }
            }
        }
    }

    fn resolve(&self) -> Result<Vec<Stage>> {
        let mut stages: Vec<Stage> = Vec::with_capacity(self.stage.len());
        for (index, entry) in self.stage.iter().enumerate() {
            let parent = self.parent(index).map(|parent| (&stages[parent], parent));
            let stage = self.resolve_one(index, entry, parent)?;
            stages.push(stage);
        }
        Ok(stages)
    }

    fn resolve_one(&self, index: usize, entry: &StageConfig, parent: Option<(&Stage, usize)>) -> Result<Stage> {
        let mut config = self.changed(entry)?;
        config.output = self.run.folder();
        config.name = format!("{}-{}", index + 1, entry.name);
        let handover = entry.from.unwrap_or_default();
        let mut planned = config.clone();
        if let Some((before, _)) = parent {
            for config in [&mut config, &mut planned] {
                (config.from_scratch, config.adapter) = (false, None);
            }
            planned.model.clone_from(&before.planned.model);
            match handover {
                Handover::Adapter => {
                    for (config, before) in [(&mut config, &before.config), (&mut planned, &before.planned)] {
                        config.lora.clone_from(&before.lora);
                        config.train_embeddings |= before.train_embeddings;
                    }
                    config.model.clone_from(&before.config.model);
                    config.adapter = Some(result_path(&before.config));
                    planned.adapter.clone_from(&before.planned.adapter);
                }
                Handover::Merge => {
                    let model = match before.config.method {
                        Method::Full => result_path(&before.config),
                        Method::Lora | Method::Qlora => before.merged(),
                    };
                    config.model = model.to_string_lossy().into_owned();
                }
            }
        }
        let after = parent.map(|(_, index)| (index, handover));
        Ok(Stage { name: entry.name.clone(), after, keep_merged: entry.keep_merged, config, planned })
    }

    /// The top of the file with a stage's keys over it.
    fn changed(&self, entry: &StageConfig) -> Result<RunConfig> {
        let failed = |error: &dyn std::fmt::Display| Error::usage(format!("stage {}: {error}", entry.name));
        let mut table = Table::try_from(&self.run).map_err(|error| failed(&error))?;
        overlay(&mut table, entry.changes.0.clone());
        let mut config: RunConfig = Value::Table(table).try_into().map_err(|error| failed(&error))?;
        if entry.changes.contain("evaluation") {
            let own = std::mem::take(&mut config.evaluation);
            let others = self.run.evaluation.iter().filter(|set| own.iter().all(|own| own.name != set.name));
            config.evaluation = others.cloned().chain(own.iter().cloned()).collect();
        }
        Ok(config)
    }
}
