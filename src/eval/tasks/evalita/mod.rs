//! The subtasks of EVALITA 2023, answered in the model's own words, in the files and with the decoders of ExtremITA
//! (github.com/crux82/ExtremITA, CEUR Vol-3473 paper 13), scored by what their organisers rank by.
//!
//! | subtask | ranked by | where that is said |
//! |---|---|---|
//! | acti_a, acti_b | macro-F1 | a participant's account (giacomo-cgn/nlp-EVALITA2023-ACTI-challenge) |
//! | clinkart | micro-F1 of (result, test) pairs | closest known; the rows hold no offsets, so pairs are compared as texts |
//! | discotex_1 | accuracy | closest known |
//! | discotex_2 | harmonic mean of Pearson and Spearman | closest known |
//! | emit_a, emit_b | macro-F1 over labels | abstract of the overview (CEUR Vol-3473) |
//! | emotivita | mean Pearson of valence, arousal, dominance | closest known |
//! | geolingit (geolingit_a) | macro-F1 of the region | the task's repository, dhfbk/geolingit-evalita2023 |
//! | geolingit (geolingit_b) | mean distance in km | the same |
//! | haspeede | macro-F1 | the task's repository, mirkolai/EVALITA2023-HaSpeeDe3 |
//! | hodi_a | macro-F1 | closest known |
//! | hodi_b | mean F1 of characters | closest known: the measure of SemEval-2021's toxic spans |
//! | langlearn | macro-F1 (of two corpora, averaged; rows do not tell the corpus) | the task's page |
//! | multifakedetective | weighted F1 | closest known |
//! | nermud | macro-F1 of entities over PER, LOC, ORG | closest known |
//! | politicit | mean of three macro-F1 (gender, two sides, four leanings), by author | closest known |
//! | wicita (wicita_1) | F1 | the task's page; which average it does not say: F1 of "same", macro-F1 beside it |
//! | wicita_2 | Spearman | the task's page |
//!
//! "Closest known" is this project's choice where the organisers' text was not at hand. Test sets are the organisers';
//! on other rows, such as the tutorial's samples, the numbers are not those of the campaign.
//!
//! An answer that does not have the form asked for counts as what ExtremITA falls back to, and `well_formed` is the
//! share of those that have it. Capitals and punctuation around an answer do not matter (to ExtremITA they do).
//! Subtasks are judged apart: ExtremITA leaves out the words of hodi_b where its own answer to hodi_a was no.

pub mod acti;
pub mod clinkart;
pub mod discotex;
pub mod emit;
pub mod emotivita;
pub mod geolingit;
pub mod hodi_b;
pub mod langlearn;
pub mod multifakedetective;
pub mod nermud;
pub mod politicit;
pub mod rows;
pub mod wicita;
pub mod yes_no;

use super::super::metrics::mean::mean;
use super::super::Metric;

/// Share of answers in the form asked for, in column `COLUMN`.
pub const fn well_formed<const COLUMN: usize>() -> Metric {
    Metric::higher("well_formed", mean::<COLUMN>)
}

/// 1 for yes.
pub fn flag(yes: bool) -> f64 {
    f64::from(u8::from(yes))
}
