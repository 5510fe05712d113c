//! Chart of packing runs: allocation over arrivals, one line per policy.

use std::path::Path;

use anyhow::{Context as _, Result};

use super::curve::LAST_PERCENT;
use crate::charts::{AxisUnit, ChartAxis, ChartSeries, ChartSize, ChartTone, LineChart, LineStroke, standalone};

/// Writes the chart as an SVG file.
///
/// # Errors
/// Fails if the chart cannot be written.
pub fn draw(file: &Path, title: &str, curves: &[(String, Vec<Option<f64>>)]) -> Result<()> {
    let series = curves.iter().zip(ChartTone::SEQUENCE.into_iter().cycle()).map(|((name, curve), tone)| {
        let points = (0..).zip(curve).filter_map(|(x, y)| y.map(|y| (f64::from(x), y)));
        ChartSeries { name: name.clone(), tone, stroke: LineStroke::Solid, points: points.collect() }
    });
    let chart = LineChart {
        title: title.to_owned(),
        x: ChartAxis::from_zero("GPUs requested so far, % of all", AxisUnit::Number, [LAST_PERCENT as f64].into_iter()),
        y: ChartAxis::from_zero("GPUs allocated, % of all", AxisUnit::Number, [100.0].into_iter()),
        series: series.collect(),
        marks: Vec::new(),
        size: ChartSize::LARGE,
    };
    std::fs::write(file, standalone(&chart.draw())).with_context(|| format!("cannot write {}", file.display()))
}
