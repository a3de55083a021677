//! The section with sources: what is inherited, what is refused.

use super::*;
use crate::config::load;

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Whole {
    data: DataConfig,
}

impl Section for Whole {
    fn example() -> Whole {
        Whole { data: DataConfig::example() }
    }

    fn check(&self, problems: &mut Problems) {
        problems.section("data", &self.data);
    }
}

fn read(text: &str) -> crate::error::Result<DataConfig> {
    load::<Whole>(text, std::path::Path::new("c.toml"), &[]).map(|whole| whole.data)
}

#[test]
fn without_sources_the_section_is_the_only_one() {
    let data = read("[data]\npaths = [\"a\", \"b\"]\ntrained = \"all\"\nheld_out_fraction = 0.1\n").unwrap();
    let sources = data.sources();
    assert_eq!(sources.len(), 1);
    assert_eq!((sources[0].name.as_str(), sources[0].paths.len(), sources[0].held_out_fraction), ("a", 2, 0.1));
    assert_eq!((sources[0].trained, sources[0].format.as_str()), (Some(Trained::All), "auto"));
}

#[test]
fn sources_inherit_what_they_do_not_say() {
    let text = "[data]\nformat = \"jsonl\"\nheld_out_fraction = 0.1\nmax_bad_lines = 3\nsystem = \"s\"\n\
        [[data.source]]\nname = \"it\"\npaths = [\"a\"]\nweight = 9.0\n\
        [[data.source]]\npaths = [\"b\"]\nweight = 1.0\nheld_out_files = [\"c\"]\nmax_bad_lines = 0\nsystem = \"\"\n";
    let data = read(text).unwrap();
    let [it, other] = &data.sources()[..] else { panic!("two sources") };
    assert_eq!((it.name.as_str(), it.format.as_str(), it.held_out_fraction, it.max_bad_lines), ("it", "jsonl", 0.1, 3));
    assert_eq!((other.name.as_str(), other.held_out_fraction, other.max_bad_lines), ("b", 0.0, 0));
    assert_eq!((it.system.as_deref(), other.system.as_deref()), (Some("s"), Some("")));
    assert_eq!(data.all_paths(), ["a", "b", "c"]);
    assert!(data.holds_out());
}

#[test]
fn the_written_section_reads_back_the_same() {
    for text in ["[data]\npaths = [\"a\"]\n", "[[data.source]]\npaths = [\"b\"]\nweight = 0.5\nsystem = \"x\"\n"] {
        let data = read(text).unwrap();
        let again = crate::config::to_toml(&Whole { data: data.clone() }).unwrap();
        assert_eq!(read(&again).unwrap(), data);
    }
}

#[test]
fn mistakes_in_sources_are_named_with_their_line() {
    let text = "[data]\npaths = [\"a\"]\ngroup_by_length = true\n[[data.source]]\nformat = \"cvs\"\nweight = -1.0\n\
        [[data.source]]\npaths = [\"b\"]\nhold_out_fraction = 0.1\n";
    let error = read(text).unwrap_err();
    for part in [
        "c.toml:2: data.paths: there are [[data.source]] entries as well",
        "c.toml:3: data.group_by_length: expected false, or packing = false",
        "c.toml:5: data.source[0].format: expected one of auto,",
        "c.toml:6: data.source[0].weight: expected a number above 0",
        "data.source: 1 of 2 sources have a weight",
        "c.toml:9: data.source[1].hold_out_fraction: unknown key (did you mean `held_out_fraction`?)",
    ] {
        assert!(error.message().contains(part), "{part}\n{error}");
    }
}
