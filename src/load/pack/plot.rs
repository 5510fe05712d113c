//! Chart of packing runs: allocation over arrivals, one line per policy.

use std::path::Path;

use anyhow::Result;
use plotters::prelude::*;

use super::curve::LAST_PERCENT;

/// Writes the chart as an SVG file.
///
/// # Errors
/// Fails if the chart cannot be drawn or written.
pub fn draw(file: &Path, title: &str, curves: &[(String, Vec<Option<f64>>)]) -> Result<()> {
    let area = SVGBackend::new(file, (900, 600)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 20))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..LAST_PERCENT as f64, 0.0..100.0)?;
    chart.configure_mesh().x_desc("GPUs requested so far, % of all").y_desc("GPUs allocated, % of all").draw()?;
    for (n, (name, curve)) in curves.iter().enumerate() {
        let colour = Palette99::pick(n).stroke_width(2);
        let line = (0..).zip(curve).filter_map(|(x, y)| y.map(|y| (f64::from(x), y)));
        chart
            .draw_series(LineSeries::new(line, colour))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE)
        .border_style(BLACK)
        .draw()?;
    area.present()?;
    Ok(())
}
