//! Line charts as inline SVG, coloured by the page's style sheet.
//!
//! Plotting libraries write fixed colours into each element; here lines, axes and text take theirs from classes, so that
//! the same picture reads on white, on black and on paper.

use super::escape;
use std::fmt::Write;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 66.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 40.0;
/// Points of a line that are drawn: more than a screen has columns.
const POINTS: usize = 800;

/// A line.
pub struct Series<'a> {
    /// Its name in the legend.
    pub name: String,
    /// (step, value), steps rising.
    pub points: Vec<(f64, f64)>,
    /// Drawn faintly, behind the others.
    pub faint: bool,
    /// Unit of values in the points' labels.
    pub unit: &'a str,
}

/// A chart of the series over the steps; nothing if none has a point.
pub fn lines(title: &str, series: &[Series<'_>]) -> String {
    let finite = |series: &Series<'_>| -> Vec<(f64, f64)> {
        series.points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite()).collect()
    };
    let drawn: Vec<Vec<(f64, f64)>> = series.iter().map(|series| thinned(&finite(series))).collect();
    let all = || drawn.iter().flatten();
    if all().next().is_none() {
        return String::new();
    }
    let x = Axis::new(all().map(|point| point.0), 8, LEFT, WIDTH - RIGHT);
    let y = Axis::new(all().map(|point| point.1), 5, HEIGHT - BOTTOM, TOP);
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">", escape(title));
    for tick in y.ticks() {
        let at = y.place(tick);
        let (right, label) = (WIDTH - RIGHT, number(tick));
        let _ = write!(svg, "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\"/>");
        let _ = write!(svg, "<text class=\"y\" x=\"{}\" y=\"{:.1}\">{label}</text>", LEFT - 6.0, at + 4.0);
    }
    for tick in x.ticks().into_iter().filter(|tick| tick.fract() == 0.0) {
        let _ = write!(
            svg,
            "<text class=\"x\" x=\"{:.1}\" y=\"{}\">{}</text>",
            x.place(tick),
            HEIGHT - BOTTOM + 18.0,
            number(tick)
        );
    }
    let _ = write!(svg, "<text class=\"y\" x=\"{}\" y=\"{}\">step</text>", WIDTH - RIGHT, HEIGHT - 2.0);
    for (index, points) in drawn.iter().enumerate() {
        svg.push_str(&line(&series[index], index, points, &x, &y));
    }
    svg.push_str("</svg>");
    format!("<figure><figcaption>{}{}</figcaption>{svg}</figure>", escape(title), legend(series))
}

fn line(series: &Series<'_>, index: usize, points: &[(f64, f64)], x: &Axis, y: &Axis) -> String {
    let place = |&(step, value): &(f64, f64)| format!("{:.1},{:.1}", x.place(step), y.place(value));
    let places: Vec<String> = points.iter().map(place).collect();
    let faint = if series.faint { " faint" } else { "" };
    let mut svg = format!("<polyline class=\"line c{}{faint}\" points=\"{}\"/>", index % 6, places.join(" "));
    if points.len() <= 40 && !series.faint {
        for &(step, value) in points {
            let label = format!("step {}: {} {}", number(step), number(value), series.unit);
            let _ = write!(
                svg,
                "<circle class=\"dot c{}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\"><title>{}</title></circle>",
                index % 6,
                x.place(step),
                y.place(value),
                escape(label.trim_end())
            );
        }
    }
    svg
}

fn legend(series: &[Series<'_>]) -> String {
    if series.len() < 2 {
        return String::new();
    }
    let entry = |(index, series): (usize, &Series<'_>)| {
        let faint = if series.faint { " faint" } else { "" };
        format!("<span class=\"key c{}{faint}\">{}</span>", index % 6, escape(&series.name))
    };
    series.iter().enumerate().map(entry).collect()
}

/// At most about [`POINTS`] points: of each stretch its smallest and its largest, so that no peak is lost.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= POINTS {
        return points.to_vec();
    }
    let stretch = points.len().div_ceil(POINTS / 2);
    let extremes = |stretch: &[(f64, f64)]| {
        let by_value = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let (low, high) = (stretch.iter().min_by(by_value), stretch.iter().max_by(by_value));
        let mut both: Vec<(f64, f64)> = low.into_iter().chain(high).copied().collect();
        both.sort_by(|a, b| a.0.total_cmp(&b.0));
        both
    };
    points.chunks(stretch).flat_map(extremes).collect()
}

