//! Plots as SVG that stands inside a page: bars, dots on a logarithmic scale, lines.
//!
//! Colours come from the page's style sheet, by the class of a suite, so that the same drawing is right in light, dark and print. Every mark
//! carries a `title`, which browsers show under the pointer. All text from outside is escaped.

use std::fmt::Write;

use super::summary::{Spread, figure};

/// Width of a plot in a row of three, in units of the drawing; the page scales it.
pub const NARROW: f64 = 350.0;
/// Width of a plot in a row of two.
pub const WIDE: f64 = 530.0;

const BAR_HEIGHT: f64 = 20.0;
/// Room for an axis and its labels.
const AXIS_HEIGHT: f64 = 22.0;
/// Width of a digit, about: enough to keep labels apart.
const DIGIT_WIDTH: f64 = 6.6;

/// What is drawn of one suite.
pub struct Mark<'a> {
    pub suite: &'a str,
    pub spread: Spread,
}

/// Text for a page: nothing in it is markup.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The class that gives a suite its colour.
pub fn class(suite: &str) -> &'static str {
    match suite {
        "none" => "none",
        "aes-256-gcm" => "aes",
        "chacha20-poly1305" => "chacha",
        _ => "other",
    }
}

/// A suite's name where there is little room.
pub fn short(suite: &str) -> String {
    match suite {
        "aes-256-gcm" => "AES".to_owned(),
        "chacha20-poly1305" => "ChaCha".to_owned(),
        other => escaped(other),
    }
}

/// A rate where there is little room: `1.23M`, `456k`.
pub fn rate(number: f64) -> String {
    match number {
        n if n >= 999_500.0 => format!("{}M", figure(n / 1e6)),
        n if n >= 999.5 => format!("{}k", figure(n / 1e3)),
        n => figure(n),
    }
}

/// A round rate at an axis: `0`, `50k`, `1.5M`.
pub fn round_rate(number: f64) -> String {
    let (scaled, unit) = match number {
        n if n >= 999_500.0 => (n / 1e6, "M"),
        n if n >= 999.5 => (n / 1e3, "k"),
        n => (n, ""),
    };
    format!("{}{unit}", (scaled * 1e3).round() / 1e3)
}

/// A time in its unit: `1.20 us`, `3.40 ms`.
pub fn time(us: f64) -> String {
    match us {
        us if us >= 999_500.0 => format!("{} s", figure(us / 1e6)),
        us if us >= 999.5 => format!("{} ms", figure(us / 1e3)),
        us => format!("{} \u{b5}s", figure(us)),
    }
}

fn svg(width: f64, height: f64, label: &str, body: &str) -> String {
    format!("<svg viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" aria-label=\"{}\">{body}</svg>", escaped(label))
}

fn text(out: &mut String, x: f64, y: f64, class: &str, content: &str) {
    let _ = write!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\">{content}</text>");
}

fn line(out: &mut String, class: &str, from: (f64, f64), to: (f64, f64)) {
    let _ = write!(
        out,
        "<line class=\"{class}\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>",
        from.0, from.1, to.0, to.1
    );
}

