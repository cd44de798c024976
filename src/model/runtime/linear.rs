//! Linear layers over packed weights, in f32 or in whole numbers.

use std::slice::from_mut;

use candle_core::{Result, Tensor};
use rten_gemm::{BiasVector, GemmExecutor, GemmInputA, GemmInputB, GemmOptions, PackedBMatrix};
use rten_tensor::NdTensorView;

use super::kernels::{self, Columns};
use crate::model::weights::Weights;

/// Largest weight in whole numbers. Seven bits: without VNNI, x86 CPUs add two products of an
/// unsigned byte and a signed one in 16 bits, and 2 * 255 * 63 still fits. One range for all CPUs, so
/// that a text scores the same on each.
const MAX_WEIGHT: f32 = 63.0;

/// How matrix products are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// As trained; the reference.
    F32,
    /// Weights of 7 bits with a scale per output, activations of 8 bits with a scale per token.
    #[default]
    Int8,
}

/// Kernels for this CPU, chosen once.
#[derive(Default)]
pub struct Products {
    f32: GemmExecutor<f32, f32, f32>,
    int8: GemmExecutor<u8, i8, i32>,
}

impl Products {
    /// `out = alpha * a @ b`.
    pub fn matmul(
        &self,
        out: &mut [f32],
        a: NdTensorView<'_, f32, 2>,
        b: NdTensorView<'_, f32, 2>,
        alpha: f32,
    ) {
        let options = GemmOptions { alpha, ..GemmOptions::default() };
        self.f32
            .gemm(out, GemmInputA::Unpacked(a), GemmInputB::Unpacked(b), options)
            .expect("the shapes agree by construction");
    }
}

/// The first `n` values of `buffer`. It never shrinks: filling what is overwritten anyway takes time.
pub fn room<T: Clone + Default>(buffer: &mut Vec<T>, n: usize) -> &mut [T] {
    if buffer.len() < n {
        buffer.resize(n, T::default());
    }
    &mut buffer[..n]
}

/// Activations ready to be multiplied, by one layer or several.
#[derive(Default)]
pub struct Input {
    n_rows: usize,
    width: usize,
    /// As given; empty in whole numbers.
    values: Vec<f32>,
    bytes: Vec<u8>,
    scales: Vec<f32>,
    zero_points: Vec<i32>,
    /// A product in whole numbers, and a row of it as floats.
    sums: Vec<i32>,
    row: Vec<f32>,
}

impl Input {
    /// Takes rows of `width` values.
    pub fn set(&mut self, xs: &[f32], width: usize, precision: Precision) {
        (self.n_rows, self.width) = (xs.len() / width, width);
        match precision {
            Precision::F32 => {
                self.values.clear();
                self.values.extend_from_slice(xs);
            }
            Precision::Int8 => {
                let bytes = room(&mut self.bytes, xs.len());
                let scales = room(&mut self.scales, self.n_rows);
                let zero_points = room(&mut self.zero_points, self.n_rows);
                kernels::quantize(xs, width, bytes, scales, zero_points);
            }
        }
    }
}

/// `(n_in)` to `(n_out)`.
pub enum Linear {
    /// As trained.
    F32 {
        /// Packed weights.
        weight: PackedBMatrix<f32>,
        /// One per output.
        bias: Vec<f32>,
    },
    /// In whole numbers.
    Int8 {
        /// Packed weights.
        weight: PackedBMatrix<i8>,
        /// What brings a sum back to a float.
        columns: Columns,
    },
}

impl Linear {
    /// The layers called `names`, side by side: one product instead of several. Each comes with its
    /// `n_out`.
    ///
    /// # Errors
    /// When a tensor is missing or misshapen; it is named.
    pub fn load(
        weights: &Weights,
        names: &[(String, usize)],
        n_in: usize,
        products: &Products,
        precision: Precision,
    ) -> Result<Self> {
        let (mut weight, mut bias) = (Vec::new(), Vec::new());
        for (name, n_out) in names {
            weight.extend(values(&weights.get(&format!("{name}.weight"), &[*n_out, n_in])?)?);
            bias.extend(values(&weights.get(&format!("{name}.bias"), &[*n_out])?)?);
        }
        let shape = [bias.len(), n_in];
        Ok(match precision {
            Precision::F32 => {
                let matrix = NdTensorView::from_data(shape, weight.as_slice());
                Self::F32 { weight: products.f32.prepack_b(matrix.transposed()), bias }
            }
            Precision::Int8 => {
                let (whole, scales) = whole_numbers(&weight, n_in);
                let sums = whole
                    .chunks_exact(n_in)
                    .map(|row| row.iter().map(|it| i32::from(*it)).sum())
                    .collect();
                let matrix = NdTensorView::from_data(shape, whole.as_slice());
                Self::Int8 {
                    weight: products.int8.prepack_b(matrix.transposed()),
                    columns: Columns { scales, sums, bias },
                }
            }
        })
    }