/// Values on one side of the chart.
struct Axis {
    low: f64,
    high: f64,
    step: f64,
    from: f64,
    to: f64,
}

impl Axis {
    /// From a round number at or below the values to one at or above them, with about `ticks` steps.
    fn new(values: impl Iterator<Item = f64>, ticks: usize, from: f64, to: f64) -> Axis {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        values.for_each(|value| (low, high) = (low.min(value), high.max(value)));
        if high - low <= high.abs() * 1e-9 {
            let room = if high == 0.0 { 1.0 } else { high.abs() * 0.1 };
            (low, high) = (low - room, high + room);
        }
        let step = round_step((high - low) / ticks as f64);
        Axis { low: (low / step).floor() * step, high: (high / step).ceil() * step, step, from, to }
    }

    fn place(&self, value: f64) -> f64 {
        self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    fn ticks(&self) -> Vec<f64> {
        let count = ((self.high - self.low) / self.step).round() as usize;
        (0..=count.min(50)).map(|i| ((self.low / self.step).round() + i as f64) * self.step).collect()
    }
}

/// 1, 2 or 5 times a power of ten, at least `least`.
fn round_step(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0].map(|digit| digit * power).into_iter().find(|step| *step >= least * 0.999).unwrap_or(10.0 * power)
}

/// A number as people write it: 1500 → 1500, 0.0002 → 2e-4.
pub fn number(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 {
        return "0".into();
    }
    if !(1e-3..1e7).contains(&size) {
        let text = format!("{value:.3e}");
        let (digits, power) = text.split_once('e').unwrap_or((&text, "0"));
        let digits = if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { digits };
        return format!("{digits}e{power}");
    }
    let decimals = if size >= 1000.0 { 0 } else { 4 };
    let text = format!("{value:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_string(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_round_steps_around_the_values() {
        let axis = Axis::new([0.13, 0.87].into_iter(), 5, 0.0, 100.0);
        assert_eq!(
            axis.ticks().iter().map(|tick| number(*tick)).collect::<Vec<_>>(),
            ["0", "0.2", "0.4", "0.6", "0.8", "1"]
        );
        assert_eq!((axis.place(0.0), axis.place(1.0)), (0.0, 100.0));
        let flat = Axis::new([3.0].into_iter(), 5, 0.0, 1.0);
        assert!(flat.low < 3.0 && flat.high > 3.0 && flat.ticks().len() > 2);
        let zero = Axis::new([0.0].into_iter(), 5, 0.0, 1.0);
        assert!(zero.ticks().len() > 2);
    }

    #[test]
    fn numbers_are_short() {
        let shown = [0.0, 2e-4, 1500.0, 0.25, 12.3456789, 3e9, -1.5, 100.0].map(number);
        assert_eq!(shown, ["0", "2e-4", "1500", "0.25", "12.3457", "3e9", "-1.5", "100"]);
    }

    #[test]
    fn long_lines_keep_their_peaks() {
        let points: Vec<(f64, f64)> = (0..10_000).map(|i| (i as f64, if i == 7777 { 99.0 } else { 1.0 })).collect();
        let thin = thinned(&points);
        assert!(thin.len() <= POINTS + 2 && thin.contains(&(7777.0, 99.0)));
        assert!(thin.windows(2).all(|pair| pair[0].0 <= pair[1].0));
    }

    #[test]
    fn what_is_not_finite_is_not_drawn() {
        let series = |points| [Series { name: "a<b".into(), points, faint: false, unit: "" }];
        assert_eq!(lines("loss", &series(vec![(1.0, f64::NAN)])), "");
        let svg = lines("a & b", &series(vec![(1.0, 2.0), (2.0, f64::INFINITY), (3.0, 4.0)]));
        assert!(svg.contains("aria-label=\"a &amp; b\"") && !svg.contains("NaN") && !svg.contains("inf"));
    }
}
