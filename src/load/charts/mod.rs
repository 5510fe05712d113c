//! Charts for people, as SVG with one style: light and dark, with names beside the lines in place of legends. They are
//! written directly, because no chart library draws colours that follow the reader's scheme, nor ticks on a narrow
//! logarithmic axis.

mod axis;
mod bars;
mod lines;
mod style;

use maud::{Markup, PreEscaped, html};

pub use axis::{AxisUnit, ChartAxis, percentile_value};
pub use bars::{BarChart, ChartBar};
pub use lines::{ChartMark, ChartSeries, ChartSize, LineChart, LineStroke, MarkValue};
pub use style::{CHART_STYLE, ChartTone};

/// Width of a character of a chart's text on average, in its units.
const CHARACTER_WIDTH: f64 = 7.0;

/// Width of a bold character on average.
const BOLD_WIDTH: f64 = 8.3;

fn bold_width(text: &str) -> f64 {
    // The widest letters make a short name wider than their number says.
    text.chars().count() as f64 * BOLD_WIDTH + 4.0
}

fn text_width(text: &str) -> f64 {
    text.chars().count() as f64 * CHARACTER_WIDTH
}

/// Picture with a title and, under it, what its values are.
fn draw_frame(class: &str, (width, height): (f64, f64), [title, label]: [&str; 2], content: &Markup) -> Markup {
    html! {
        svg class=(class) viewBox=(format!("0 0 {width} {height}")) role="img" aria-label=(title) {
            text class="title" x="2" y="16" { (title) }
            text class="muted" x="2" y="33" { (label) }
            (content)
        }
    }
}

/// Charts of the small size beside each other, as one.
#[must_use]
pub fn side_by_side(charts: &[Markup]) -> Markup {
    let ChartSize { width, height } = ChartSize::SMALL;
    let place = |(n, PreEscaped(svg)): (usize, &Markup)| {
        let opening = format!("<svg x=\"{}\" width=\"{width}\" height=\"{height}\"", n as f64 * width);
        svg.replacen("<svg", &opening, 1)
    };
    let inner: String = charts.iter().enumerate().map(place).collect();
    PreEscaped(format!("<svg class=\"chart\" viewBox=\"0 0 {} {height}\">{inner}</svg>", charts.len() as f64 * width))
}

/// Chart as a file of its own.
#[must_use]
pub fn standalone(chart: &Markup) -> String {
    let PreEscaped(svg) = chart;
    let opening = "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"100%\"";
    svg.replacen("<svg", opening, 1).replacen('>', &format!("><style>{CHART_STYLE}</style>"), 1)
}

/// Formats a count for people: thousands separated.
#[must_use]
pub fn format_count(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

/// Formats a duration in microseconds for people: three significant digits.
#[must_use]
pub fn format_us(us: f64) -> String {
    match us {
        us if us < 1e3 => format!("{} us", without_zeros(us)),
        us if us < 1e6 => format!("{} ms", without_zeros(us / 1e3)),
        us => format!("{} s", without_zeros(us / 1e6)),
    }
}

fn without_zeros(value: f64) -> String {
    let digits = format_number(value);
    if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.').to_owned() } else { digits }
}

/// Formats a number for people: three significant digits, thousands separated.
#[must_use]
pub fn format_number(value: f64) -> String {
    match value.abs() {
        _ if !value.is_finite() => "-".to_owned(),
        below_ten if below_ten < 10.0 => format!("{value:.2}"),
        below_hundred if below_hundred < 100.0 => format!("{value:.1}"),
        _ if value < 0.0 => format!("-{}", format_count(-value.round() as u64)),
        _ => format_count(value.round() as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_grouped_thousands() {
        let formatted = [0.0, 1.234, 12.34, 123.4, 12_345.6, 1_234_567.0, f64::INFINITY].map(format_number);
        assert_eq!(formatted, ["0.00", "1.23", "12.3", "123", "12 346", "1 234 567", "-"]);
        assert_eq!([0, 999, 1_000].map(format_count), ["0", "999", "1 000"]);
        assert_eq!([2.0, 1_234.0, 5e6].map(format_us), ["2 us", "1.23 ms", "5 s"]);
    }

    #[test]
    fn a_chart_in_a_file_has_its_style() {
        let chart = BarChart { title: "t".into(), unit: "u".into(), bars: Vec::new() }.draw();
        let svg = standalone(&chart);
        assert!(svg.starts_with("<svg xmlns=") && svg.ends_with("</svg>"), "{svg}");
        assert!(svg.contains("><style>:root{") && svg.contains("viewBox="), "{svg}");
    }
}
