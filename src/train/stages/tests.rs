//! Recipes: what stages inherit, and what is refused.

use super::*;
use crate::config;
use crate::model::Method;
use std::path::Path;

const FAMILY: &str = r#"
name = "family"
model = "base"
seed = 3

[lora]
r = 8

[data]
sequence_length = 256
held_out_fraction = 0.1

[training]
micro_batch = 2
steps = 10

[[evaluation]]
name = "english"
paths = ["english.txt"]

[[stage]]
name = "adapt"
[stage.data]
paths = ["text/"]

[[stage]]
name = "chat"
from = "merge"
[stage.data]
paths = ["chat.jsonl"]
packing = false
[stage.training]
steps = 20
[stage.lora]
r = 4
[[stage.evaluation]]
name = "dialogues"
paths = ["d.jsonl"]

[[stage]]
name = "instruct"
[stage.data]
paths = ["dolly.jsonl"]

[[stage]]
name = "tasks"
after = "adapt"
from = "merge"
keep_merged = false
[stage.data]
paths = ["evalita.tsv"]
[stage.optimizer]
learning_rate = 1e-5
"#;

fn parse(text: &str, overrides: &[&str]) -> Result<Recipe> {
    let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
    config::load(text, Path::new("family.toml"), &overrides)
}

#[test]
fn each_stage_is_the_top_with_its_own_keys_over_it() {
    let stages = parse(FAMILY, &[]).unwrap().stages().unwrap();
    let folders: Vec<_> = stages.iter().map(|stage| stage.folder().display().to_string()).collect();
    assert_eq!(folders, ["runs/family/1-adapt", "runs/family/2-chat", "runs/family/3-instruct", "runs/family/4-tasks"]);
    let [adapt, chat, _, tasks] = &stages[..] else { panic!("four stages") };
    assert_eq!((adapt.config.training.steps, adapt.config.lora.r, adapt.config.data.packing), (10, 8, true));
    assert_eq!((chat.config.training.steps, chat.config.lora.r, chat.config.data.packing), (20, 4, false));
    assert_eq!((chat.config.training.micro_batch, chat.config.data.sequence_length), (2, 256));
    assert_eq!(tasks.config.optimizer.learning_rate, 1e-5);
    assert!(stages.iter().all(|stage| stage.config.seed == 3 && stage.config.data.held_out_fraction == 0.1));
    let texts = |stage: &Stage| stage.config.evaluation.iter().map(|set| set.name.clone()).collect::<Vec<_>>();
    assert_eq!((texts(adapt), texts(chat)), (vec!["english".to_string()], vec!["english".into(), "dialogues".into()]));
    assert!(chat.keep_merged && !tasks.keep_merged);
}

#[test]
fn stages_start_where_the_one_before_ended() {
    let stages = parse(FAMILY, &[]).unwrap().stages().unwrap();
    let start = |stage: &Stage| {
        let adapter = stage.config.adapter.as_ref().map(|path| path.display().to_string());
        (stage.after, stage.config.model.clone(), adapter)
    };
    let merged = |name: &str| format!("runs/family/{name}/merged");
    assert_eq!(start(&stages[0]), (None, "base".into(), None));
    assert_eq!(start(&stages[1]), (Some((0, Handover::Merge)), merged("1-adapt"), None));
    let adapter = Some("runs/family/2-chat/adapter".to_string());
    assert_eq!(start(&stages[2]), (Some((1, Handover::Adapter)), merged("1-adapt"), adapter));
    assert_eq!(start(&stages[3]), (Some((0, Handover::Merge)), merged("1-adapt"), None));
    // A continued adapter keeps its shape; the planner has the base's shapes and the adapter's.
    assert_eq!(stages[2].config.lora.r, 4);
    assert!(stages.iter().all(|stage| stage.planned.model == "base" && stage.planned.adapter.is_none()));
    assert_eq!(stages.iter().map(|stage| stage.planned.lora.r).collect::<Vec<_>>(), [8, 4, 4, 8]);
}

#[test]
fn a_stage_is_run_with_what_it_starts_from() {
    let recipe = parse(FAMILY, &[]).unwrap();
    assert_eq!(recipe.stages_up_to(None).unwrap(), [0, 1, 2, 3]);
    assert_eq!(recipe.stages_up_to(Some("instruct")).unwrap(), [0, 1, 2]);
    assert_eq!(recipe.stages_up_to(Some("tasks")).unwrap(), [0, 3]);
    let error = recipe.stages_up_to(Some("chatt")).unwrap_err();
    assert!(error.exit_code() == 2 && error.hint_text() == Some("did you mean chat?"), "{error:?}");
}

