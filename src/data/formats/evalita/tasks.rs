//! The tasks of EVALITA 2023: what is asked, and how the answer is written.
//!
//! [`TASKS`] has ExtremITA's instructions word for word (its `utils.py`). [`TUTORIAL`] has the older spelling of the
//! files that go with its CLiC-it 2023 tutorial: other task names, labels with a capital or a missing letter, `nan` for
//! nothing. The instructions of tasks that exist only there are this project's, after the wording of the others.

/// One task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Task {
    /// Its name in the second column.
    pub name: &'static str,
    /// What is asked. `{word}` is the word that the target names first.
    pub instruction: &'static str,
    /// What answers look like.
    pub target: Target,
}

/// What the answers to a task look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// `sì` for the first label and `no` for the second.
    YesNo(&'static str, &'static str),
    /// One of these.
    OneOf(&'static [&'static str]),
    /// Some of these, apart by spaces.
    SomeOf(&'static [&'static str]),
    /// So many numbers, apart by spaces.
    Numbers(usize),
    /// Anything, as it stands; the first text is what an empty one is written as, if that may be.
    Free(Option<&'static str>),
    /// A word of the instruction, then one of the others.
    Word(&'static Target),
}

const EMOTIONS: &[&str] =
    &["rabbia", "anticipazione", "disgusto", "paura", "gioia", "amore", "tristezza", "sorpresa", "fiducia", "neutro"];
const LEANINGS: &[&str] = &["uomo", "donna", "destra", "sinistra", "centrodestra", "centrosinistra"];

const fn task(name: &'static str, instruction: &'static str, target: Target) -> Task {
    Task { name, instruction, target }
}

/// ExtremITA's 17 tasks.
pub const TASKS: &[Task] = &[
    task(
        "acti_a",
        "In questo testo si parla di una cospirazione? Rispondi sì o no.",
        Target::YesNo("cospirazione", "non_cospirazione"),
    ),
    task(
        "acti_b",
        "Di quale teoria cospirazionista parla questo testo, tra \"Covid\", \"Qanon\", \"Terrapiattista\", \"Russia\"?",
        Target::Free(None),
    ),
    task(
        "clinkart",
        "Trova i risultati dei test e delle misurazioni nel testo. Per ogni risultato, scrivi \"[BREL]\", seguito dal \
         risultato seguito da \"[SEP]\", seguito dal test, seguito da \"[EREL]\". Se non trovi nessun risultato, scrivi \
         \"[NOREL]\".",
        Target::Free(None),
    ),
    task(
        "discotex_1",
        "Le due frasi seguenti, separate da \"[SEP]\", sono coerenti tra loro? Rispondi sì o no.",
        Target::YesNo("coerente", "non_coerente"),
    ),
    task("discotex_2", "Quanto è coerente questa frase, su una scala da 0 a 5?", Target::Numbers(1)),
    task(
        "emit_a",
        "Quali emozioni sono espresse in questo testo? Puoi scegliere una o più emozioni tra \"rabbia\", \
         \"anticipazione\", \"disgusto\", \"paura\", \"gioia\", \"amore\", \"tristezza\", \"sorpresa\", \"fiducia\", o \
         \"neutro\".",
        Target::SomeOf(EMOTIONS),
    ),
    // The answers are not the words of the question: so it is in ExtremITA.
    task(
        "emit_b",
        "Di cosa parla il testo, tra \"direzione\", \"argomento\", \"entrambi\", \"non specificato\"?",
        Target::OneOf(&["direzione", "argomento", "direzione_argomento", "non_specificato"]),
    ),
    task(
        "emotivita",
        "Scrivi quanta valenza è espressa in questo testo su una scala da 1 a 5, seguito da quanto stimolo è espresso in \
         questo testo su una scala da 1 a 5, seguito da quanto controllo è espresso in questo testo su una scala da 1 a \
         5.",
        Target::Numbers(3),
    ),
    task(
        "geolingit",
        "Scrivi la regione di appartenenza di chi ha scritto questo testo, seguito dalla latitudine, seguita dalla \
         longitudine.",
        Target::Free(None),
    ),
    task("haspeede", "In questo testo si esprime odio? Rispondi sì o no.", Target::YesNo("odio", "non_odio")),
    task(
        "hodi_a",
        "In questo testo si esprime odio omotransfobico? Rispondi sì o no.",
        Target::YesNo("omotransfobico", "non_omotransfobico"),
    ),
    task(
        "hodi_b",
        "Con quali parole l'autore del testo seguente esprime odio omotransfobico? Separa le sequenze di parole con \
         [gap].",
        Target::Free(None),
    ),
    task(
        "langlearn",
        "Questi due testi separati da [SEP] sono presentati nell'ordine in cui sono stati scritti? Rispondi sì o no.",
        Target::YesNo("corretto", "incorretto"),
    ),
    task(
        "multifakedetective",
        "L'evento riportato nel testo è \"certamente vero\", \"probabilmente vero\", \"probabilmente falso\", o \
         \"certamente falso\"?",
        Target::OneOf(&["certamente vero", "probabilmente vero", "probabilmente falso", "certamente falso"]),
    ),
    task(
        "nermud",
        "Scrivi le menzioni di entità nel testo, indicandone il tipo: [PER] (persona), [LOC] (luogo), [ORG] \
         (organizzazione).",
        Target::Free(Some("nessuna")),
    ),
    task(
        "politicit",
        "Scrivi se l'autore del testo è \"uomo\" o \"donna\", seguito dalla sua appartenenza politica tra \"destra\", \
         \"sinistra\", \"centrodestra\", \"centrosinistra\".",
        Target::SomeOf(LEANINGS),
    ),
    // The data mark the word with [BT1] and [BT2], not as the question says: so it is in ExtremITA.
    task(
        "wicita",
        "La parola compresa tra [TGTS] e [TGTE] ha lo stesso significato in entrambe le frasi? Rispondi sì o no.",
        Target::YesNo("uguale", "differente"),
    ),
];

/// Tasks that only the tutorial's files have.
pub const TUTORIAL: &[Task] = &[
    task("geolingit_a", "Scrivi la regione di appartenenza di chi ha scritto questo testo.", Target::Free(None)),
    task(
        "geolingit_b",
        "Scrivi la latitudine, seguita dalla longitudine, del luogo di appartenenza di chi ha scritto questo testo.",
        Target::Numbers(2),
    ),
    task(
        "wicita_1",
        "La parola \"{word}\" ha lo stesso significato in entrambe le frasi? Rispondi sì o no.",
        Target::Word(&Target::YesNo("uguale", "differente")),
    ),
    task(
        "wicita_2",
        "Quanto è simile il significato della parola \"{word}\" nelle due frasi, su una scala da 1 a 4?",
        Target::Word(&Target::Numbers(1)),
    ),
];

/// Misspelt labels of the tutorial's files, and what they mean.
const MISSPELT: &[(&str, &str)] = &[("sinitra", "sinistra"), ("centrosinitra", "centrosinistra")];

/// A label without its misspelling.
fn rightly_spelt(word: &str) -> &str {
    MISSPELT.iter().find(|(wrong, _)| *wrong == word).map_or(word, |(_, right)| right)
}

/// The task of that name, ExtremITA's or the tutorial's.
pub fn find(name: &str) -> Option<&'static Task> {
    TASKS.iter().chain(TUTORIAL).find(|task| task.name == name)
}

