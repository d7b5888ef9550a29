//! The last hour as a drawing: what volunteers delivered, what they copied, what the origin sent.

use freshet_api::BytesPerSec;
use maud::{Markup, html};

use crate::flow::{Instant, MARK_EVERY};

/// A class for the style, words for the legend, and what is drawn.
type Series<'a> = (&'a str, &'a str, fn(&Instant) -> u64);

/// The drawing, with a legend in words.
pub(super) fn of(hour: &[Instant]) -> Markup {
    let series: [Series<'_>; 3] = [
        ("delivery", "volunteers deliver", |at| at.volunteers.delivery.sent.0),
        ("sync", "volunteers copy", |at| at.volunteers.sync.received.0),
        ("origin", "origin sends", |at| at.origin.0.saturating_add(at.origin_sync.0)),
    ];
    let most = series.iter().flat_map(|(_, _, of)| hour.iter().map(of)).max().unwrap_or(0);
    let top = rounded_up(most);
    html! {
        figure.chart id="chart" {
            svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" preserveAspectRatio="none"
                aria-label="Rates of the last hour" {
                @for part in 1..4 {
                    line.grid x1="0" x2=(WIDTH) y1=(HEIGHT * part / 4) y2=(HEIGHT * part / 4) {}
                }
                @for (class, _, of) in &series {
                    @if class == &"delivery" { path.area.(class) d=(area(hour, of, top)) {} }
                    path.line.(class) d=(line(hour, of, top)) {}
                }
            }
            figcaption {
                span.scale { "top: " (BytesPerSec(top)) ", the last " (span(hour) / 60) " minutes" }
                @for (class, words, _) in &series { span.key.(class) { (words) } }
            }
        }
    }
}

fn line(hour: &[Instant], of: &fn(&Instant) -> u64, top: u64) -> String {
    let mut path = String::new();
    for (x, y) in points(hour, of, top) {
        path.push_str(if path.is_empty() { "M" } else { "L" });
        path.push_str(&format!("{x:.1} {y:.1}"));
    }
    path
}

fn area(hour: &[Instant], of: &fn(&Instant) -> u64, top: u64) -> String {
    let points: Vec<_> = points(hour, of, top).collect();
    match (points.first(), points.last()) {
        (Some((first, _)), Some((last, _))) => {
            format!("{}L{last:.1} {HEIGHT}L{first:.1} {HEIGHT}Z", line(hour, of, top))
        }
        _ => String::new(),
    }
}

fn points(hour: &[Instant], of: &fn(&Instant) -> u64, top: u64) -> impl Iterator<Item = (f64, f64)> {
    let last = hour.last().map_or(0, |at| at.at);
    let span = span(hour) as f64;
    hour.iter().map(move |at| {
        let ago = last.saturating_sub(at.at) as f64;
        let x = f64::from(WIDTH) * (1.0 - ago / span);
        let y = f64::from(HEIGHT) * (1.0 - of(at) as f64 / top.max(1) as f64);
        (x, y)
    })
}

/// Seconds that are drawn: what there is, from ten minutes to an hour.
fn span(hour: &[Instant]) -> u64 {
    let ends = hour.first().zip(hour.last());
    ends.map_or(0, |(first, last)| last.at.saturating_sub(first.at)).next_multiple_of(600).clamp(600, 3_600)
}

/// The next 1, 2 or 5 with zeroes behind it, in bits per second.
fn rounded_up(bytes_per_sec: u64) -> u64 {
    let bits = bytes_per_sec.saturating_mul(8).max(1_000_000);
    let mut step = 1_000_000_u64;
    loop {
        for factor in [1, 2, 5] {
            if step.saturating_mul(factor) >= bits {
                return step.saturating_mul(factor) / 8;
            }
        }
        step = step.saturating_mul(10);
    }
}

const WIDTH: u32 = 720;
const HEIGHT: u32 = 150;
// An hour of marks gives less than a point a pixel and a half.
const _: () = assert!(3_600 / MARK_EVERY.as_secs() == 720);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_is_a_round_number_above_all() {
        assert_eq!(rounded_up(0), 125_000);
        assert_eq!(rounded_up(125_001), 250_000);
        assert_eq!(rounded_up(300_000_000), 625_000_000);
        assert!(rounded_up(u64::MAX) > 0);
    }

    #[test]
    fn an_empty_hour_draws_nothing_and_fails_not() {
        assert!(of(&[]).into_string().contains("the last 10 minutes"));
        let drawn = of(&[Instant { at: 5, ..Instant::default() }]).into_string();
        assert!(drawn.contains("M720.0 150.0"), "{drawn}");
    }
}
