//! Configurations with everything wrong at once, and right ones.

use serde::Deserialize;

use super::*;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Optimizer {
    learning_rate: f64,
    weight_decay: f64,
    warmup_steps: Option<u64>,
}

impl Default for Optimizer {
    fn default() -> Self {
        Optimizer { learning_rate: 2e-4, weight_decay: 0.0, warmup_steps: None }
    }
}

impl Section for Optimizer {
    fn example() -> Self {
        Optimizer { warmup_steps: Some(1), ..Self::default() }
    }

    fn check(&self, problems: &mut Problems) {
        problems.expect(self.learning_rate > 0.0, "learning_rate", "more than 0", self.learning_rate);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
enum Kind {
    #[default]
    Text,
    Chat,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
struct Stage {
    name: String,
    kind: Kind,
    steps: u32,
}

impl Section for Stage {
    fn check(&self, problems: &mut Problems) {
        problems.expect(self.steps <= 1000, "steps", "at most 1000", self.steps);
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
struct Whole {
    name: String,
    seed: u64,
    paths: Vec<String>,
    optimizer: Optimizer,
    stage: Vec<Stage>,
    labels: std::collections::BTreeMap<String, i64>,
}

impl Section for Whole {
    fn example() -> Self {
        Whole { optimizer: Optimizer::example(), stage: vec![Stage::example()], ..Self::default() }
    }

    fn check(&self, problems: &mut Problems) {
        problems.section("optimizer", &self.optimizer);
        problems.sections("stage", &self.stage);
    }
}

fn parse(text: &str, overrides: &[&str]) -> Result<Whole> {
    let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
    load(text, Path::new("run.toml"), &overrides)
}

const GOOD: &str = r#"
name = "prova"
paths = ["a", "b"]

[optimizer]
learning_rate = 1        # an integer for a float
warmup_steps = 10

[labels]
anything = 3

[[stage]]
name = "uno"
steps = 5

[[stage]]
name = "due"
kind = "chat"
"#;

#[test]
fn a_right_file_is_read_whole() {
    let config = parse(GOOD, &[]).unwrap();
    assert_eq!(config.optimizer, Optimizer { learning_rate: 1.0, weight_decay: 0.0, warmup_steps: Some(10) });
    assert_eq!(config.stage[1], Stage { name: "due".into(), kind: Kind::Chat, steps: 0 });
    assert_eq!((config.seed, config.labels["anything"]), (0, 3));
    assert_eq!(parse("", &[]).unwrap(), Whole::default());
}

#[test]
fn what_is_written_is_read_back_the_same() {
    let config = parse(GOOD, &["seed=9223372036854775807"]).unwrap();
    assert_eq!(parse(&to_toml(&config).unwrap(), &[]).unwrap(), config);
}

#[test]
fn all_problems_are_listed_with_their_lines() {
    let text = r#"
nmae = "x"
seed = "many"
paths = ["a", 3]

[optimizer]
learning-rate = 1e-4
weight_decay = true
learning_rate = -1.0
steps = 3
colour = "red"

[[stage]]
kind = "dance"

[[stage]]
steps = 5000
stepz = 1
"#;
    let error = parse(text, &[]).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    let expected = [
        "run.toml:2: nmae: unknown key (did you mean `name`?)",
        "run.toml:3: seed: expected a whole number, 0 or more, found string \"many\"",
        "run.toml:4: paths: expected text, found integer `3`",
        "run.toml:7: optimizer.learning-rate: unknown key (did you mean `learning_rate`?)",
        "run.toml:8: optimizer.weight_decay: expected a number, found boolean `true`",
        "run.toml:9: optimizer.learning_rate: expected more than 0, found -1.0",
        "run.toml:10: optimizer.steps: unknown key (did you mean `stage.steps`?)",
        "run.toml:11: optimizer.colour: unknown key (valid here: learning_rate, warmup_steps, weight_decay)",
        "run.toml:14: stage[0].kind: unknown variant `dance`, expected `text` or `chat`",
        "run.toml:17: stage[1].steps: expected at most 1000, found 5000",
        "run.toml:18: stage[1].stepz: unknown key (did you mean `steps`?)",
    ];
    assert_eq!(error.message(), format!("11 problems in the configuration:\n  {}", expected.join("\n  ")));
}

#[test]
fn values_beyond_the_type_are_problems_of_their_key() {
    let error = parse("seed = -1\n[optimizer]\nwarmup_steps = 1.5\n[[stage]]\nsteps = 5000000000\n", &[]).unwrap_err();
    for part in ["run.toml:1: seed: ", "-1", "run.toml:3: optimizer.warmup_steps: ", "run.toml:5: stage[0].steps: "] {
        assert!(error.message().contains(part), "{part}\n{error}");
    }
}

#[test]
fn a_value_where_a_section_belongs_and_the_reverse() {
    let error = parse("optimizer = 3\nstage = \"x\"\n[seed]\na = 1\n", &[]).unwrap_err();
    for part in [
        "run.toml:1: optimizer: expected a section, found `3`",
        "run.toml:2: stage: expected a list, found string \"x\"",
        "run.toml:3: seed: expected a whole number, 0 or more, found map",
    ] {
        assert!(error.message().contains(part), "{part}\n{error}");
    }
}

#[test]
fn overrides_win_and_make_sections() {
    let config = parse(
        GOOD,
        &["seed = 7", "optimizer.learning_rate=3e-5", "name=123", "stage.1.steps=9", "paths=[\"c\"]", "name=/a b=c"],
    )
    .unwrap();
    assert_eq!((config.seed, config.optimizer.learning_rate), (7, 3e-5));
    assert_eq!(
        (config.name.as_str(), config.stage[1].steps, config.paths.as_slice()),
        ("/a b=c", 9, &["c".to_owned()][..])
    );
    assert_eq!(parse("", &["optimizer.warmup_steps=4"]).unwrap().optimizer.warmup_steps, Some(4));
    assert_eq!(parse("", &["name=\"quoted\""]).unwrap().name, "quoted");
}

#[test]
fn problems_in_overrides_name_the_override() {
    let error = parse(GOOD, &["seed=x", "optimiser.learning_rate=1", "nothing", "stage.7.steps=1", "name.x=1", "=3"])
        .unwrap_err();
    for part in [
        "--set seed=x: seed: expected a whole number, 0 or more, found string \"x\"",
        "--set optimiser.learning_rate=1: optimiser: unknown key (did you mean `optimizer`?)",
        "--set nothing: expected key=value",
        "--set stage.7.steps=1: stage[7] does not exist, the list has 2 entries",
        "--set name.x=1: name is not a section",
        "--set =3: expected key=value",
    ] {
        assert!(error.message().contains(part), "{part}\n{error}");
    }
}

#[test]
fn broken_toml_is_reported_with_its_lines() {
    let error = parse("name = \"a\nseed = 1\n[optimizer\nx = \n", &[]).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.message().contains("run.toml:1: ") && error.message().contains("run.toml:3: "), "{error}");
    let error = parse("seed = 1\nseed = 2\n", &[]).unwrap_err();
    assert!(error.message().contains("run.toml:2: duplicate key"), "{error}");
}

#[test]
fn an_absent_file_is_a_usage_error() {
    let error = load_file::<Whole>(Path::new("/no/such/file.toml"), &[]).unwrap_err();
    assert!(error.exit_code() == 2 && error.message().contains("/no/such/file.toml"), "{error}");
}

#[test]
fn a_file_on_top_of_others_keeps_what_it_does_not_name() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    std::fs::create_dir(folder.path().join("family")).unwrap();
    write("family/bottom.toml", "name = \"bottom\"\nseed = 1\n[optimizer]\nweight_decay = 0.5\nwarmup_steps = \"x\"\n");
    write(
        "family/middle.toml",
        "extends = \"bottom.toml\"\nname = \"middle\"\n[[stage]]\nname = \"uno\"\nsteps = 5000\n",
    );
    write("top.toml", "extends = \"family/middle.toml\"\n[optimizer]\nlearning_rate = 3.0\nwarmup_steps = 2\n");
    let top = folder.path().join("top.toml");
    let load = |overrides: &[&str]| {
        load_file::<Whole>(&top, &overrides.iter().map(|&text| text.to_owned()).collect::<Vec<_>>())
    };
    let config = load(&["stage.uno.steps=3"]).unwrap();
    assert_eq!((config.name.as_str(), config.seed, config.stage[0].steps), ("middle", 1, 3));
    let expected = Optimizer { learning_rate: 3.0, weight_decay: 0.5, warmup_steps: Some(2) };
    assert_eq!(config.optimizer, expected);

    // A problem is shown in the file that it stands in; a replaced list is not.
    let error = load(&["optimizer.warmup_steps=7"]).unwrap_err();
    assert_eq!(
        error.message(),
        format!(
            "{}:5: stage[0].steps: expected at most 1000, found 5000",
            folder.path().join("family/middle.toml").display()
        )
    );
    write("top.toml", "extends = \"family/middle.toml\"\nsede = 1\n[[stage]]\nsteps = 7000\n");
    let error = load(&[]).unwrap_err();
    for part in [
        "top.toml:2: sede: unknown key (did you mean `seed`?)",
        "top.toml:4: stage[0].steps: expected at most 1000, found 7000",
        "bottom.toml:5: optimizer.warmup_steps: expected a whole number",
    ] {
        assert!(error.message().contains(part), "{part}\n{error}");
    }
}

#[test]
fn a_file_that_extends_itself_or_nothing_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a.toml"), folder.path().join("b.toml"));
    std::fs::write(&a, "extends = \"b.toml\"\n").unwrap();
    for (text, part) in [
        ("seed = 1\nextends = \"a.toml\"\n", "b.toml:2: extends: "),
        ("extends = \"c.toml\"\n", "c.toml: cannot read the configuration"),
        ("extends = 3\n", "b.toml:1: extends: expected the path of a configuration, found 3"),
        ("seed = \n", "b.toml:1: "),
    ] {
        std::fs::write(&b, text).unwrap();
        let error = load_file::<Whole>(&a, &[]).unwrap_err();
        assert!(error.exit_code() == 2 && error.message().contains(part), "{part}\n{error}");
    }
    let error = parse("extend = \"x\"\n", &[]).unwrap_err();
    assert!(error.message().contains("did you mean `extends`?"), "{error}");
}

#[test]
fn entries_of_a_list_are_named_by_number_or_name() {
    assert_eq!(parse(GOOD, &["stage.due.steps=9"]).unwrap().stage[1].steps, 9);
    let error = parse(GOOD, &["stage.tre.steps=9"]).unwrap_err();
    assert!(error.message().contains("stage has no entry named tre (there: uno, due)"), "{error}");
}
