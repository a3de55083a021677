//! GeoLingIt: where in Italy a text was written — the region (A) and the place (B).
//!
//! ExtremITA asks for both at once, `[regione] R [geo] latitude longitude`; the tutorial's files ask for one at a time.
//! What is missing counts as Lazio and as its most frequent place; the two places that make up a third of the data are
//! taken in full precision, as ExtremITA does.

use super::discotex::number;
use super::rows::{plain, units};
use super::{flag, rows, well_formed};
use crate::eval::metrics::labels::{accuracy, agrees, macro_f1};
use crate::eval::metrics::mean::mean;
use crate::eval::{Metric, Task};

/// Both subtasks at once. Evidence: right and given region, kilometres, well-formed.
pub const TASK: Task = Task {
    name: "geolingit",
    about: "EVALITA 2023: region and place of a text",
    source: "ExtremITA's rows and decoder; macro-F1 and mean km (dhfbk/geolingit-evalita2023)",
    load: |path| rows::load(path, "geolingit", 32),
    judge: |answered| {
        units(answered, &|_, gold, given| {
            let (region, place) = both(given);
            let (gold_region, gold_place) = both(gold);
            let km = distance(gold_place.unwrap_or(ROME), settle(region, place));
            let given = region.unwrap_or("Lazio");
            let well_formed = region.is_some() && place.is_some();
            vec![code(gold_region.unwrap_or("")), code(given), km, flag(well_formed)]
        })
    },
    metrics: &[
        Metric::higher("macro_f1", macro_f1),
        Metric::lower("mean_km", mean::<2>),
        Metric::share("acc", accuracy, agrees),
        well_formed::<3>(),
    ],
};

/// The region alone. Evidence: right and given region, well-formed.
pub const REGION: Task = Task {
    name: "geolingit_a",
    about: "EVALITA 2023: region of a text (tutorial's rows)",
    source: "ExtremITA's tutorial; macro-F1 (dhfbk/geolingit-evalita2023)",
    load: |path| rows::load(path, "geolingit_a", 16),
    judge: |answered| {
        units(answered, &|_, gold, given| {
            let known = code(given) < REGIONS.len() as f64;
            vec![code(gold), code(if known { given } else { "Lazio" }), flag(known)]
        })
    },
    metrics: &[Metric::higher("macro_f1", macro_f1), Metric::share("acc", accuracy, agrees), well_formed::<2>()],
};

/// The place alone. Evidence: kilometres, well-formed.
pub const PLACE: Task = Task {
    name: "geolingit_b",
    about: "EVALITA 2023: place of a text (tutorial's rows)",
    source: "ExtremITA's tutorial; mean km (dhfbk/geolingit-evalita2023)",
    load: |path| rows::load(path, "geolingit_b", 24),
    judge: |answered| {
        units(answered, &|_, gold, given| {
            let place = coordinates(given);
            vec![distance(coordinates(gold).unwrap_or(ROME), place.unwrap_or(ROME)), flag(place.is_some())]
        })
    },
    metrics: &[Metric::lower("mean_km", mean::<0>), well_formed::<1>()],
};

/// Latitude and longitude in degrees.
type Place = [f64; 2];

const ROME: Place = [41.898_416_4, 12.545_145_35];
const NAPLES: Place = [40.854_112_3, 14.243_451_55];

const REGIONS: [&str; 20] = [
    "Abruzzo",
    "Basilicata",
    "Calabria",
    "Campania",
    "Emilia-Romagna",
    "Friuli-Venezia Giulia",
    "Lazio",
    "Liguria",
    "Lombardia",
    "Marche",
    "Molise",
    "Piemonte",
    "Puglia",
    "Sardegna",
    "Sicilia",
    "Toscana",
    "Trentino-Alto Adige",
    "Umbria",
    "Valle d'Aosta",
    "Veneto",
];

/// A number for a region; one for all that are none.
fn code(region: &str) -> f64 {
    let letters = |name: &str| plain(name).replace('-', " ");
    REGIONS.iter().position(|known| letters(known) == letters(region)).unwrap_or(REGIONS.len()) as f64
}

/// The region and the place of an answer.
fn both(text: &str) -> (Option<&str>, Option<Place>) {
    let (before, after) = text.split_once("[geo]").unwrap_or((text, ""));
    let region = before.split_once("regione]").map(|(_, region)| region.trim()).filter(|region| !region.is_empty());
    (region, coordinates(after))
}

fn coordinates(text: &str) -> Option<Place> {
    let mut numbers = text.split_whitespace().map(number);
    let place = [numbers.next()??, numbers.next()??];
    let on_earth = place[0].abs() <= 90.0 && place[1].abs() <= 180.0;
    (numbers.next().is_none() && on_earth).then_some(place)
}

/// The place to measure from.
fn settle(region: Option<&str>, place: Option<Place>) -> Place {
    match (region, place) {
        (_, None) => ROME,
        (Some("Campania"), Some([40.85, 14.24])) => NAPLES,
        (Some("Lazio"), Some([41.89, 12.54])) => ROME,
        (_, Some(place)) => place,
    }
}

/// Great-circle distance in km (haversine, radius 6371.0088 km as in the organisers' scorer).
fn distance(a: Place, b: Place) -> f64 {
    let [a_lat, a_lon, b_lat, b_lon] = [a[0], a[1], b[0], b[1]].map(f64::to_radians);
    let half = |from: f64, to: f64| ((to - from) / 2.0).sin().powi(2);
    let haversine = half(a_lat, b_lat) + a_lat.cos() * b_lat.cos() * half(a_lon, b_lon);
    2.0 * 6371.0088 * haversine.sqrt().min(1.0).asin()
}

#[cfg(test)]
mod tests {
    use super::super::rows::testing::judge;
    use super::*;

    #[test]
    fn places_by_hand() {
        // A degree of a meridian; Rome to Naples about 184 km.
        assert!((distance([41.0, 12.0], [42.0, 12.0]) - 111.195).abs() < 0.001);
        assert!((distance(ROME, NAPLES) - 183.8).abs() < 1.0);
        let gold = "[regione] Campania [geo] 40.85 14.24";
        let rows = [
            ("", gold, gold),
            ("", gold, "[regione] Lazio [geo] 41.89 12.54"),
            ("", gold, "[regione] Marche"),
            ("", gold, "non so"),
            ("", gold, "[regione] Campania [geo] 95 14"),
        ];
        let found = judge(&TASK, &rows);
        let labels: Vec<(f64, f64, f64)> = found.iter().map(|row| (row[0], row[1], row[3])).collect();
        assert_eq!(labels, [(3.0, 3.0, 1.0), (3.0, 6.0, 1.0), (3.0, 9.0, 0.0), (3.0, 6.0, 0.0), (3.0, 3.0, 0.0)]);
        assert!(found[0][2] < 0.6, "the full precision of Naples: {}", found[0][2]);
        assert!(found[1..].iter().all(|row| (row[2] - 184.0).abs() < 1.0));
    }

    #[test]
    fn the_tutorials_rows() {
        let rows = [("", "Veneto", "veneto"), ("", "Veneto", "Baviera")];
        assert_eq!(judge(&REGION, &rows), [[19.0, 19.0, 1.0], [19.0, 6.0, 0.0]]);
        let rows = [("", "41.0 12.0", "42 12"), ("", "41.8984164 12.54514535", "mah")];
        let found = judge(&PLACE, &rows);
        assert!((found[0][0] - 111.195).abs() < 0.001 && found[1] == [0.0, 0.0]);
    }
}
