//! The passes between two matrix products, there and back. Plain loops, compiled for several
//! instruction sets; `pulp` chooses one by what the CPU has.

use pulp::Arch;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rten_gemm::{BiasVector, GemmExecutor, GemmInputA, GemmInputB, GemmOptions};
use rten_simd::SimdUnaryOp;
use rten_tensor::NdTensorView;
use rten_vecmath::{Erf, Exp, Tanh};

use candle_transformers::models::bert::HiddenAct;

/// Independent sums of a reduction: floats may not be reordered by the compiler, so the code does it.
const LANES: usize = 16;

/// A matrix somewhere in a slice.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    data: &'a [f32],
    shape: [usize; 2],
    strides: [usize; 2],
}

impl<'a> Matrix<'a> {
    /// Rows of `width` values.
    pub fn rows(data: &'a [f32], width: usize) -> Self {
        Self { data, shape: [data.len() / width, width], strides: [width, 1] }
    }

    /// `n_columns` columns from `begin` on of rows of `width` values.
    pub fn columns(data: &'a [f32], width: usize, begin: usize, n_columns: usize) -> Self {
        let shape = [data.len() / width, n_columns];
        Self { data: &data[begin..], shape, strides: [width, 1] }
    }

    /// Rows as columns.
    pub fn t(self) -> Self {
        let ([n_rows, n_columns], [down, right]) = (self.shape, self.strides);
        Self { data: self.data, shape: [n_columns, n_rows], strides: [right, down] }
    }

    fn view(self) -> NdTensorView<'a, f32, 2> {
        NdTensorView::from_data_with_strides(self.shape, self.data, self.strides)
            .expect("the columns lie inside their rows")
    }
}

/// Matrix products, by the kernels for this CPU.
#[derive(Default)]
pub struct Products(GemmExecutor<f32, f32, f32>);

impl Products {
    /// `out = alpha * a @ b + beta * out`
    pub fn multiply(&self, out: &mut [f32], a: Matrix, b: Matrix, alpha: f32, beta: f32) {
        let options = GemmOptions { alpha, beta, ..GemmOptions::default() };
        self.run(out, a, b, options);
    }

    /// `a @ b`, and `bias` on each row.
    pub fn multiply_add(&self, a: Matrix, b: Matrix, bias: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; a.shape[0] * b.shape[1]];
        let bias = Some(BiasVector::Row(bias));
        self.run(&mut out, a, b, GemmOptions { bias, ..GemmOptions::default() });
        out
    }

    fn run(&self, out: &mut [f32], a: Matrix, b: Matrix, options: GemmOptions<f32, f32, f32>) {
        let (a, b) = (GemmInputA::Unpacked(a.view()), GemmInputB::Unpacked(b.view()));
        self.0.gemm(out, a, b, options).expect("the shapes agree by construction");
    }
}

/// What the way back through a layer norm needs.
pub struct Normed {
    /// The rows with mean 0 and variance 1.
    unit: Vec<f32>,
    /// One over each row's deviation.
    scales: Vec<f32>,
}

/// Each row of `xs` to mean 0 and variance 1, times `weight`, plus `bias`.
pub fn normalize(xs: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) -> Normed {
    let width = weight.len();
    let mut unit = vec![0.0; xs.len()];
    let mut scales = vec![0.0; xs.len() / width];
    Arch::new().dispatch(
        #[inline(always)]
        || {
            let rows = xs.chunks_exact_mut(width).zip(unit.chunks_exact_mut(width));
            for ((xs, unit), to_scale) in rows.zip(&mut scales) {
                let mean = sum(xs, xs, |x, _| x) / width as f32;
                let variance = sum(xs, xs, |x, _| (x - mean) * (x - mean)) / width as f32;
                let scale = 1.0 / (variance + eps).sqrt();
                *to_scale = scale;
                for at in 0..width {
                    unit[at] = (xs[at] - mean) * scale;
                    xs[at] = unit[at] * weight[at] + bias[at];
                }
            }
        },
    );
    Normed { unit, scales }
}

/// The slope at what was normalised, in place of the slope `ds` at the result; adds to those of weight
/// and bias.
pub fn normalize_back(
    ds: &mut [f32],
    normed: &Normed,
    weight: &[f32],
    d_weight: &mut [f32],
    d_bias: &mut [f32],
) {
    let width = weight.len();
    Arch::new().dispatch(
        #[inline(always)]
        || {
            let rows = ds.chunks_exact_mut(width).zip(normed.unit.chunks_exact(width));
            for ((ds, unit), scale) in rows.zip(&normed.scales) {
                for at in 0..width {
                    d_weight[at] += ds[at] * unit[at];
                    d_bias[at] += ds[at];
                    ds[at] *= weight[at];
                }
                let mean = sum(ds, ds, |d, _| d) / width as f32;
                let along = sum(ds, unit, |d, u| d * u) / width as f32;
                for at in 0..width {
                    ds[at] = scale * (ds[at] - mean - unit[at] * along);
                }
            }
        },
    );
}

#[inline(always)]
fn sum(xs: &[f32], ys: &[f32], of: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (xs_chunks, ys_chunks) = (xs.chunks_exact(LANES), ys.chunks_exact(LANES));
    let rest = xs_chunks.remainder().iter().zip(ys_chunks.remainder());
    for (xs, ys) in xs_chunks.zip(ys_chunks) {
        for lane in 0..LANES {
            lanes[lane] += of(xs[lane], ys[lane]);
        }
    }
    lanes.into_iter().chain(rest.map(|(x, y)| of(*x, *y))).sum()
}