/// One bar per suite from zero, with its figure behind it; a thin line from the least to the most of the rounds.
pub fn bars(label: &str, marks: &[Mark<'_>]) -> String {
    const LABEL: f64 = 58.0;
    let most = marks.iter().map(|mark| mark.spread.most).fold(1e-9, f64::max);
    let room = NARROW - LABEL - 62.0;
    let mut body = String::new();
    for (index, Mark { suite, spread }) in marks.iter().enumerate() {
        let y = index as f64 * (BAR_HEIGHT + 6.0) + 4.0;
        let middle = y + BAR_HEIGHT / 2.0;
        let at = |number: f64| LABEL + number / most * room;
        text(&mut body, LABEL - 8.0, middle + 4.0, "end", &short(suite));
        let _ = write!(
            body,
            "<rect class=\"fill {}\" x=\"{LABEL}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR_HEIGHT}\" rx=\"2\"><title>{}: {} ({} to {})</title></rect>",
            class(suite),
            at(spread.median) - LABEL,
            short(suite),
            figure(spread.median),
            figure(spread.least),
            figure(spread.most),
        );
        whisker(&mut body, middle, at(spread.least), at(spread.most));
        text(&mut body, at(spread.most) + 7.0, middle + 4.0, "figure", &rate(spread.median));
    }
    svg(NARROW, marks.len() as f64 * (BAR_HEIGHT + 6.0) + 4.0, label, &body)
}

fn whisker(out: &mut String, y: f64, from: f64, to: f64) {
    if to - from > 1.0 {
        line(out, "whisker", (from, y), (to, y));
        line(out, "whisker", (from, y - 3.0), (from, y + 3.0));
        line(out, "whisker", (to, y - 3.0), (to, y + 3.0));
    }
}

/// Costs: per row a bar for each suite, to the right of zero what is dearer, to the left what is cheaper than suite none. 0.05 is 5 %.
pub fn costs(label: &str, rows: &[(&str, Vec<Mark<'_>>)]) -> String {
    const LABEL: f64 = 118.0;
    const BAR: f64 = 11.0;
    const GAP: f64 = 9.0;
    // One wild round must not flatten all others: the scale follows the medians, and a line that leaves it is cut off.
    let medians = || rows.iter().flat_map(|(_, marks)| marks).map(|mark| mark.spread.median);
    let right = medians().fold(0.1, f64::max) * 1.2;
    let left = medians().fold(-0.02, f64::min) * 1.2;
    let room = WIDE - LABEL - 58.0;
    let at = |cost: f64| LABEL + (cost.clamp(left, right) - left) / (right - left) * room;
    let height: f64 = rows.iter().map(|(_, marks)| marks.len() as f64 * BAR + GAP).sum();
    let mut body = String::new();
    for tick in ticks(left, right, 6) {
        line(&mut body, if tick.abs() < 1e-9 { "axis" } else { "grid" }, (at(tick), 0.0), (at(tick), height));
        text(
            &mut body,
            at(tick),
            height + 15.0,
            "tick middle",
            &format!("{:+.0} %", tick * 100.0).replace("+0 %", "0"),
        );
    }
    let mut y = GAP / 2.0;
    for (workload, marks) in rows {
        let middle = y + marks.len() as f64 * BAR / 2.0;
        text(&mut body, LABEL - 10.0, middle + 4.0, "end", &escaped(workload));
        for Mark { suite, spread } in marks {
            let [zero, median] = [0.0, spread.median].map(at);
            let _ = write!(
                body,
                "<rect class=\"fill {}\" x=\"{:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"1.5\"><title>{}, {}: {:+.1} % ({:+.1} to {:+.1})</title></rect>",
                class(suite),
                zero.min(median),
                (zero - median).abs().max(0.75),
                BAR - 2.0,
                escaped(workload),
                short(suite),
                spread.median * 100.0,
                spread.least * 100.0,
                spread.most * 100.0,
            );
            whisker(&mut body, y + BAR / 2.0 - 1.0, at(spread.least), at(spread.most));
            text(&mut body, WIDE - 4.0, y + BAR - 2.5, "small end", &format!("{:+.1} %", spread.median * 100.0));
            y += BAR;
        }
        y += GAP;
    }
    svg(WIDE, height + AXIS_HEIGHT, label, &body)
}

/// Percentiles on a logarithmic scale from `least` to `most` microseconds, one row per suite.
pub fn dots(label: &str, rows: &[(&str, [(&str, f64); 5])], (least, most): (f64, f64)) -> String {
    const LABEL: f64 = 58.0;
    let (low, high) = (least.max(1e-3).log10().floor(), most.max(1e-2).log10().ceil());
    let room = NARROW - LABEL - 14.0;
    let at = |us: f64| LABEL + (us.max(1e-3).log10().clamp(low, high) - low) / (high - low).max(1.0) * room;
    let height = rows.len() as f64 * (BAR_HEIGHT + 6.0) + 4.0;
    let mut body = String::new();
    let every = if high - low > 5.0 { 2 } else { 1 };
    for power in (low as i32..=high as i32).step_by(every) {
        let us = 10.0_f64.powi(power);
        line(&mut body, "grid", (at(us), 0.0), (at(us), height));
        text(&mut body, at(us), height + 14.0, "tick middle", &decade(us));
    }
    for (index, (suite, percentiles)) in rows.iter().enumerate() {
        let y = index as f64 * (BAR_HEIGHT + 6.0) + 4.0 + BAR_HEIGHT / 2.0;
        text(&mut body, LABEL - 8.0, y + 4.0, "end", &short(suite));
        let class = class(suite);
        line(&mut body, &format!("stroke {class} thin"), (at(percentiles[0].1), y), (at(percentiles[4].1), y));
        for (index, (name, us)) in percentiles.iter().enumerate() {
            let radius = [6.0, 4.8, 3.8, 3.0, 2.2][index];
            let _ = write!(
                body,
                "<circle class=\"fill {class} ring\" cx=\"{:.1}\" cy=\"{y:.1}\" r=\"{radius}\"><title>{}, {name}: {}</title></circle>",
                at(*us),
                short(suite),
                time(*us)
            );
        }
    }
    svg(NARROW, height + AXIS_HEIGHT, label, &body)
}

/// A power of ten of microseconds: `100 ns`, `10 ms`.
fn decade(us: f64) -> String {
    match us {
        us if us < 0.5 => format!("{:.0} ns", us * 1e3),
        us if us < 500.0 => format!("{us:.0} \u{b5}s"),
        us if us < 5e5 => format!("{:.0} ms", us / 1e3),
        us => format!("{:.0} s", us / 1e6),
    }
}

/// How the axes of [`lines`] are drawn.
pub struct Axes {
    pub width: f64,
    pub height: f64,
    /// Across, a logarithmic scale with these ticks instead of a linear one.
    pub sizes: Option<Vec<f64>>,
    pub unit_x: &'static str,
    pub label_y: fn(f64) -> String,
}

/// Lines through points, one per suite and run; down to zero at least.
pub fn lines(label: &str, axes: &Axes, runs: &[(&str, Vec<(f64, f64)>)]) -> String {
    let points = || runs.iter().flat_map(|(_, points)| points);
    let bounds = |of: fn(&(f64, f64)) -> f64| {
        points().map(of).fold((0.0_f64, 1e-9_f64), |(low, high), number| (low.min(number), high.max(number)))
    };
    let ((_, right), (bottom, top)) = (bounds(|point| point.0), bounds(|point| point.1));
    let ticks_y = ticks(bottom, top, 4);
    let top = top.max(ticks_y.last().copied().unwrap_or(top));
    let left_room =
        10.0 + DIGIT_WIDTH * ticks_y.iter().map(|&tick| (axes.label_y)(tick).chars().count()).max().unwrap_or(0) as f64;
    let (room_x, room_y) = (axes.width - left_room - 16.0, axes.height - AXIS_HEIGHT - 8.0);
    let at_x = |x: f64| {
        left_room
            + room_x
                * match axes.sizes.as_deref() {
                    Some([first, .., last]) => (x / first).ln() / (last / first).ln(),
                    _ => x / right,
                }
    };
    let at_y = |y: f64| 8.0 + (top - y) / (top - bottom) * room_y;
    let mut body = String::new();
    for tick in ticks_y {
        line(
            &mut body,
            if tick.abs() < 1e-12 { "axis" } else { "grid" },
            (left_room, at_y(tick)),
            (axes.width - 16.0, at_y(tick)),
        );
        text(&mut body, left_room - 6.0, at_y(tick) + 4.0, "tick end", &(axes.label_y)(tick));
    }
    let ticks_x = axes.sizes.clone().unwrap_or_else(|| ticks(0.0, right, 5));
    let last = ticks_x.len().saturating_sub(1);
    for (index, tick) in ticks_x.into_iter().enumerate() {
        let unit = if index == last { axes.unit_x } else { "" };
        text(&mut body, at_x(tick), axes.height - 6.0, "tick middle", &format!("{}{unit}", round_rate(tick)));
    }
    for (suite, points) in runs {
        let path: Vec<String> = points.iter().map(|(x, y)| format!("{:.1},{:.1}", at_x(*x), at_y(*y))).collect();
        let _ = write!(
            body,
            "<polyline class=\"stroke {}\" points=\"{}\"><title>{}</title></polyline>",
            class(suite),
            path.join(" "),
            short(suite)
        );
        if axes.sizes.is_some() {
            for (x, y) in points {
                let _ = write!(
                    body,
                    "<circle class=\"fill {} ring\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.5\"><title>{}, {x} bytes: {}</title></circle>",
                    class(suite),
                    at_x(*x),
                    at_y(*y),
                    short(suite),
                    (axes.label_y)(*y)
                );
            }
        }
    }
    svg(axes.width, axes.height, label, &body)
}

/// About so many round numbers from `low` to `high`.
fn ticks(low: f64, high: f64, about: usize) -> Vec<f64> {
    let rough = ((high - low) / about as f64).max(1e-12);
    let power = 10.0_f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| *step >= rough).unwrap_or(rough);
    let (first, last) = ((low / step).ceil() as i64, (high / step + 1e-9).floor() as i64);
    (first..=last).map(|index| index as f64 * step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        let check = |low, high, expected: &[f64]| {
            let ticks = ticks(low, high, 5);
            assert_eq!(ticks.len(), expected.len(), "{ticks:?}");
            assert!(ticks.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-9), "{ticks:?}");
        };
        check(0.0, 10.0, &[0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        check(-0.03, 0.1, &[0.0, 0.05, 0.1]);
        check(0.0, 1e-9, &[0.0, 2e-10, 4e-10, 6e-10, 8e-10, 1e-9]);
    }

    /// Names come from files that somebody else may have written.
    #[test]
    fn nothing_from_outside_becomes_markup() {
        let spread = Spread { least: 0.0, median: f64::INFINITY, most: f64::NAN };
        let plot = bars("\"><script>", &[Mark { suite: "<script>", spread }]);
        assert!(!plot.contains("<script"), "{plot}");
        assert!(plot.contains("&lt;script&gt;"));
    }
}