#[test]
fn a_model_that_a_full_stage_leaves_is_taken_as_it_is() {
    let stages = parse(FAMILY, &["method=full"]).unwrap_err();
    assert!(stages.message().contains("stage[2].from: expected \"merge\""), "{stages}");
    let stages = parse(FAMILY, &["method=full", "stage.instruct.from=merge", "stage.instruct.method=qlora"]).unwrap();
    let stages = stages.stages().unwrap();
    assert_eq!(stages[1].config.model, "runs/family/1-adapt/model");
    assert_eq!((stages[2].config.method, stages[2].config.model.as_str()), (Method::Qlora, "runs/family/2-chat/model"));
}

#[test]
fn a_file_without_stages_is_a_run() {
    let recipe = parse("model = \"m\"\n[data]\npaths = [\"x\"]\n", &[]).unwrap();
    assert_eq!((recipe.stages().unwrap().len(), recipe.run.model.as_str()), (0, "m"));
    let text = recipe.to_toml().unwrap();
    assert_eq!(text, recipe.run.to_toml().unwrap());
    let family = parse(FAMILY, &[]).unwrap();
    assert_eq!(parse(&family.to_toml().unwrap(), &[]).unwrap(), family, "what is written is read back");
}

#[test]
fn overrides_reach_into_stages_by_number_and_name() {
    let recipe =
        parse(FAMILY, &["stage.1.training.steps=7", "stage.adapt.lora.r=32", "training.micro_batch=4"]).unwrap();
    let stages = recipe.stages().unwrap();
    assert_eq!((stages[1].config.training.steps, stages[0].config.lora.r), (7, 32));
    assert!(stages.iter().all(|stage| stage.config.training.micro_batch == 4));
}

#[test]
fn mistakes_are_all_listed_at_the_lines_of_their_stages() {
    let text = r#"model = "base"
[lora]
r = 0

[[stage]]
name = "a"
from = "merge"
[stage.training]
stepz = 3

[[stage]]
name = "b"
model = "other"
after = "z"
from = "thin air"
[stage.data]
sequence_length = "long"
"#;
    let error = parse(text, &[]).unwrap_err();
    for part in [
        "family.toml:9: stage[0].training.stepz: unknown key (did you mean `steps`?)",
        "family.toml:13: stage[1].model: unknown key (did you mean `model`?)",
        "family.toml:15: stage[1].from: unknown variant `thin air`, expected `adapter` or `merge`",
        "family.toml:17: stage[1].data.sequence_length: expected a whole number, 0 or more, found string \"long\"",
    ] {
        assert!(error.message().contains(part), "{part}\n{error}");
    }
    let order = text.replace("stepz", "steps").replace("model = \"other\"\n", "").replace("\"thin air\"", "\"merge\"");
    let error = parse(&order.replace("\"long\"", "1"), &[]).unwrap_err();
    for part in [
        "family.toml:7: stage[0].from: expected nothing: the first stage starts from model",
        "family.toml:13: stage[1].after: expected an earlier stage (a), found \"z\"",
    ] {
        assert!(error.message().contains(part), "{part}\n{error}");
    }
    let values = order.replace("from = \"merge\"\n", "").replace("after = \"z\"\n", "").replace("\"long\"", "1");
    let error = parse(&values, &[]).unwrap_err();
    for part in [
        // What all stages have from the top is told once.
        "family.toml:2: lora: r = 0: expected 1 to 4096",
        "stage[1].data.sequence_length: expected from 2 to 1048576, found 1",
        "paths: expected",
    ] {
        assert!(error.message().contains(part), "{part}\n{error}");
    }
    assert_eq!(error.message().matches("r = 0").count(), 1, "{error}");
}

#[test]
fn what_a_continued_adapter_cannot_change_is_refused() {
    for (change, key) in [
        ("stage.instruct.lora.r=2", "stage[2].lora"),
        ("stage.instruct.method=lora", "stage[2].method"),
        ("stage.instruct.quantization.block=32", "stage[2].quantization"),
    ] {
        let error = parse(FAMILY, &[change]).unwrap_err();
        assert!(error.message().contains(&format!("{key}: expected no change")), "{error}");
        parse(FAMILY, &[change, "stage.instruct.from=merge"]).unwrap();
    }
    let error = parse(FAMILY, &["stage.chat.training.threads=3"]).unwrap_err();
    assert!(error.message().contains("training.threads: expected the same number in all stages"), "{error}");
}

#[test]
fn names_that_are_no_folders_or_twice_there_are_refused() {
    for name in ["", "a/b", ".a", "2", "a.b"] {
        let error = parse(FAMILY, &[&format!("stage.0.name=\"{name}\"")]).unwrap_err();
        assert!(error.message().contains("stage[0].name: expected a folder name"), "{error}");
    }
    let error = parse(FAMILY, &["stage.3.name=chat"]).unwrap_err();
    assert!(error.message().contains("stage[3].name: expected a name of its own"), "{error}");
}
