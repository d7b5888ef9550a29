//! Plots as SVG text, alike in every report; nothing here measures or reads files.
//!
//! Colours are of a light page. A page that is dark finds them in the text's attributes and gives them others:
//! `report/style.css` has one for each of [`PALETTE`].

use anyhow::{Result, anyhow};
use plotters::prelude::*;

/// Points with an error bar, one group per label and one colour per series.
pub(crate) struct Groups<'a> {
    /// Above the plot.
    pub(crate) title: &'a str,
    /// Beside the vertical axis, with its unit.
    pub(crate) unit: &'a str,
    /// Below the horizontal axis, one per group.
    pub(crate) labels: &'a [String],
    /// Name, and per group low, middle and high; `None` where nothing was measured.
    pub(crate) series: &'a [(String, Vec<Option<[f64; 3]>>)],
    /// A line across, to compare with.
    pub(crate) reference: Option<f64>,
}

impl Groups<'_> {
    /// The plot.
    ///
    /// # Errors
    /// The drawing library's.
    pub(crate) fn svg(&self) -> Result<String> {
        let mut text = String::new();
        self.draw(&mut text).map_err(|error| anyhow!("cannot draw {}: {error}", self.title))?;
        Ok(text)
    }

    fn draw(&self, text: &mut String) -> Result<(), Box<dyn std::error::Error + '_>> {
        let top = self.series.iter().flat_map(|(_, points)| points.iter().flatten()).map(|point| point[2]);
        let top = top.chain(self.reference).fold(0.0_f64, f64::max) * 1.1;
        let width = (160 + 90 * self.labels.len() as u32).clamp(480, 1_600);
        let root = SVGBackend::with_string(text, (width, 420)).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(self.title, ("sans-serif", 20))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(56)
            .build_cartesian_2d(-0.5..self.labels.len() as f64 - 0.5, 0.0..top.max(f64::MIN_POSITIVE))?;
        let label = |x: &f64| {
            let near = x.round();
            let index = if (x - near).abs() < 0.01 && near >= 0.0 { near as usize } else { usize::MAX };
            self.labels.get(index).cloned().unwrap_or_default()
        };
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_labels(self.labels.len() * 2 + 1)
            .x_label_formatter(&label)
            .y_desc(self.unit)
            .max_light_lines(0)
            .bold_line_style(BLACK.mix(0.12))
            .draw()?;
        if let Some(level) = self.reference {
            let ends = [(-0.5, level), (self.labels.len() as f64 - 0.5, level)];
            chart.draw_series(LineSeries::new(ends, BLACK.mix(0.5)))?;
        }
        for (number, (name, points)) in self.series.iter().enumerate() {
            let color = color(number);
            let shift = (number as f64 - (self.series.len() as f64 - 1.0) / 2.0) * 0.15;
            let present =
                points.iter().enumerate().filter_map(|(x, point)| Some((x as f64 + shift, (*point)?)));
            let bars: Vec<_> = present.collect();
            chart
                .draw_series(bars.iter().map(|&(x, [low, _, high])| {
                    PathElement::new(vec![(x, low), (x, high)], color.stroke_width(2))
                }))?
                .label(name)
                .legend(move |(x, y)| Circle::new((x + 8, y), 4, color.filled()));
            chart.draw_series(
                bars.iter().map(|&(x, [_, middle, _])| Circle::new((x, middle), 4, color.filled())),
            )?;
        }
        chart
            .configure_series_labels()
            .border_style(BLACK.mix(0.3))
            .background_style(WHITE.mix(0.8))
            .draw()?;
        root.present()?;
        Ok(())
    }
}

/// Lines through points, one colour per series.
pub(crate) struct Lines<'a> {
    /// Above the plot.
    pub(crate) title: &'a str,
    /// Below the horizontal axis, with its unit.
    pub(crate) x: &'a str,
    /// Beside the vertical axis, with its unit.
    pub(crate) y: &'a str,
    /// Name, and points in the order in which the line goes through them.
    pub(crate) series: &'a [(String, Vec<[f64; 2]>)],
    /// A line upright, to compare with, and what it is.
    pub(crate) reference: Option<(f64, &'a str)>,
}