/// `xs` through the activation in place; returns its slope at each value.
pub fn activate(xs: &mut [f32], act: HiddenAct) -> Vec<f32> {
    use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_PI};
    const CUBE: f32 = 0.044_715;
    let mut slopes = vec![0.0; xs.len()];
    // A part at a time, so that what one loop leaves the next finds in the cache.
    const PART: usize = 2048;
    let mut bells = [0.0; PART];
    for (xs, slopes) in xs.chunks_mut(PART).zip(slopes.chunks_mut(PART)) {
        let bells = &mut bells[..xs.len()];
        match act {
            HiddenAct::Gelu => {
                each(slopes, xs, |_, x| x * FRAC_1_SQRT_2);
                Erf {}.map_mut(slopes);
                each(bells, xs, |_, x| -0.5 * x * x);
                Exp {}.map_mut(bells);
                // The density and the distribution of the normal law.
                const DENSITY: f32 = 0.398_942_3;
                each(slopes, xs, |erf, _| 0.5 * (1.0 + erf));
                each(bells, xs, |bell, x| DENSITY * bell * x);
                each(xs, slopes, |x, below| x * below);
                each(slopes, bells, |below, bell| below + bell);
            }
            HiddenAct::GeluApproximate => {
                let root = FRAC_2_PI.sqrt();
                each(bells, xs, |_, x| root * (x + CUBE * x * x * x));
                Tanh {}.map_mut(bells);
                each(slopes, xs, |_, x| root * (1.0 + 3.0 * CUBE * x * x) * 0.5 * x);
                each(slopes, bells, |slope, tanh| 0.5 * (1.0 + tanh) + slope * (1.0 - tanh * tanh));
                each(xs, bells, |x, tanh| 0.5 * x * (1.0 + tanh));
            }
            HiddenAct::Relu => {
                each(slopes, xs, |_, x| if x > 0.0 { 1.0 } else { 0.0 });
                each(xs, slopes, |x, slope| x * slope);
            }
        }
    }
    slopes
}

/// `to = of(to, by)`, value by value.
pub fn each(to: &mut [f32], by: &[f32], of: impl Fn(f32, f32) -> f32) {
    Arch::new().dispatch(
        #[inline(always)]
        || to.iter_mut().zip(by).for_each(|(to, &by)| *to = of(*to, by)),
    );
}

/// Adds each row of `xs` to `sums`.
pub fn add_rows(sums: &mut [f32], xs: &[f32]) {
    let width = sums.len();
    Arch::new().dispatch(
        #[inline(always)]
        || {
            for row in xs.chunks_exact(width) {
                sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
            }
        },
    );
}

/// The slope at the scores in place of the slope `ds` at their softmax `probabilities`, row by row.
pub fn softmax_back(ds: &mut [f32], probabilities: &[f32], width: usize) {
    Arch::new().dispatch(
        #[inline(always)]
        || {
            for (ds, ps) in ds.chunks_exact_mut(width).zip(probabilities.chunks_exact(width)) {
                let along = sum(ds, ps, |d, p| d * p);
                ds.iter_mut().zip(ps).for_each(|(d, p)| *d = p * (*d - along));
            }
        },
    );
}

/// Seeded dropout.
pub struct Dropout {
    probability: f32,
    rng: ChaCha8Rng,
    draws: Vec<u16>,
}

impl Dropout {
    /// Dropout that zeroes each value with `probability`.
    pub fn new(probability: f32, seed: u64) -> Self {
        Self { probability, rng: ChaCha8Rng::seed_from_u64(seed), draws: Vec::new() }
    }

    /// Drops some of `xs` and makes up for it in the others; returns what each was multiplied by.
    pub fn apply(&mut self, xs: &mut [f32]) -> Vec<f32> {
        if self.probability <= 0.0 {
            return vec![1.0; xs.len()];
        }
        let threshold = (f64::from(self.probability) * 65536.0) as u16;
        let scale = 1.0 / (1.0 - self.probability);
        self.draws.resize(xs.len(), 0);
        self.rng.fill(self.draws.as_mut_slice());
        let kept = self.draws.iter().map(|&it| if it < threshold { 0.0 } else { scale });
        let kept: Vec<f32> = kept.collect();
        each(xs, &kept, |x, kept| x * kept);
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropout_is_seeded_and_keeps_the_mean() {
        let draw = |seed| {
            let mut ones = vec![1.0; 10_000];
            Dropout::new(0.25, seed).apply(&mut ones);
            ones
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        let mean = draw(1).iter().sum::<f32>() / 10_000.0;
        assert!((mean - 1.0).abs() < 0.05, "{mean}");
    }

    #[test]
    fn slopes_are_those_of_the_activation() {
        for act in [HiddenAct::Gelu, HiddenAct::GeluApproximate, HiddenAct::Relu] {
            let at = |shift: f32| -> Vec<f32> {
                let mut xs: Vec<f32> = (0..80).map(|it| it as f32 * 0.1 - 3.95 + shift).collect();
                activate(&mut xs, act);
                xs
            };
            let mut xs: Vec<f32> = (0..80).map(|it| it as f32 * 0.1 - 3.95).collect();
            let slopes = activate(&mut xs, act);
            for (idx, (above, below)) in at(1e-2).iter().zip(at(-1e-2)).enumerate() {
                let expected = (above - below) / 2e-2;
                assert!((slopes[idx] - expected).abs() < 1e-3, "{act:?} {idx}: {expected}");
            }
        }
    }
}