    /// Rows of `input` to rows of `n_out`, which lie in `out`.
    pub fn forward<'a>(
        &self,
        input: &mut Input,
        products: &Products,
        out: &'a mut Vec<f32>,
    ) -> &'a mut [f32] {
        match self {
            Self::F32 { weight, bias } => {
                let out = room(out, input.n_rows * bias.len());
                exact_product(input, products, weight, bias, out);
                out
            }
            Self::Int8 { weight, columns } => {
                let out = room(out, input.n_rows * columns.bias.len());
                whole_product(input, products, weight, columns);
                let Input { sums, scales, zero_points, n_rows, .. } = input;
                let (scales, zero_points) = (&scales[..*n_rows], &zero_points[..*n_rows]);
                kernels::dequantize(&sums[..out.len()], scales, zero_points, columns, out);
                out
            }
        }
    }

    /// `input` becomes this layer's output, each row changed by `activate`; row by row, so that a wide
    /// one never leaves the innermost cache as floats.
    pub fn forward_within(
        &self,
        input: &mut Input,
        products: &Products,
        activate: impl Fn(&mut [f32]),
    ) {
        match self {
            Self::F32 { weight, bias } => {
                let mut out = std::mem::take(&mut input.row);
                exact_product(
                    input,
                    products,
                    weight,
                    bias,
                    room(&mut out, input.n_rows * bias.len()),
                );
                out.truncate(input.n_rows * bias.len());
                out.chunks_exact_mut(bias.len()).for_each(activate);
                input.row = std::mem::replace(&mut input.values, out);
                input.width = bias.len();
            }
            Self::Int8 { weight, columns } => {
                whole_product(input, products, weight, columns);
                input.width = columns.bias.len();
                let Input { n_rows, width, bytes, scales, zero_points, sums, row, .. } = input;
                let row = room(row, *width);
                let rows = room(bytes, *n_rows * *width).chunks_exact_mut(*width);
                let params = scales.iter_mut().zip(zero_points);
                for ((bytes, sums), (scale, zero_point)) in
                    rows.zip(sums.chunks_exact(*width)).zip(params)
                {
                    let (scale, zero_point) = (from_mut(scale), from_mut(zero_point));
                    kernels::dequantize(sums, scale, zero_point, columns, row);
                    activate(row);
                    kernels::quantize(row, *width, bytes, scale, zero_point);
                }
            }
        }
    }
}

fn exact_product(
    input: &Input,
    products: &Products,
    weight: &PackedBMatrix<f32>,
    bias: &[f32],
    out: &mut [f32],
) {
    let values = NdTensorView::from_data([input.n_rows, input.width], input.values.as_slice());
    let options = GemmOptions { bias: Some(BiasVector::Row(bias)), ..GemmOptions::default() };
    products
        .f32
        .gemm(out, GemmInputA::Unpacked(values), GemmInputB::Packed(weight), options)
        .expect("the shapes agree by construction");
}

/// Into `input.sums`; the zero points are not yet taken out.
fn whole_product(
    input: &mut Input,
    products: &Products,
    weight: &PackedBMatrix<i8>,
    columns: &Columns,
) {
    let Input { n_rows, width, bytes, sums, .. } = input;
    let bytes = NdTensorView::from_data([*n_rows, *width], &bytes[..*n_rows * *width]);
    // No zero points: rten-gemm 0.27.0 would use those of the first rows for all (`pack_a_impl` indexes
    // them within a panel).
    products
        .int8
        .gemm(
            room(sums, *n_rows * columns.bias.len()),
            GemmInputA::Unpacked(bytes),
            GemmInputB::Packed(weight),
            GemmOptions::default(),
        )
        .expect("the shapes agree by construction");
}

/// Rows of `n_in` weights as whole numbers, and the scale of each row.
fn whole_numbers(weight: &[f32], n_in: usize) -> (Vec<i8>, Vec<f32>) {
    let mut whole = Vec::with_capacity(weight.len());
    let scales = weight
        .chunks_exact(n_in)
        .map(|row| {
            let greatest = row.iter().fold(0.0_f32, |greatest, it| greatest.max(it.abs()));
            let scale = greatest / MAX_WEIGHT;
            let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            whole.extend(row.iter().map(|it| (it * inverse).round_ties_even() as i8));
            scale
        })
        .collect();
    (whole, scales)
}

/// A tensor's values in order.
pub fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}
