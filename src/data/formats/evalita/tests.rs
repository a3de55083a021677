//! The task table: every label as the files have it, and nothing else.

use super::*;

fn row(task: &str, text: &str, target: &str) -> Row {
    Row::Columns(["7", task, text, target].map(str::to_owned).to_vec())
}

fn instruction(task: &str, target: &str) -> Result<Instruction, String> {
    match parse(row(task, "Un testo ", target))? {
        Record::Instruction(instruction) => Ok(instruction),
        other => panic!("{other:?}"),
    }
}

#[test]
fn there_are_seventeen_tasks_and_four_of_the_tutorial() {
    assert_eq!((tasks::TASKS.len(), tasks::TUTORIAL.len()), (17, 4));
    let mut names: Vec<&str> = tasks::names().collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 21);
}

#[test]
fn targets_are_encoded_as_the_question_asks() {
    for (task, target, response) in [
        ("acti_a", "cospirazione", "sì"),
        ("acti_a", "non_cospirazione", "no"),
        ("acti_b", "Terra Piatta", "Terra Piatta"),
        ("clinkart", "[BREL] 12 mg [SEP] glicemia [EREL]", "[BREL] 12 mg [SEP] glicemia [EREL]"),
        ("discotex_1", "Coerente", "sì"),
        ("discotex_1", "non_coerente", "no"),
        ("discotex_2", "3.4", "3.4"),
        ("emit_a", "anticipazione gioia amore", "anticipazione gioia amore"),
        ("emit_b", "direzione_argomento", "direzione_argomento"),
        ("emotivita", "5.0 3.0 4.2", "5.0 3.0 4.2"),
        ("geolingit", "[regione] Lazio [geo] 41.89 12.54", "[regione] Lazio [geo] 41.89 12.54"),
        ("haspeede", "non_odio", "no"),
        ("hodi_a", "omotransfobico", "sì"),
        ("hodi_b", "una parola [gap] due", "una parola [gap] due"),
        ("langlearn", "incorretto", "no"),
        ("multifakedetective", "probabilmente falso", "probabilmente falso"),
        ("nermud", "[LOC] Trieste", "[LOC] Trieste"),
        ("nermud", "nan", "nessuna"),
        ("nermud", "", "nessuna"),
        ("politicit", "donna sinitra centrosinitra", "donna sinistra centrosinistra"),
        ("wicita", "uguale", "sì"),
        ("wicita", "no", "no"),
        ("geolingit_a", "Marche", "Marche"),
        ("geolingit_b", "43.8 12.8", "43.8 12.8"),
        ("wicita_1", "affare differente", "no"),
        ("wicita_2", "lira 3.5", "3.5"),
    ] {
        assert_eq!(instruction(task, target).unwrap().response, response, "{task} {target}");
    }
    let word = instruction("wicita_1", "affare uguale").unwrap();
    assert_eq!(
        word.instruction,
        "La parola \"affare\" ha lo stesso significato in entrambe le frasi? Rispondi sì o no."
    );
    assert_eq!(word.input, "Un testo");
}

#[test]
fn what_no_task_knows_is_an_error() {
    for (task, target, what) in [
        ("sentipolc", "odio", "unknown task `sentipolc`, expected one of acti_a,"),
        ("haspeede", "omotransfobico", "task haspeede: unknown label `omotransfobico`, expected odio or non_odio"),
        ("haspeede", "nan", "the target is missing"),
        ("emit_a", "gioia noia", "unknown label `noia`"),
        ("emit_a", "nan", "the target is missing"),
        ("emit_b", "entrambi", "unknown label `entrambi`"),
        ("discotex_2", "molto", "expected 1 number(s), found `molto`"),
        ("emotivita", "1 2", "expected 3 number(s), found `1 2`"),
        ("wicita_1", "uguale", "no word before the label"),
    ] {
        let error = instruction(task, target).unwrap_err();
        assert!(error.contains(what), "{what}: {error}");
    }
    assert!(parse(row("haspeede", " ", "odio")).unwrap_err().contains("the text is empty"));
    let Record::Instruction(long) = parse(row("haspeede", &"è".repeat(1300), "odio")).unwrap() else { panic!() };
    assert_eq!(long.input.chars().count(), 1200, "ExtremITA's limit");
    let three = Row::Columns(["1", "haspeede", "testo"].map(str::to_owned).to_vec());
    assert!(parse(three).unwrap_err().contains("expected 4 columns (id, task, text, target), found 3"));
}
