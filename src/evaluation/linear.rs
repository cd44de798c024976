//! What training a linear model over sparse rows needs: the gradient's sums and L-BFGS, on all cores
//! and the same on every run.
//!
//! Source: Nocedal and Wright, *Numerical Optimization*, algorithm 7.4, with backtracking line search.

use std::collections::VecDeque;

use rayon::prelude::*;

const MAX_ITERATIONS: usize = 100;
const LBFGS_MEMORY: usize = 6;
/// Vectors are worked on in parts of this many numbers, and sums of parts added in order.
const PART: usize = 1 << 14;

/// Ascending columns with their values.
pub type SparseRow = Vec<(u32, f32)>;

/// Sparse rows by columns: each column can then be summed on its own, without locks.
pub struct Columns {
    /// Where each column's entries begin, and the end.
    begins: Vec<usize>,
    /// Rows with their values, ascending in each column.
    entries: Vec<(u32, f32)>,
}

impl Columns {
    /// # Panics
    /// When a row has a column of `n_columns` or above.
    pub fn of(rows: &[SparseRow], n_columns: usize) -> Self {
        let mut begins = vec![0; n_columns + 1];
        rows.iter().flatten().for_each(|it| begins[it.0 as usize + 1] += 1);
        for at in 0..n_columns {
            begins[at + 1] += begins[at];
        }
        let mut entries = vec![(0, 0.0); begins[n_columns]];
        let mut next = begins.clone();
        for (number, row) in rows.iter().enumerate() {
            for &(column, value) in row {
                let slot = &mut next[column as usize];
                entries[*slot] = (number as u32, value);
                *slot += 1;
            }
        }
        Self { begins, entries }
    }

    /// Adds to `sums` `(columns + 1, outputs)` the products of each column with `errors`
    /// `(rows, outputs)`, row by row; the last is the intercept's, where every row has 1.
    pub fn add_products(&self, errors: &[f32], sums: &mut [f32]) {
        let n_columns = self.begins.len() - 1;
        let n_outputs = sums.len() / (n_columns + 1);
        let (slopes, intercepts) = sums.split_at_mut(n_columns * n_outputs);
        for error in errors.chunks_exact(n_outputs) {
            intercepts.iter_mut().zip(error).for_each(|(slot, error)| *slot += error);
        }
        let per_part = (PART / n_outputs).max(1);
        slopes.par_chunks_mut(per_part * n_outputs).enumerate().for_each(|(part, slopes)| {
            let bounds = self.begins[part * per_part..].windows(2);
            for (slots, bound) in slopes.chunks_exact_mut(n_outputs).zip(bounds) {
                for &(row, value) in &self.entries[bound[0]..bound[1]] {
                    let error = &errors[row as usize * n_outputs..][..n_outputs];
                    slots.iter_mut().zip(error).for_each(|(slot, error)| *slot += value * error);
                }
            }
        });
    }
}

/// The lowest point L-BFGS finds from `point`; `objective` gives value and gradient.
pub fn minimize(mut point: Vec<f32>, objective: impl Fn(&[f32]) -> (f64, Vec<f32>)) -> Vec<f32> {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        let parts: Vec<f64> = a
            .par_chunks(PART)
            .zip(b.par_chunks(PART))
            .map(|(a, b)| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum())
            .collect();
        parts.iter().sum()
    };
    let axpy = |to: &mut [f32], scale: f64, by: &[f32]| {
        to.par_chunks_mut(PART).zip(by.par_chunks(PART)).for_each(|(to, by)| {
            to.iter_mut().zip(by).for_each(|(to, by)| *to += scale as f32 * by);
        });
    };
    let difference = |a: &[f32], b: &[f32]| -> Vec<f32> {
        a.par_iter().zip(b).with_min_len(PART).map(|(a, b)| a - b).collect()
    };
    let (mut value, mut gradient) = objective(&point);
    // Steps, changes of the gradient, and one over their product; newest last.
    let mut memory: VecDeque<(Vec<f32>, Vec<f32>, f64)> = VecDeque::new();
    for _ in 0..MAX_ITERATIONS {
        let mut direction = gradient.clone();
        let mut alphas = Vec::new();
        for (step, change, rho) in memory.iter().rev() {
            let alpha = rho * dot(step, &direction);
            axpy(&mut direction, -alpha, change);
            alphas.push(alpha);
        }
        let scale = memory.back().map_or_else(
            || 1.0 / dot(&gradient, &gradient).sqrt().max(1e-12),
            |(_, change, rho)| 1.0 / (rho * dot(change, change)),
        );
        direction.par_iter_mut().with_min_len(PART).for_each(|it| *it *= scale as f32);
        for ((step, change, rho), alpha) in memory.iter().zip(alphas.iter().rev()) {
            let beta = rho * dot(change, &direction);
            axpy(&mut direction, alpha - beta, step);
        }
        let slope = -dot(&gradient, &direction);
        let mut length = 1.0;
        let (next, next_value, next_gradient) = loop {
            let mut next = point.clone();
            axpy(&mut next, -length, &direction);
            let (next_value, next_gradient) = objective(&next);
            if next_value <= value + 1e-4 * length * slope || length < 1e-6 {
                break (next, next_value, next_gradient);
            }
            length *= 0.5;
        };
        let gain = value - next_value;
        let step = difference(&next, &point);
        let change = difference(&next_gradient, &gradient);
        let curvature = dot(&step, &change);
        if gain <= 0.0 {
            break;
        }
        (point, gradient) = (next, next_gradient);
        let is_done = gain < 1e-6 * value.abs();
        value = next_value;
        if is_done {
            break;
        }
        if curvature > 1e-12 {
            if memory.len() == LBFGS_MEMORY {
                memory.pop_front();
            }
            memory.push_back((step, change, 1.0 / curvature));
        }
    }
    point
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minimize_finds_the_minimum_of_a_stretched_bowl() {
        let bowl = |x: &[f32]| {
            let scale = |idx: usize| 1.0 + idx as f32 * 10.0;
            let value: f32 =
                x.iter().enumerate().map(|(idx, it)| scale(idx) * (it - 1.0).powi(2)).sum();
            let gradient =
                x.iter().enumerate().map(|(idx, it)| 2.0 * scale(idx) * (it - 1.0)).collect();
            (f64::from(value), gradient)
        };
        for it in minimize(vec![0.0; 8], bowl) {
            assert!((it - 1.0).abs() < 0.01, "{it}");
        }
    }

    #[test]
    fn columns_hold_every_product_once() {
        let rows = [vec![(0, 1.0), (2, 2.0)], vec![], vec![(2, 3.0)]];
        let errors = [1.0, 10.0, 2.0, 20.0, 3.0, 30.0];
        let mut sums = [0.5; 8];
        Columns::of(&rows, 3).add_products(&errors, &mut sums);
        assert_eq!(sums, [1.5, 10.5, 0.5, 0.5, 11.5, 110.5, 6.5, 60.5]);
    }
}
