//! What no library does for us: the passes over activations between two matrix products.
//!
//! Plain loops, compiled for several instruction sets; `pulp` chooses one by what the CPU has.

use pulp::Arch;

/// Independent sums of a reduction: floats may not be reordered by the compiler, so the code does it.
const LANES: usize = 16;

/// Rows of `xs` (`width` values each) as unsigned bytes: `x = (byte - zero_point) * scale`.
///
/// Each row has its own scale and zero point; zero is exact. A row of zeros gets scale 0.
pub fn quantize(
    xs: &[f32],
    width: usize,
    bytes: &mut [u8],
    scales: &mut [f32],
    zero_points: &mut [i32],
) {
    Arch::new().dispatch(
        #[inline(always)]
        || {
            let rows = xs.chunks_exact(width).zip(bytes.chunks_exact_mut(width));
            let params = scales.iter_mut().zip(zero_points.iter_mut());
            for ((row, bytes), (scale, zero_point)) in rows.zip(params) {
                let (low, high) = range(row);
                let span = high - low;
                let inverse = if span > 0.0 { 255.0 / span } else { 0.0 };
                let zero = (-low * inverse).round_ties_even();
                (*scale, *zero_point) = (span / 255.0, zero as i32);
                for (byte, x) in bytes.iter_mut().zip(row) {
                    // 1.5 * 2^23: adding it rounds to a whole number, which is then in the low bits.
                    const ROUND: f32 = 12_582_912.0;
                    let shifted = (x * inverse + zero).clamp(0.0, 255.0) + ROUND;
                    *byte = shifted.to_bits() as u8;
                }
            }
        },
    );
}

/// Least and greatest value of `row` and zero.
#[inline(always)]
fn range(row: &[f32]) -> (f32, f32) {
    let (mut low, mut high) = ([0.0_f32; LANES], [0.0_f32; LANES]);
    let chunks = row.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for lane in 0..LANES {
            low[lane] = if chunk[lane] < low[lane] { chunk[lane] } else { low[lane] };
            high[lane] = if chunk[lane] > high[lane] { chunk[lane] } else { high[lane] };
        }
    }
    let all = |lanes: [f32; LANES], better: fn(f32, f32) -> f32| {
        lanes.into_iter().chain(rest.iter().copied()).fold(0.0, better)
    };
    (all(low, f32::min), all(high, f32::max))
}

/// Whole numbers of a linear layer beside its packed weights, one of each per output.
pub struct Columns {
    /// What one step of the weight is worth.
    pub scales: Vec<f32>,
    /// Sum of the weights, in steps.
    pub sums: Vec<i32>,
    /// Added at the end.
    pub bias: Vec<f32>,
}

/// Sums of products of bytes and weights back to floats:
/// `(sum - zero_point * column sum) * row scale * column scale + bias`.
pub fn dequantize(
    sums: &[i32],
    row_scales: &[f32],
    zero_points: &[i32],
    columns: &Columns,
    out: &mut [f32],
) {
    let Columns { scales, sums: column_sums, bias } = columns;
    let width = bias.len();
    Arch::new().dispatch(
        #[inline(always)]
        || {
            let rows = sums.chunks_exact(width).zip(out.chunks_exact_mut(width));
            for ((sums, out), (row_scale, zero_point)) in
                rows.zip(row_scales.iter().zip(zero_points))
            {
                let columns = scales.iter().zip(column_sums).zip(bias);
                for ((out, sum), ((scale, column_sum), bias)) in
                    out.iter_mut().zip(sums).zip(columns)
                {
                    let sum = sum - zero_point * column_sum;
                    *out = sum as f32 * (row_scale * scale) + bias;
                }
            }
        },
    );
}

/// `xs += ys`, then each row of `xs` to mean 0 and variance 1, times `weight`, plus `bias`.
pub fn add_and_normalize(xs: &mut [f32], ys: &[f32], weight: &[f32], bias: &[f32], eps: f32) {
    let width = weight.len();
    Arch::new().dispatch(
        #[inline(always)]
        || {
            for (xs, ys) in xs.chunks_exact_mut(width).zip(ys.chunks_exact(width)) {
                xs.iter_mut().zip(ys).for_each(|(x, y)| *x += y);
                let mean = sum(xs, |x| x) / width as f32;
                let variance = sum(xs, |x| (x - mean) * (x - mean)) / width as f32;
                let scale = 1.0 / (variance + eps).sqrt();
                for ((x, weight), bias) in xs.iter_mut().zip(weight).zip(bias) {
                    *x = (*x - mean) * scale * weight + bias;
                }
            }
        },
    );
}

#[inline(always)]
fn sum(xs: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let chunks = xs.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] += of(chunk[lane]);
        }
    }
    lanes.into_iter().chain(rest.iter().map(|x| of(*x))).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn quantize_is_within_half_a_step(
            rows in prop::collection::vec(prop::collection::vec(-50.0_f32..50.0, 37), 1..4)
        ) {
            let xs = rows.concat();
            let (mut bytes, mut scales, mut zero_points) =
                (vec![0; xs.len()], vec![0.0; rows.len()], vec![0; rows.len()]);
            quantize(&xs, 37, &mut bytes, &mut scales, &mut zero_points);
            for (at, (x, byte)) in xs.iter().zip(&bytes).enumerate() {
                let row = at / 37;
                let back = (f32::from(*byte) - zero_points[row] as f32) * scales[row];
                // Half a step for the value and half a step for the zero point.
                prop_assert!((x - back).abs() <= scales[row] * 1.01, "{x} {back}");
            }
        }

        #[test]
        fn normalize_gives_mean_and_variance(xs in prop::collection::vec(-9.0_f32..9.0, 40)) {
            prop_assume!(xs.iter().any(|x| (x - xs[0]).abs() > 0.1));
            let mut out = xs.clone();
            add_and_normalize(&mut out, &[1.0; 40], &[2.0; 40], &[0.5; 40], 1e-12);
            let mean = out.iter().sum::<f32>() / 40.0;
            let variance = out.iter().map(|x| (x - 0.5) * (x - 0.5)).sum::<f32>() / 40.0;
            prop_assert!((mean - 0.5).abs() < 1e-3 && (variance - 4.0).abs() < 1e-2);
        }
    }

    #[test]
    fn dequantize_takes_the_zero_point_out() {
        // Two rows of bytes around zero points 3 and 0, weights (2, -1) and (1, 1).
        let columns = Columns { scales: vec![0.5, 2.0], sums: vec![1, 2], bias: vec![0.25, -0.25] };
        let sums = [5 * 2 - 4, 5 + 4, 2 - 7, 1 + 7];
        let mut out = [9.0; 4];
        dequantize(&sums, &[0.1, 1.0], &[3, 0], &columns, &mut out);
        let expected = [3.0 * 0.05 + 0.25, 3.0 * 0.2 - 0.25, -5.0 * 0.5 + 0.25, 8.0 * 2.0 - 0.25];
        for (actual, expected) in out.iter().zip(expected) {
            assert!((actual - expected).abs() < 1e-5, "{out:?}");
        }
    }

    #[test]
    fn a_row_of_zeros_stays_zero() {
        let (mut bytes, mut scales, mut zero_points) = ([9; 20], [9.0], [9]);
        quantize(&[0.0; 20], 20, &mut bytes, &mut scales, &mut zero_points);
        assert_eq!((bytes, scales, zero_points), ([0; 20], [0.0], [0]));
    }
}
