//! Reduction of a packing run to a curve, as published: the share of GPUs allocated once a given share has been
//! requested.
//!
//! Both are percentages of all GPUs. Each request counts at its arrival rounded to a whole per cent, and the value
//! there is the mean allocation with two decimals. Rounding and summation follow the published evaluation (numpy), so
//! that figures can be compared digit for digit.

/// Last whole per cent of arrivals on the curve.
pub const LAST_PERCENT: usize = 130;

/// Thousandths of GPUs that have arrived, and that are allocated, after one request.
pub type CurvePoint = (u64, u64);

/// Allocation in per cent at each whole per cent of arrivals, 0..=[`LAST_PERCENT`]; `None` without arrivals nearby.
#[must_use]
pub fn curve(points: &[CurvePoint], gpus: u64) -> Vec<Option<f64>> {
    let percent = |milli: u64| milli as f64 / gpus as f64 / 10.0;
    let mut bins: Vec<Vec<f64>> = vec![Vec::new(); LAST_PERCENT + 2];
    for &(arrived, allocated) in points {
        let bin_index = percent(arrived).round_ties_even() as usize;
        if let Some(bin) = bins.get_mut(bin_index) {
            bin.push(two_decimals(percent(allocated)));
        }
    }
    let value = |x: usize| {
        let neighbours = if bins[x].is_empty() { &bins[x.saturating_sub(1)..=x + 1] } else { &bins[x..=x] };
        // Arrivals only grow, so the values of neighbours are in the order of arrival.
        let values = neighbours.concat();
        (!values.is_empty()).then(|| (sum(&values) / values.len() as f64 * 100.0).round_ties_even() / 100.0)
    };
    (0..=LAST_PERCENT).map(value).collect()
}

/// Rounds to two decimals, halves to even.
fn two_decimals(x: f64) -> f64 {
    let eighths = x * 8.0;
    // The only halves between two decimals that a double represents exactly are odd eighths.
    if eighths.fract() == 0.0 && eighths % 2.0 != 0.0 {
        return (x * 100.0).round_ties_even() / 100.0;
    }
    format!("{x:.2}").parse().expect("a number that was printed")
}

/// Pairwise summation as in numpy: eight partial sums, up to 128 numbers at a time.
fn sum(values: &[f64]) -> f64 {
    match values.len() {
        0..8 => values.iter().sum(),
        8..=128 => {
            let whole = values.len() / 8 * 8;
            let mut r = [0.0; 8];
            values[..whole].iter().enumerate().for_each(|(bin_index, x)| r[bin_index % 8] += x);
            let eight = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
            values[whole..].iter().fold(eight, |sum, x| sum + x)
        }
        length => {
            let half = length / 2 / 8 * 8;
            sum(&values[..half]) + sum(&values[half..])
        }
    }
}
