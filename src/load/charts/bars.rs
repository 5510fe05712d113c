//! Bars under each other, each with its name above and its value at its end.

use maud::{Markup, html};

use super::style::ChartTone;
use super::{draw_frame, format_number, text_width};

/// Bar of a chart.
#[derive(Debug, Clone)]
pub struct ChartBar {
    /// Name above the bar.
    pub name: String,
    /// Colour of the bar.
    pub tone: ChartTone,
    /// Length of the bar.
    pub value: f64,
}

/// Chart of bars under each other.
#[derive(Debug, Clone)]
pub struct BarChart {
    /// Title above the chart.
    pub title: String,
    /// Unit of the values.
    pub unit: String,
    /// Bars from the top.
    pub bars: Vec<ChartBar>,
}

/// Width of the chart, in units of its text, which has 12.
const WIDTH: f64 = 440.0;
/// Heights of the title, of a bar with its name, and of the bar alone.
const TITLE: f64 = 42.0;
const ROW: f64 = 33.0;
const BAR: f64 = 11.0;
/// Longest name, in characters.
const NAME_CHARS_MAX: usize = 62;

impl BarChart {
    /// Draws the chart as SVG.
    #[must_use]
    pub fn draw(&self) -> Markup {
        let height = TITLE + ROW * self.bars.len() as f64;
        let values = || self.bars.iter().map(|bar| bar.value);
        let max = values().fold(0.0, f64::max).max(f64::MIN_POSITIVE);
        let texts = values().map(|value| text_width(&format_number(value)));
        let longest = WIDTH - texts.fold(0.0, f64::max) - 10.0;
        let content = html! {
            @for (number, bar) in self.bars.iter().enumerate() {
                @let top = TITLE + ROW * number as f64;
                @let length = (bar.value.max(0.0) / max * longest).max(1.0);
                g {
                    title { (bar.name) }
                    text x="2" y=(top + 12.0) { (shortened(&bar.name)) }
                    rect class=(format!("bar {}", bar.tone.class())) x="2" y=(top + 17.0) rx="1.5"
                        width=(format!("{length:.1}")) height=(BAR) {}
                    text class="muted" x=(format!("{:.1}", length + 7.0)) y=(top + 27.0) { (format_number(bar.value)) }
                }
            }
        };
        draw_frame("chart", (WIDTH, height), [&self.title, &self.unit], &content)
    }
}

fn shortened(name: &str) -> String {
    match name.char_indices().nth(NAME_CHARS_MAX) {
        Some((end, _)) => format!("{}...", &name[..end]),
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_have_names_and_values_that_fit() {
        let bar = |name: &str, value| ChartBar { name: name.into(), tone: ChartTone::Http, value };
        let bars = vec![bar("a<b", 12.0), bar("none", 0.0), bar(&"x".repeat(100), 3_000_000.0)];
        let svg = BarChart { title: "rate".into(), unit: "claims/s".into(), bars }.draw().into_string();
        assert!(svg.starts_with("<svg") && svg.contains("a&lt;b") && svg.contains(">12.0<"), "{svg}");
        assert!(svg.contains(&format!("{}...", "x".repeat(62))), "{svg}");
        let widths = svg.split(" width=\"").skip(1).map(|rest| rest.split_once('"').unwrap().0.parse::<f64>().unwrap());
        assert!(
            widths.clone().all(|width| width < WIDTH - text_width("3 000 000")),
            "{:?}",
            widths.collect::<Vec<_>>()
        );
    }
}
