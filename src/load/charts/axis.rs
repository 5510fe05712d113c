//! Axes: the range of a chart's values, their places on it, and ticks that people read easily.

/// Unit of the values of an axis, which decides how ticks are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AxisUnit {
    /// Numbers, from a thousand on with a suffix.
    Number,
    /// Durations in microseconds, written in larger units where they fit.
    Microseconds,
}

/// Scale of an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AxisScale {
    Linear,
    Logarithmic,
}

/// Axis of a chart.
#[derive(Debug, Clone)]
pub struct ChartAxis {
    /// Description of the values with their unit.
    pub label: String,
    scale: AxisScale,
    range: (f64, f64),
    /// Values with a tick, and their texts.
    pub(super) ticks: Vec<(f64, String)>,
}

/// Factors of a power of ten at which ticks stand.
const STEPS: [f64; 3] = [1.0, 2.0, 5.0];
/// Numbers of intervals between ticks that are tried on a linear axis.
const INTERVALS: [f64; 4] = [4.0, 5.0, 6.0, 7.0];
/// Number of decades from which on a logarithmic axis has ticks at powers of ten only.
const DECADES_DENSE: f64 = 2.5;
/// Percentiles with a tick.
const PERCENTILES: [f64; 6] = [0.0, 0.5, 0.9, 0.99, 0.999, 0.9999];

impl ChartAxis {
    /// Linear axis from zero to the least round number above all values.
    #[must_use]
    pub fn from_zero(label: &str, unit: AxisUnit, values: impl Iterator<Item = f64>) -> Self {
        let max = values.filter(|value| value.is_finite()).fold(0.0, f64::max);
        let max = if max > 0.0 { max } else { 1.0 };
        let steps = INTERVALS.map(|intervals| round_up(max / intervals));
        let end = |step: f64| (max / step * 0.999_999).ceil() * step;
        let step = steps.into_iter().min_by(|one, two| end(*one).total_cmp(&end(*two))).unwrap_or(max);
        let count = (end(step) / step).round().max(1.0);
        let ticks = (0..=count as usize).map(|n| n as f64 * step).map(|value| (value, format_tick(value, unit)));
        Self { label: label.to_owned(), scale: AxisScale::Linear, range: (0.0, count * step), ticks: ticks.collect() }
    }

    /// Logarithmic axis between round numbers around all values above zero.
    #[must_use]
    pub fn logarithmic(label: &str, unit: AxisUnit, values: impl Iterator<Item = f64>) -> Self {
        let positive = values.filter(|value| value.is_finite() && *value > 0.0);
        let (min, max) = positive.fold((f64::INFINITY, 0.0_f64), |(min, max), value| (min.min(value), max.max(value)));
        let (min, max) = if max > 0.0 { (min, max) } else { (1.0, 10.0) };
        let (low, high) = (round_down(min), round_up(max));
        let high = if high > low { high } else { round_up(low * 1.5) };
        let is_dense = (high / low).log10() < DECADES_DENSE;
        let mut ticks = Vec::new();
        let mut decade = 10_f64.powf(low.log10().floor());
        while decade <= high * 1.001 {
            let factors = if is_dense { &STEPS[..] } else { &STEPS[..1] };
            let values = factors.iter().map(|factor| decade * factor);
            ticks.extend(values.filter(|value| (low * 0.999..=high * 1.001).contains(value)));
            decade *= 10.0;
        }
        let ticks = ticks.into_iter().map(|value| (value, format_tick(value, unit))).collect();
        Self { label: label.to_owned(), scale: AxisScale::Logarithmic, range: (low, high), ticks }
    }

    /// Axis of percentiles on which each further nine takes as much space. Its values are those of
    /// [`percentile_value`].
    #[must_use]
    pub fn percentiles(label: &str) -> Self {
        let ticks = PERCENTILES.map(|quantile| (percentile_value(quantile), format_quantile(quantile)));
        let range = (0.0, ticks[PERCENTILES.len() - 1].0);
        Self { label: label.to_owned(), scale: AxisScale::Linear, range, ticks: ticks.to_vec() }
    }

    /// Position of a value, from 0 at the beginning of the axis to 1 at its end; none if it has no place on it.
    pub(super) fn position(&self, value: f64) -> Option<f64> {
        let (low, high) = self.range;
        let position = match self.scale {
            AxisScale::Linear => (value - low) / (high - low),
            AxisScale::Logarithmic if value > 0.0 => (value / low).ln() / (high / low).ln(),
            AxisScale::Logarithmic => return None,
        };
        (-1e-9..=1.0 + 1e-9).contains(&position).then(|| position.clamp(0.0, 1.0))
    }
}