/// Names of all tasks.
pub fn names() -> impl Iterator<Item = &'static str> {
    TASKS.iter().chain(TUTORIAL).map(|task| task.name)
}

impl Task {
    /// The instruction and the answer for a target as it stands in the file.
    ///
    /// # Errors
    /// A target that this task cannot have.
    pub fn example(&self, target: &str) -> Result<(String, String), String> {
        let Target::Word(rest) = self.target else {
            return Ok((self.instruction.to_owned(), self.target.encode(target)?));
        };
        let (word, target) =
            target.rsplit_once(' ').ok_or_else(|| format!("no word before the label in `{target}`"))?;
        Ok((self.instruction.replace("{word}", word), rest.encode(target)?))
    }
}

impl Target {
    /// The answer for a target as it stands in the file.
    ///
    /// # Errors
    /// A target that this kind of answer cannot be.
    pub fn encode(&self, target: &str) -> Result<String, String> {
        // How the tutorial's files write what is missing.
        let missing = target.is_empty() || target == "nan";
        match self {
            Target::Free(Some(nothing)) if missing => Ok((*nothing).to_owned()),
            _ if missing => Err("the target is missing".into()),
            Target::Free(_) => Ok(target.to_owned()),
            Target::YesNo(yes, no) => match target.to_lowercase() {
                label if label == *yes || label == "sì" || label == "si" => Ok("sì".into()),
                label if label == *no || label == "no" => Ok("no".into()),
                _ => Err(format!("unknown label `{target}`, expected {yes} or {no}")),
            },
            Target::OneOf(labels) => match labels.contains(&target) {
                true => Ok(target.to_owned()),
                false => Err(format!("unknown label `{target}`, expected one of {}", labels.join(", "))),
            },
            Target::SomeOf(labels) => {
                let words: Vec<&str> = target.split_whitespace().map(rightly_spelt).collect();
                match words.iter().find(|word| !labels.contains(word)) {
                    None => Ok(words.join(" ")),
                    Some(word) => Err(format!("unknown label `{word}`, expected some of {}", labels.join(", "))),
                }
            }
            Target::Numbers(count) => {
                let numbers = target.split_whitespace().filter(|word| word.parse::<f64>().is_ok_and(f64::is_finite));
                match (numbers.count(), target.split_whitespace().count()) {
                    (found, words) if found == *count && words == *count => Ok(target.to_owned()),
                    _ => Err(format!("expected {count} number(s), found `{target}`")),
                }
            }
            Target::Word(rest) => rest.encode(target),
        }
    }
}
