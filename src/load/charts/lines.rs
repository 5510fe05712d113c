//! Lines over a common axis, each with its name at its end.

use maud::{Markup, html};

use super::axis::ChartAxis;
use super::style::ChartTone;
use super::{bold_width, draw_frame, text_width};

/// Width and height of a chart, in units of its text, which has 12.
#[derive(Debug, Clone, Copy)]
pub struct ChartSize {
    /// Width of the whole chart.
    pub width: f64,
    /// Height of the whole chart.
    pub height: f64,
}

impl ChartSize {
    /// Size of a chart with others beside it.
    pub const SMALL: Self = Self { width: 440.0, height: 250.0 };
    /// Size of a chart across a page.
    pub const LARGE: Self = Self { width: 760.0, height: 400.0 };

    fn class(self) -> &'static str {
        if self.width > Self::SMALL.width { "chart large" } else { "chart" }
    }
}

/// Stroke of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineStroke {
    /// Main line of its colour.
    Solid,
    /// Second line of the same colour.
    Thin,
    /// Third line of the same colour.
    Dashed,
    /// No line, but a hollow circle at each point.
    Hollow,
}

/// Line of a chart.
#[derive(Debug, Clone)]
pub struct ChartSeries {
    /// Name at the end of the line; empty for none.
    pub name: String,
    /// Colour of the line.
    pub tone: ChartTone,
    /// Stroke of the line.
    pub stroke: LineStroke,
    /// Values of both axes. Those without a place on them are left out.
    pub points: Vec<(f64, f64)>,
}

/// Line across the chart at one value.
#[derive(Debug, Clone)]
pub struct ChartMark {
    /// Text at the line.
    pub text: String,
    /// Value on one of the axes.
    pub value: MarkValue,
}

/// Value at which a mark stands.
#[derive(Debug, Clone, Copy)]
pub enum MarkValue {
    /// Value of the horizontal axis.
    X(f64),
    /// Value of the vertical axis.
    Y(f64),
}

/// Chart of lines over two axes.
#[derive(Debug, Clone)]
pub struct LineChart {
    /// Title above the chart.
    pub title: String,
    /// Horizontal axis, whose label stands below it.
    pub x: ChartAxis,
    /// Vertical axis, whose label stands under the title.
    pub y: ChartAxis,
    /// Lines of the chart.
    pub series: Vec<ChartSeries>,
    /// Marks across the chart.
    pub marks: Vec<ChartMark>,
    /// Size of the chart.
    pub size: ChartSize,
}

/// Space above the lines, below them, and beside texts.
const TOP: f64 = 46.0;
const BOTTOM: f64 = 38.0;
const GAP: f64 = 8.0;
/// Distance between a line's end and its name from which on a leader joins them.
const LEADER_MIN: f64 = 12.0;
/// Distance of names at the ends of lines.
const NAME_DISTANCE: f64 = 14.0;

/// Rectangle in which the lines are drawn.
struct PlotFrame {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

impl LineChart {
    /// Draws the chart as SVG.
    #[must_use]
    pub fn draw(&self) -> Markup {
        let ChartSize { width, height } = self.size;
        let names =
            self.series.iter().filter(|series| !series.points.is_empty()).map(|series| bold_width(&series.name));
        let ticks = self.y.ticks.iter().map(|(_, text)| text_width(text));
        let frame = PlotFrame {
            left: ticks.fold(24.0, f64::max) + GAP,
            right: width - names.fold(12.0, f64::max) - GAP,
            top: TOP,
            bottom: height - BOTTOM,
        };
        let content = html! {
            (self.draw_axes(&frame))
            @for series in &self.series { (self.draw_series(series, &frame)) }
            // Their texts must be read across lines.
            @for mark in &self.marks { (self.draw_mark(mark, &frame)) }
            @for (series, y) in self.name_positions(&frame) {
                (self.draw_leader(series, y, &frame))
                text class=(format!("name {}", series.tone.class())) x=(round(frame.right + 5.0)) y=(round(y + 4.0)) {
                    (series.name)
                }
            }
        };
        draw_frame(self.size.class(), (width, height), [&self.title, &self.y.label], &content)
    }

