//! Draws packing runs: what was allocated against what had arrived, one line a policy.

use std::path::Path;

use plotters::prelude::*;

use super::curve::LAST_PERCENT;

/// Writes the picture as SVG.
///
/// # Errors
/// It cannot be drawn or written, in words.
pub fn draw(file: &Path, title: &str, curves: &[(String, Vec<Option<f64>>)]) -> Result<(), String> {
    let words = |error: &dyn std::fmt::Display| format!("cannot draw {}: {error}", file.display());
    let area = SVGBackend::new(file, (900, 600)).into_drawing_area();
    area.fill(&WHITE).map_err(|error| words(&error))?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 20))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..LAST_PERCENT as f64, 0.0..100.0)
        .map_err(|error| words(&error))?;
    chart
        .configure_mesh()
        .x_desc("GPUs asked for so far, % of all")
        .y_desc("GPUs allocated, % of all")
        .draw()
        .map_err(|error| words(&error))?;
    for (at, (name, curve)) in curves.iter().enumerate() {
        let colour = Palette99::pick(at).stroke_width(2);
        let line = (0..).zip(curve).filter_map(|(x, y)| y.map(|y| (f64::from(x), y)));
        chart
            .draw_series(LineSeries::new(line, colour))
            .map_err(|error| words(&error))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE)
        .border_style(BLACK)
        .draw()
        .map_err(|error| words(&error))?;
    area.present().map_err(|error| words(&error))
}
