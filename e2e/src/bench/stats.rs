//! Quantiles, and how sure a ratio of two medians is. Pure.

use serde::Serialize;

use crate::dice::Dice;

/// Samples drawn for an interval.
const RESAMPLES: usize = 2000;
/// Fewer rounds than this give no interval.
const FEWEST_ROUNDS: usize = 3;

/// A ratio with the interval that holds it in 95 of 100 cases.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ratio {
    /// Median over rounds of this contestant divided by that of the reference.
    pub point: f64,
    /// Lower end; the point itself where there were too few rounds.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// The value below which the fraction `q` of `values` lies, interpolated; 0 of nothing.
#[must_use]
pub fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let at = q.clamp(0.0, 1.0) * last as f64;
    let below = at.floor() as usize;
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * (at - below as f64)
}

/// The middle value.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// Compares rounds that were measured in turn: the same index is the same time on the machine, so rounds are drawn
/// in pairs (percentile bootstrap, reproducible).
#[must_use]
pub fn ratio(reference: &[f64], own: &[f64]) -> Option<Ratio> {
    let rounds = reference.len().min(own.len());
    let of = |picks: &[usize]| {
        let choose = |from: &[f64]| median(&picks.iter().map(|&at| from[at]).collect::<Vec<_>>());
        let (base, value) = (choose(reference), choose(own));
        (base > 0.0).then(|| value / base)
    };
    let point = of(&(0..rounds).collect::<Vec<_>>())?;
    if rounds < FEWEST_ROUNDS {
        return Some(Ratio { point, low: point, high: point });
    }
    let mut dice = Dice::new(0x5eed);
    let draw = |_| of(&(0..rounds).map(|_| dice.below(rounds)).collect::<Vec<_>>());
    let drawn: Vec<f64> = (0..RESAMPLES).filter_map(draw).collect();
    Some(Ratio { point, low: quantile(&drawn, 0.025), high: quantile(&drawn, 0.975) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_interpolated() {
        let check =
            |values: &[f64], q: f64, expect: f64| assert_eq!(quantile(values, q), expect, "{values:?} {q}");
        check(&[], 0.5, 0.0);
        check(&[7.0], 0.99, 7.0);
        check(&[3.0, 1.0, 2.0], 0.5, 2.0);
        check(&[1.0, 2.0], 0.5, 1.5);
        check(&[0.0, 10.0], 0.9, 9.0);
        check(&[1.0, 2.0], 7.0, 2.0);
    }

    #[test]
    fn a_ratio_lies_in_its_interval() {
        let exact = ratio(&[10.0, 10.0, 10.0], &[2.0, 2.0, 2.0]).unwrap();
        assert_eq!(exact, Ratio { point: 0.2, low: 0.2, high: 0.2 });
        let noisy = ratio(&[10.0, 12.0, 9.0, 14.0, 10.0], &[2.0, 2.5, 1.5, 4.0, 2.0]).unwrap();
        assert!(noisy.low < noisy.point && noisy.point < noisy.high, "{noisy:?}");
        assert_eq!(ratio(&[10.0], &[5.0]).unwrap(), Ratio { point: 0.5, low: 0.5, high: 0.5 });
    }

    #[test]
    fn nothing_is_compared_with_nothing() {
        assert_eq!(ratio(&[], &[1.0]), None);
        assert_eq!(ratio(&[0.0, 0.0, 0.0], &[1.0, 1.0, 1.0]), None);
    }
}