    fn draw_axes(&self, frame: &PlotFrame) -> Markup {
        let mut last_end = f64::NEG_INFINITY;
        let x_ticks: Vec<(f64, &str)> = self
            .x
            .ticks
            .iter()
            .filter_map(|(value, text)| {
                let x = frame.x(self.x.position(*value)?);
                let half = text_width(text) / 2.0;
                // Texts that would overlap are left out.
                (x - half > last_end + 4.0).then(|| {
                    last_end = x + half;
                    (x, text.as_str())
                })
            })
            .collect();
        let y_ticks = self.y.ticks.iter().filter_map(|(value, text)| Some((frame.y(self.y.position(*value)?), text)));
        html! {
            @for (y, text) in y_ticks {
                line class="grid" x1=(round(frame.left)) x2=(round(frame.right)) y1=(round(y)) y2=(round(y)) {}
                text class="muted end" x=(round(frame.left - 5.0)) y=(round(y + 4.0)) { (text) }
            }
            @for (x, text) in x_ticks {
                line class="grid" x1=(round(x)) x2=(round(x)) y1=(round(frame.bottom)) y2=(round(frame.bottom + 4.0)) {}
                text class="muted middle" x=(round(x)) y=(round(frame.bottom + 17.0)) { (text) }
            }
            text class="muted middle" x=(round(f64::midpoint(frame.left, frame.right))) y=(round(frame.bottom + 33.0)) {
                (self.x.label)
            }
        }
    }

    fn draw_mark(&self, mark: &ChartMark, frame: &PlotFrame) -> Markup {
        let line = match mark.value {
            MarkValue::X(value) => self.x.position(value).map(|at| {
                let x = frame.x(at);
                let is_left = x - text_width(&mark.text) - 5.0 > frame.left;
                let text = if is_left { (x - 4.0, "end") } else { (x + 4.0, "") };
                (x, x, frame.top, frame.bottom, text, frame.top + 10.0)
            }),
            MarkValue::Y(value) => self.y.position(value).map(|at| {
                let y = frame.y(at);
                // Under the line where the label of the axis is above it.
                let text_y = if y - frame.top < 14.0 { y + 13.0 } else { y - 4.0 };
                (frame.left, frame.right, y, y, (frame.left + 4.0, ""), text_y)
            }),
        };
        html! {
            @if let Some((x1, x2, y1, y2, (text_x, anchor), text_y)) = line {
                line class="mark" x1=(round(x1)) x2=(round(x2)) y1=(round(y1)) y2=(round(y2)) {}
                text class=(format!("halo {anchor}")) x=(round(text_x)) y=(round(text_y)) { (mark.text) }
            }
        }
    }

    /// Points of a series in the frame.
    fn points(&self, series: &ChartSeries, frame: &PlotFrame) -> Vec<(f64, f64)> {
        let place = |(x, y): &(f64, f64)| Some((frame.x(self.x.position(*x)?), frame.y(self.y.position(*y)?)));
        series.points.iter().filter_map(place).collect()
    }

    fn draw_series(&self, series: &ChartSeries, frame: &PlotFrame) -> Markup {
        let points = self.points(series, frame);
        let tone = series.tone.class();
        let stroke = match series.stroke {
            LineStroke::Thin => " thin",
            LineStroke::Dashed => " thin dashed",
            LineStroke::Solid | LineStroke::Hollow => "",
        };
        let coordinates: Vec<String> = points.iter().map(|(x, y)| format!("{},{}", round(*x), round(*y))).collect();
        html! {
            @if series.stroke == LineStroke::Hollow {
                @for (x, y) in points { circle class=(format!("hollow {tone}")) cx=(round(x)) cy=(round(y)) r="3.5" {} }
            } @else {
                polyline class=(format!("line {tone}{stroke}")) points=(coordinates.join(" ")) {}
                // A single point has no line.
                @if let [(x, y)] = points[..] { circle class=(format!("dot {tone}")) cx=(round(x)) cy=(round(y)) r="3" {} }
            }
        }
    }