/// Value of a quantile on the axis of percentiles.
#[must_use]
pub fn percentile_value(quantile: f64) -> f64 {
    -(1.0 - quantile).max(1e-9).log10()
}

fn format_quantile(quantile: f64) -> String {
    let percent = format!("{:.2}", quantile * 100.0);
    percent.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Largest of 1, 2 and 5 times a power of ten that is not above the value.
fn round_down(value: f64) -> f64 {
    let decade = 10_f64.powf(value.log10().floor());
    STEPS.iter().rev().map(|step| step * decade).find(|rounded| *rounded <= value * 1.000_001).unwrap_or(decade)
}

/// Least of 1, 2 and 5 times a power of ten that is not below the value.
fn round_up(value: f64) -> f64 {
    let decade = 10_f64.powf(value.log10().floor());
    let rounded = STEPS.iter().map(|step| step * decade).find(|rounded| *rounded >= value * 0.999_999);
    rounded.unwrap_or(decade * 10.0)
}

fn format_tick(value: f64, unit: AxisUnit) -> String {
    let scaled = |value: f64, suffix: &str| {
        let digits = format!("{value:.3}");
        format!("{}{suffix}", digits.trim_end_matches('0').trim_end_matches('.'))
    };
    match unit {
        AxisUnit::Microseconds if value == 0.0 => "0".to_owned(),
        AxisUnit::Microseconds if value < 1e3 => scaled(value, " us"),
        AxisUnit::Microseconds if value < 1e6 => scaled(value / 1e3, " ms"),
        AxisUnit::Microseconds => scaled(value / 1e6, " s"),
        AxisUnit::Number if value >= 1e6 => scaled(value / 1e6, " M"),
        AxisUnit::Number if value >= 1e3 => scaled(value / 1e3, " k"),
        AxisUnit::Number => scaled(value, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(axis: &ChartAxis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, text)| text.as_str()).collect()
    }

    #[test]
    fn linear_axes_begin_at_zero_and_end_at_a_round_number() {
        let axis = ChartAxis::from_zero("x", AxisUnit::Number, [3.0, 12_345.0].into_iter());
        assert_eq!(texts(&axis), ["0", "2 k", "4 k", "6 k", "8 k", "10 k", "12 k", "14 k"]);
        assert_eq!((axis.position(0.0), axis.position(7_000.0), axis.position(14_001.0)), (Some(0.0), Some(0.5), None));
        let ticks = |max: f64| ChartAxis::from_zero("x", AxisUnit::Number, [max].into_iter()).ticks;
        let ends = [10.05, 100.0, 1_023.0, 3.0].map(|max| ticks(max).last().unwrap().0);
        assert_eq!(ends, [12.0, 100.0, 1_200.0, 3.0], "little is left empty");
        assert_eq!(texts(&ChartAxis::from_zero("x", AxisUnit::Number, [0.0].into_iter())), ["0", "0.5", "1"]);
    }

    #[test]
    fn logarithmic_axes_have_ticks_however_narrow_the_range() {
        let ticks = |values: &[f64]| {
            let axis = ChartAxis::logarithmic("x", AxisUnit::Microseconds, values.iter().copied());
            texts(&axis).join(", ")
        };
        assert_eq!(ticks(&[100.0, 100.0]), "100 us, 200 us");
        assert_eq!(ticks(&[101.0, 103.0]), "100 us, 200 us");
        assert_eq!(ticks(&[80.0, 6_000.0]), "50 us, 100 us, 200 us, 500 us, 1 ms, 2 ms, 5 ms, 10 ms");
        assert_eq!(ticks(&[0.0, 10.0, 2_000_000.0]), "10 us, 100 us, 1 ms, 10 ms, 100 ms, 1 s");
        assert_eq!(ticks(&[]), "1 us, 2 us, 5 us, 10 us");
        let axis = ChartAxis::logarithmic("x", AxisUnit::Number, [10.0, 1_000.0].into_iter());
        assert_eq!((axis.position(0.0), axis.position(100.0)), (None, Some(0.5)));
    }

    #[test]
    fn each_nine_of_a_percentile_takes_as_much_space() {
        let axis = ChartAxis::percentiles("percentile");
        assert_eq!(texts(&axis), ["0", "50", "90", "99", "99.9", "99.99"]);
        let position = |quantile| axis.position(percentile_value(quantile)).unwrap();
        assert!((position(0.99) - 2.0 * position(0.9)).abs() < 1e-6);
    }
}
