//! The published reduction of a run: how much of the cards is allocated by the time so much has arrived.
//!
//! Percentages of all cards; each request counts at its arrival rounded to a whole per cent, and the value there is the
//! mean of what was allocated, with two decimals. Rounding and summing are those of the published evaluation (numpy),
//! so that figures can be compared digit for digit.

/// Last whole per cent of arrivals that is told.
pub const LAST_PERCENT: usize = 130;

/// After one request: thousandths of cards that arrived, and that are allocated.
pub type Point = (u64, u64);

/// Allocated per cent at each whole per cent arrived, 0..=[`LAST_PERCENT`]; none where nothing arrived nearby.
#[must_use]
pub fn curve(points: &[Point], cards: u64) -> Vec<Option<f64>> {
    let percent = |milli: u64| milli as f64 / cards as f64 / 10.0;
    let mut bins: Vec<Vec<f64>> = vec![Vec::new(); LAST_PERCENT + 2];
    for &(arrived, allocated) in points {
        let at = percent(arrived).round_ties_even() as usize;
        if let Some(bin) = bins.get_mut(at) {
            bin.push(two_decimals(percent(allocated)));
        }
    }
    let value = |x: usize| {
        let near = if bins[x].is_empty() { &bins[x.saturating_sub(1)..=x + 1] } else { &bins[x..=x] };
        // Arrivals only grow, so neighbours stand in the order of arrival.
        let all = near.concat();
        (!all.is_empty()).then(|| (sum(&all) / all.len() as f64 * 100.0).round_ties_even() / 100.0)
    };
    (0..=LAST_PERCENT).map(value).collect()
}

/// Correctly rounded to two decimals, halves to the even one.
fn two_decimals(x: f64) -> f64 {
    let eighths = x * 8.0;
    // The only numbers that a double holds exactly between two of two decimals are odd eighths.
    if eighths.fract() == 0.0 && eighths % 2.0 != 0.0 {
        return (x * 100.0).round_ties_even() / 100.0;
    }
    format!("{x:.2}").parse().expect("a number that was printed")
}

/// Pairwise summation as numpy does it: eight sums side by side, up to 128 numbers at a time.
fn sum(all: &[f64]) -> f64 {
    match all.len() {
        0..8 => all.iter().sum(),
        8..=128 => {
            let whole = all.len() / 8 * 8;
            let mut r = [0.0; 8];
            all[..whole].iter().enumerate().for_each(|(at, x)| r[at % 8] += x);
            let eight = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
            all[whole..].iter().fold(eight, |sum, x| sum + x)
        }
        many => {
            let half = many / 2 / 8 * 8;
            sum(&all[..half]) + sum(&all[half..])
        }
    }
}