    /// Faint line from the end of a series to its name, if they are apart.
    fn draw_leader(&self, series: &ChartSeries, name_y: f64, frame: &PlotFrame) -> Markup {
        let end = self.points(series, frame).last().copied().filter(|(x, _)| frame.right - x > LEADER_MIN);
        html! {
            @if let Some((x, y)) = end {
                line class=(format!("leader {}", series.tone.class())) x1=(round(x + 3.0)) y1=(round(y))
                    x2=(round(frame.right + 2.0)) y2=(round(name_y)) {}
            }
        }
    }

    /// Series with names, and the heights of these, which do not overlap.
    fn name_positions(&self, frame: &PlotFrame) -> Vec<(&ChartSeries, f64)> {
        let ends = self.series.iter().filter(|series| !series.name.is_empty());
        let mut names: Vec<_> =
            ends.filter_map(|series| Some((series, self.points(series, frame).last()?.1))).collect();
        names.sort_by(|(_, one), (_, two)| one.total_cmp(two));
        let mut next = frame.top;
        for (_, y) in &mut names {
            *y = y.max(next);
            next = *y + NAME_DISTANCE;
        }
        // What was moved beyond the bottom moves up again, with those above it.
        let mut limit = frame.bottom;
        for (_, y) in names.iter_mut().rev() {
            *y = y.min(limit);
            limit = *y - NAME_DISTANCE;
        }
        names
    }
}

impl PlotFrame {
    fn x(&self, position: f64) -> f64 {
        self.left + position * (self.right - self.left)
    }

    fn y(&self, position: f64) -> f64 {
        self.bottom - position * (self.bottom - self.top)
    }
}

/// Coordinate as it is written.
fn round(coordinate: f64) -> f64 {
    (coordinate * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::super::axis::AxisUnit;
    use super::*;

    fn chart(series: Vec<ChartSeries>) -> LineChart {
        let values = || series.iter().flat_map(|series| series.points.clone());
        LineChart {
            title: "a<b".into(),
            x: ChartAxis::from_zero("seconds", AxisUnit::Number, values().map(|point| point.0)),
            y: ChartAxis::logarithmic("latency", AxisUnit::Microseconds, values().map(|point| point.1)),
            series,
            marks: vec![ChartMark { text: "bound".into(), value: MarkValue::Y(100.0) }],
            size: ChartSize::SMALL,
        }
    }

    fn series(name: &str, stroke: LineStroke, points: &[(f64, f64)]) -> ChartSeries {
        ChartSeries { name: name.into(), tone: ChartTone::Resp, stroke, points: points.to_vec() }
    }

    #[test]
    fn names_at_the_ends_of_lines_do_not_overlap_and_stay_inside() {
        let equal =
            ["p50", "p90", "p99", "p99.9"].map(|name| series(name, LineStroke::Solid, &[(0.0, 10.0), (9.0, 10.0)]));
        let chart = chart(equal.into_iter().chain([series("max", LineStroke::Thin, &[(9.0, 900.0)])]).collect());
        let frame = PlotFrame { left: 40.0, right: 400.0, top: TOP, bottom: 212.0 };
        let heights: Vec<f64> = chart.name_positions(&frame).into_iter().map(|(_, y)| y).collect();
        assert_eq!(heights.len(), 5);
        assert!(heights.windows(2).all(|pair| pair[1] - pair[0] >= NAME_DISTANCE - 1e-9), "{heights:?}");
        assert!(heights.iter().all(|y| (frame.top..=frame.bottom).contains(y)), "{heights:?}");
    }

    #[test]
    fn lines_leave_out_what_has_no_place_and_names_are_escaped() {
        let failed = series("", LineStroke::Hollow, &[(4.0, 500.0), (5.0, 600.0)]);
        let svg = chart(vec![series("p<99", LineStroke::Dashed, &[(1.0, 0.0), (2.0, 10.0), (3.0, 20.0)]), failed]);
        let svg = svg.draw().into_string();
        assert!(svg.contains("a&lt;b") && svg.contains("p&lt;99") && svg.contains("bound"), "{svg}");
        assert_eq!(svg.matches("<polyline").count(), 1);
        assert_eq!(svg.matches("class=\"hollow").count(), 2, "failed tries are circles without a line");
        let (_, line) = svg.split_once(" points=\"").unwrap();
        assert_eq!(line.split_once('"').unwrap().0.split(' ').count(), 2, "a value of zero has no place");
    }
}