impl Lines<'_> {
    /// The plot.
    ///
    /// # Errors
    /// The drawing library's.
    pub(crate) fn svg(&self) -> Result<String> {
        let mut text = String::new();
        self.draw(&mut text).map_err(|error| anyhow!("cannot draw {}: {error}", self.title))?;
        Ok(text)
    }

    fn draw(&self, text: &mut String) -> Result<(), Box<dyn std::error::Error + '_>> {
        let points = || self.series.iter().flat_map(|(_, points)| points);
        let most = |of: usize| points().map(|point| point[of]).fold(0.0_f64, f64::max) * 1.05;
        let right = self.reference.map_or(0.0, |(at, _)| at * 1.05).max(most(0));
        let root = SVGBackend::with_string(text, (680, 400)).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(self.title, ("sans-serif", 20))
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(60)
            .build_cartesian_2d(0.0..right.max(f64::MIN_POSITIVE), 0.0..most(1).max(f64::MIN_POSITIVE))?;
        chart
            .configure_mesh()
            .x_desc(self.x)
            .y_desc(self.y)
            .max_light_lines(0)
            .bold_line_style(BLACK.mix(0.12))
            .draw()?;
        if let Some((at, what)) = self.reference {
            let style = BLACK.mix(0.6);
            chart
                .draw_series(DashedLineSeries::new([(at, 0.0), (at, most(1))], 5, 4, style.into()))?
                .label(what)
                .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], style));
        }
        for (number, (name, points)) in self.series.iter().enumerate() {
            let color = color(number);
            let line = LineSeries::new(points.iter().map(|&[x, y]| (x, y)), color.stroke_width(2));
            chart
                .draw_series(line)?
                .label(name)
                .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], color.stroke_width(2)));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .border_style(BLACK.mix(0.3))
            .background_style(WHITE.mix(0.8))
            .draw()?;
        root.present()?;
        Ok(())
    }
}

/// The steps of a cumulative distribution: the share of `values` that is at most so much.
pub(crate) fn cumulative(values: impl IntoIterator<Item = f64>) -> Vec<[f64; 2]> {
    let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    let share = |rank: usize| rank as f64 / values.len() as f64;
    let steps = values.iter().enumerate();
    let mut line = vec![[values.first().copied().unwrap_or_default(), 0.0]];
    line.extend(steps.flat_map(|(rank, &value)| [[value, share(rank)], [value, share(rank + 1)]]));
    line
}

/// Of the series of this number; after the last begins the first again.
fn color(number: usize) -> RGBAColor {
    let (red, green, blue) = PALETTE[number % PALETTE.len()];
    RGBColor(red, green, blue).to_rgba()
}

/// Dark enough for a white page, and told apart also by who sees red and green alike.
pub(crate) const PALETTE: [(u8, u8, u8); 6] =
    [(11, 98, 166), (194, 70, 10), (10, 125, 90), (162, 59, 132), (138, 106, 0), (75, 85, 99)];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_their_names_and_the_reference_its_own() {
        let series = [("ours".to_owned(), cumulative([3.0, 1.0, f64::NAN]))];
        let svg =
            Lines { title: "t", x: "s", y: "share", series: &series, reference: Some((4.0, "bound")) }.svg();
        let svg = svg.unwrap();
        for part in ["ours", "bound", "share", "</svg>"] {
            assert!(svg.contains(part), "{part} is missing");
        }
    }

    #[test]
    fn a_cumulative_distribution_ends_at_one() {
        let line = cumulative([2.0, 1.0]);
        assert_eq!(line, [[1.0, 0.0], [1.0, 0.0], [1.0, 0.5], [2.0, 0.5], [2.0, 1.0]]);
        assert_eq!(cumulative([]), [[0.0, 0.0]]);
    }

    #[test]
    fn every_series_and_label_is_drawn() {
        let labels = ["1 KiB".to_owned(), "1 MiB".to_owned()];
        let series = [
            ("ours".to_owned(), vec![Some([1.0, 2.0, 3.0]), None]),
            ("theirs".to_owned(), vec![Some([1.0, 1.0, 1.0]), Some([4.0, 5.0, 6.0])]),
        ];
        let svg =
            Groups { title: "t", unit: "u", labels: &labels, series: &series, reference: Some(1.0) }.svg();
        let svg = svg.unwrap();
        for part in ["<svg", "1 KiB", "1 MiB", "ours", "theirs"] {
            assert!(svg.contains(part), "{part} is missing");
        }
    }
}
