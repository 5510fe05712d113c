//! Charts of runs as SVG strings: bars side by side, and lines over time or rate.

use anyhow::Result;
use plotters::coord::Shift;
use plotters::prelude::*;

const WIDTH: u32 = 900;
const LINES_HEIGHT: u32 = 360;
/// Height of one bar, and of the frame around all bars.
const BAR_HEIGHT: u32 = 26;
const BARS_FRAME: u32 = 90;

type ChartArea<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws a bar chart with a value at each bar, counted in `unit`.
///
/// # Errors
/// Fails if the chart cannot be drawn.
pub fn bar_chart(title: &str, unit: &str, rows: &[(String, f64)]) -> Result<String> {
    let height = BARS_FRAME + BAR_HEIGHT * u32::try_from(rows.len()).unwrap_or(100);
    let max = rows.iter().map(|(_, value)| *value).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    draw(height, |area| {
        let mut chart = ChartBuilder::on(area)
            .caption(title, ("sans-serif", 18))
            .margin(10)
            .x_label_area_size(40)
            .build_cartesian_2d(0.0..max * 2.0, 0.0..rows.len().max(1) as f64)?;
        chart.configure_mesh().disable_y_mesh().disable_y_axis().x_desc(unit).draw()?;
        for (n, (name, value)) in rows.iter().enumerate() {
            let top = (rows.len() - n) as f64;
            let bar = Rectangle::new([(0.0, top - 0.85), (*value, top - 0.15)], Palette99::pick(n).mix(0.6).filled());
            let text = Text::new(
                format!("{name}: {}", format_number(*value)),
                (*value + max * 0.01, top - 0.3),
                ("sans-serif", 14),
            );
            chart.draw_series(std::iter::once(bar))?;
            chart.draw_series(std::iter::once(text))?;
        }
        Ok(())
    })
}

/// Named line of a chart, as points.
pub type ChartLine = (String, Vec<(f64, f64)>);

/// Draws lines over a common x axis, labelled `axes` (x, y). The y axis is logarithmic, so values of 0 or less are
/// skipped.
///
/// # Errors
/// Fails if the chart cannot be drawn.
pub fn line_chart(title: &str, axes: [&str; 2], lines: &[ChartLine]) -> Result<String> {
    let points = || lines.iter().flat_map(|(_, points)| points).filter(|(_, y)| *y > 0.0);
    let range = |coordinate: fn(&(f64, f64)) -> f64| {
        let values = || points().map(coordinate);
        (values().fold(f64::INFINITY, f64::min), values().fold(0.0, f64::max))
    };
    let ((x_min, x_max), (y_min, y_max)) = (range(|point| point.0), range(|point| point.1));
    if points().next().is_none() {
        return Ok(String::new());
    }
    draw(LINES_HEIGHT, |area| {
        let mut chart = ChartBuilder::on(area)
            .caption(title, ("sans-serif", 18))
            .margin(10)
            .x_label_area_size(40)
            .y_label_area_size(70)
            .build_cartesian_2d(
                x_min.min(0.0)..x_max * 1.02 + f64::MIN_POSITIVE,
                (y_min * 0.8..y_max * 1.25).log_scale(),
            )?;
        chart.configure_mesh().x_desc(axes[0]).y_desc(axes[1]).draw()?;
        for (n, (name, points)) in lines.iter().enumerate() {
            let colour = Palette99::pick(n).stroke_width(2);
            let line = points.iter().copied().filter(|(_, y)| *y > 0.0);
            chart
                .draw_series(LineSeries::new(line, colour))?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK)
            .draw()?;
        Ok(())
    })
}

fn draw(height: u32, plot: impl FnOnce(&ChartArea<'_>) -> Result<()>) -> Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        area.fill(&WHITE)?;
        plot(&area)?;
        area.present()?;
    }
    Ok(svg)
}

/// Formats a number for people: three significant digits, thousands separated.
#[must_use]
pub fn format_number(value: f64) -> String {
    match value.abs() {
        below_ten if below_ten < 10.0 => format!("{value:.2}"),
        below_hundred if below_hundred < 100.0 => format!("{value:.1}"),
        _ => {
            let digits = format!("{value:.0}");
            let mut out = String::new();
            for (n, digit) in digits.chars().enumerate() {
                let remaining = digits.len() - n;
                if n > 0 && remaining.is_multiple_of(3) && !out.ends_with('-') {
                    out.push(' ');
                }
                out.push(digit);
            }
            out
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_grouped_thousands() {
        let formatted = [0.0, 1.234, 12.34, 123.4, 12_345.6, 1_234_567.0].map(format_number);
        assert_eq!(formatted, ["0.00", "1.23", "12.3", "123", "12 346", "1 234 567"]);
    }

    #[test]
    fn charts_show_their_titles_and_values() {
        let svg = bar_chart("throughput", "claims/s", &[("a<b".into(), 12.0), ("none".into(), 0.0)]).unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("throughput") && svg.contains("a&lt;b: 12.0"), "{svg}");
        let curve = vec![(0.0, 0.0), (1.0, 10.0), (2.0, 1_000.0)];
        let svg = line_chart("p99", ["s", "us"], &[("x".into(), curve)]).unwrap();
        assert!(svg.contains("p99") && svg.contains("polyline"), "{svg}");
        assert_eq!(line_chart("nothing", ["s", "us"], &[("x".into(), vec![(1.0, 0.0)])]).unwrap(), "");
    }
}
