//! The body training goes through: the same function as [`super::transformer`], and its slopes, written out.
//!
//! candle's own way back builds a graph of small operations, pads every row to the longest and keeps a
//! dense slope of the whole word table; most of its time is not spent in matrix products. Here rows
//! lie one after the other without padding, the last layer computes each row's first token only, and the
//! word table's slope is that of the words that occur. A test holds every slope to candle's.
//!
//! One call works on one thread; several calls may run side by side. Does not know texts or losses.

mod kernels;
mod parameters;

use rten_simd::{SimdOp, SimdUnaryOp};
use rten_vecmath::{Softmax, Tanh};

use self::kernels::{
    Matrix, Normed, activate, add_rows, each, normalize, normalize_back, softmax_back,
};
use self::parameters::{Layer, Linear, Norm};

pub use self::kernels::Dropout;
pub use self::parameters::{Gradients, Parameters, Trainable, WORDS};

/// Outputs of the three heads for some rows, row by row: types, level thresholds, grounds.
pub type Outputs = [Vec<f32>; 3];

/// What the way back through a layer needs.
struct LayerTape {
    /// States that came in.
    xs: Vec<f32>,
    /// States that ask: all, in the last layer each row's first.
    asking: Option<Vec<f32>>,
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    /// Of each row each head's, one after the other.
    probabilities: Vec<f32>,
    context: Vec<f32>,
    attention_kept: Vec<f32>,
    attention_normed: Normed,
    middle: Vec<f32>,
    active: Vec<f32>,
    slopes: Vec<f32>,
    output_kept: Vec<f32>,
    output_normed: Normed,
}

/// What the way back through the encoder needs.
pub struct Tape {
    ids: Vec<u32>,
    /// Where each row begins, and the end of the last.
    bounds: Vec<usize>,
    embedded_normed: Normed,
    embedded_kept: Vec<f32>,
    layers: Vec<LayerTape>,
    firsts: Vec<f32>,
    /// Pooled vectors, `(rows, hidden)`.
    pub pooled: Vec<f32>,
}

/// What the way back through the heads needs.
pub struct HeadsTape {
    pooled: Vec<f32>,
    kept: Vec<f32>,
    /// What the heads say.
    pub outputs: Outputs,
}

impl Trainable {
    /// Pooled vectors of `rows` of token ids.
    ///
    /// # Panics
    /// When a row is empty, longer than the position table, or has an id beyond the vocabulary.
    pub fn forward(&self, values: &[Vec<f32>], rows: &[&[u32]], dropout: &mut Dropout) -> Tape {
        let hidden = self.hidden;
        let ids = rows.concat();
        let mut bounds = vec![0];
        let mut xs = Vec::with_capacity(ids.len() * hidden);
        let segment = &values[self.segments][..hidden];
        for row in rows {
            let positions = values[self.positions].chunks_exact(hidden);
            assert!(row.len() <= positions.len(), "a row exceeds the position table");
            for (&id, position) in row.iter().zip(positions) {
                let word = &values[self.words][id as usize * hidden..(id as usize + 1) * hidden];
                xs.extend(word.iter().zip(position).zip(segment).map(|((a, b), c)| a + (b + c)));
            }
            bounds.push(xs.len() / hidden);
        }
        let embedded_normed = self.normalize(values, self.norm, &mut xs);
        let embedded_kept = dropout.apply(&mut xs);
        let mut layers = Vec::with_capacity(self.layers.len());
        for (idx, layer) in self.layers.iter().enumerate() {
            let is_last = idx + 1 == self.layers.len();
            let (tape, next) = self.layer(values, layer, xs, &bounds, is_last, dropout);
            layers.push(tape);
            xs = next;
        }
        // Without layers nobody has picked the first tokens yet.
        let firsts = if layers.is_empty() { self.firsts(&xs, &bounds) } else { xs };
        let mut pooled = self.linear(values, self.pooler, &firsts);
        Tanh {}.map_mut(&mut pooled);
        Tape { ids, bounds, embedded_normed, embedded_kept, layers, firsts, pooled }
    }

    /// What the heads say to `pooled` vectors.
    pub fn answer(
        &self,
        values: &[Vec<f32>],
        mut pooled: Vec<f32>,
        dropout: &mut Dropout,
    ) -> HeadsTape {
        let kept = dropout.apply(&mut pooled);
        let outputs = self.heads.map(|head| self.linear(values, head, &pooled));
        HeadsTape { pooled, kept, outputs }
    }

    /// Adds the heads' slopes to `gradients`, given those at their outputs; returns those at the pooled
    /// vectors.
    pub fn answer_back(
        &self,
        values: &[Vec<f32>],
        tape: &HeadsTape,
        slopes: &Outputs,
        gradients: &mut Gradients,
    ) -> Vec<f32> {
        let mut d_pooled = vec![0.0; tape.pooled.len()];
        for (head, slopes) in self.heads.into_iter().zip(slopes) {
            self.linear_back(values, head, &tape.pooled, slopes, gradients, &mut d_pooled);
        }
        each(&mut d_pooled, &tape.kept, |d, kept| d * kept);
        d_pooled
    }

    /// Adds the encoder's slopes to `gradients`, given those at the pooled vectors.
    pub fn back(
        &self,
        values: &[Vec<f32>],
        tape: &Tape,
        mut d_pooled: Vec<f32>,
        gradients: &mut Gradients,
    ) {
        let hidden = self.hidden;
        each(&mut d_pooled, &tape.pooled, |d, tanh| d * (1.0 - tanh * tanh));
        let mut ds = vec![0.0; tape.firsts.len()];
        self.linear_back(values, self.pooler, &tape.firsts, &d_pooled, gradients, &mut ds);
        if tape.layers.is_empty() {
            let mut all = vec![0.0; tape.ids.len() * hidden];
            add_firsts(&mut all, &ds, &tape.bounds, hidden);
            ds = all;
        }
        for (layer, layer_tape) in self.layers.iter().zip(&tape.layers).rev() {
            ds = self.layer_back(values, layer, layer_tape, ds, &tape.bounds, gradients);
        }
        each(&mut ds, &tape.embedded_kept, |d, kept| d * kept);
        self.normalize_back(values, self.norm, &tape.embedded_normed, &mut ds, gradients);
        add_rows(&mut gradients.dense[self.segments][..hidden], &ds);
        for row in tape.bounds.windows(2) {
            let ds = &ds[row[0] * hidden..row[1] * hidden];
            each(&mut gradients.dense[self.positions][..ds.len()], ds, |sum, d| sum + d);
        }
        gradients.words.0.extend_from_slice(&tape.ids);
        gradients.words.1.extend_from_slice(&ds);
    }

    fn layer(
        &self,
        values: &[Vec<f32>],
        layer: &Layer,
        xs: Vec<f32>,
        bounds: &[usize],
        is_last: bool,
        dropout: &mut Dropout,
    ) -> (LayerTape, Vec<f32>) {
        let key = self.linear(values, layer.key, &xs);
        let value = self.linear(values, layer.value, &xs);
        let asking = is_last.then(|| self.firsts(&xs, bounds));
        let askers = asking.as_deref().unwrap_or(&xs);
        let query = self.linear(values, layer.query, askers);
        let (probabilities, context) = self.attend(&query, &key, &value, bounds, is_last);
        let mut middle = self.linear(values, layer.attention_output, &context);
        let attention_kept = dropout.apply(&mut middle);
        each(&mut middle, askers, |y, x| x + y);
        let attention_normed = self.normalize(values, layer.attention_norm, &mut middle);
        let mut active = self.linear(values, layer.intermediate, &middle);
        let slopes = activate(&mut active, self.act);
        let mut next = self.linear(values, layer.output, &active);
        let output_kept = dropout.apply(&mut next);
        each(&mut next, &middle, |y, x| x + y);
        let output_normed = self.normalize(values, layer.output_norm, &mut next);
        let tape = LayerTape {
            xs,
            asking,
            query,
            key,
            value,
            probabilities,
            context,
            attention_kept,
            attention_normed,
            middle,
            active,
            slopes,
            output_kept,
            output_normed,
        };
        (tape, next)
    }

    /// Slopes at a layer's input, given those at its output.
    fn layer_back(
        &self,
        values: &[Vec<f32>],
        layer: &Layer,
        tape: &LayerTape,
        mut ds: Vec<f32>,
        bounds: &[usize],
        gradients: &mut Gradients,
    ) -> Vec<f32> {
        self.normalize_back(values, layer.output_norm, &tape.output_normed, &mut ds, gradients);
        let mut d_middle = ds.clone();
        each(&mut ds, &tape.output_kept, |d, kept| d * kept);
        let mut d_active = vec![0.0; tape.active.len()];
        self.linear_back(values, layer.output, &tape.active, &ds, gradients, &mut d_active);
        each(&mut d_active, &tape.slopes, |d, slope| d * slope);
        let back = (layer.intermediate, &tape.middle, &d_active);
        self.linear_back(values, back.0, back.1, back.2, gradients, &mut d_middle);

        let normed = &tape.attention_normed;
        self.normalize_back(values, layer.attention_norm, normed, &mut d_middle, gradients);
        let mut d_askers = d_middle.clone();
        each(&mut d_middle, &tape.attention_kept, |d, kept| d * kept);
        let mut d_context = vec![0.0; tape.context.len()];
        let back = (layer.attention_output, &tape.context, &d_middle);
        self.linear_back(values, back.0, back.1, back.2, gradients, &mut d_context);
        let [d_query, d_key, d_value] = self.attend_back(tape, &d_context, bounds);

        let askers = tape.asking.as_ref().unwrap_or(&tape.xs);
        self.linear_back(values, layer.query, askers, &d_query, gradients, &mut d_askers);
        let mut d_xs = if tape.asking.is_some() {
            let mut d_xs = vec![0.0; tape.xs.len()];
            add_firsts(&mut d_xs, &d_askers, bounds, self.hidden);
            d_xs
        } else {
            d_askers
        };
        self.linear_back(values, layer.key, &tape.xs, &d_key, gradients, &mut d_xs);
        self.linear_back(values, layer.value, &tape.xs, &d_value, gradients, &mut d_xs);
        d_xs
    }

    /// Attention within each row: the probabilities, and the context of each asking token.
    fn attend(
        &self,
        query: &[f32],
        key: &[f32],
        value: &[f32],
        bounds: &[usize],
        is_last: bool,
    ) -> (Vec<f32>, Vec<f32>) {
        let hidden = self.hidden;
        let size = hidden / self.n_heads;
        let scale = 1.0 / (size as f32).sqrt();
        let mut context = vec![0.0; query.len()];
        let (mut probabilities, mut head) = (Vec::new(), Vec::new());
        for (row_idx, row) in bounds.windows(2).enumerate() {
            let (askers, tokens) = spans(row_idx, row, is_last, hidden);
            let n_tokens = row[1] - row[0];
            let query = &query[askers.clone()];
            let n_asking = query.len() / hidden;
            let out = &mut context[askers];
            for begin in (0..hidden).step_by(size) {
                let part = |it| Matrix::columns(it, hidden, begin, size);
                let at = probabilities.len();
                probabilities.resize(at + n_asking * n_tokens, 0.0);
                let scores = &mut probabilities[at..];
                let keys = part(&key[tokens.clone()]).t();
                self.products.multiply(scores, part(query), keys, scale, 0.0);
                scores.chunks_exact_mut(n_tokens).for_each(|it| {
                    Softmax::new_mut(it).dispatch();
                });
                head.resize(n_asking * size, 0.0);
                let scores = Matrix::rows(scores, n_tokens);
                self.products.multiply(&mut head, scores, part(&value[tokens.clone()]), 1.0, 0.0);
                put(out, &head, begin, hidden, size);
            }
        }
        (probabilities, context)
    }

    /// Slopes at queries, keys and values, given those at the context.
    fn attend_back(&self, tape: &LayerTape, d_context: &[f32], bounds: &[usize]) -> [Vec<f32>; 3] {
        let hidden = self.hidden;
        let size = hidden / self.n_heads;
        let scale = 1.0 / (size as f32).sqrt();
        let mut d_query = vec![0.0; tape.query.len()];
        let (mut d_key, mut d_value) = (vec![0.0; tape.key.len()], vec![0.0; tape.key.len()]);
        let (mut d_scores, mut head) = (Vec::new(), Vec::new());
        let mut rest = tape.probabilities.as_slice();
        for (row_idx, row) in bounds.windows(2).enumerate() {
            let (askers, tokens) = spans(row_idx, row, tape.asking.is_some(), hidden);
            let n_tokens = row[1] - row[0];
            let n_asking = (askers.end - askers.start) / hidden;
            for begin in (0..hidden).step_by(size) {
                let part = |it| Matrix::columns(it, hidden, begin, size);
                let d_out = part(&d_context[askers.clone()]);
                let probabilities;
                (probabilities, rest) = rest.split_at(n_asking * n_tokens);
                d_scores.resize(n_asking * n_tokens, 0.0);
                let values = part(&tape.value[tokens.clone()]).t();
                self.products.multiply(&mut d_scores, d_out, values, 1.0, 0.0);
                softmax_back(&mut d_scores, probabilities, n_tokens);
                head.resize(n_tokens * size, 0.0);
                let probabilities = Matrix::rows(probabilities, n_tokens);
                self.products.multiply(&mut head, probabilities.t(), d_out, 1.0, 0.0);
                put(&mut d_value[tokens.clone()], &head, begin, hidden, size);
                let d_scores = Matrix::rows(&d_scores, n_tokens);
                let queries = part(&tape.query[askers.clone()]);
                self.products.multiply(&mut head, d_scores.t(), queries, scale, 0.0);
                put(&mut d_key[tokens.clone()], &head, begin, hidden, size);
                head.resize(n_asking * size, 0.0);
                let keys = part(&tape.key[tokens.clone()]);
                self.products.multiply(&mut head, d_scores, keys, scale, 0.0);
                put(&mut d_query[askers.clone()], &head, begin, hidden, size);
            }
        }
        [d_query, d_key, d_value]
    }

    fn linear(&self, values: &[Vec<f32>], it: Linear, xs: &[f32]) -> Vec<f32> {
        // A head may have no outputs at all.
        if it.n_out == 0 {
            return Vec::new();
        }
        let weight = Matrix::rows(&values[it.weight], it.n_in);
        self.products.multiply_add(Matrix::rows(xs, it.n_in), weight.t(), &values[it.bias])
    }

    /// Adds the layer's slopes to `gradients` and those at `xs` to `d_xs`.
    fn linear_back(
        &self,
        values: &[Vec<f32>],
        it: Linear,
        xs: &[f32],
        ds: &[f32],
        gradients: &mut Gradients,
        d_xs: &mut [f32],
    ) {
        if it.n_out == 0 {
            return;
        }
        let (weight, slopes) =
            (Matrix::rows(&values[it.weight], it.n_in), Matrix::rows(ds, it.n_out));
        let d_weight = &mut gradients.dense[it.weight];
        self.products.multiply(d_weight, slopes.t(), Matrix::rows(xs, it.n_in), 1.0, 1.0);
        add_rows(&mut gradients.dense[it.bias], ds);
        self.products.multiply(d_xs, slopes, weight, 1.0, 1.0);
    }

    fn normalize(&self, values: &[Vec<f32>], norm: Norm, xs: &mut [f32]) -> Normed {
        normalize(xs, &values[norm.weight], &values[norm.bias], self.eps)
    }

    fn normalize_back(
        &self,
        values: &[Vec<f32>],
        norm: Norm,
        normed: &Normed,
        ds: &mut [f32],
        gradients: &mut Gradients,
    ) {
        // Taken out for the call: two of the tensors are written at once.
        let mut d_weight = std::mem::take(&mut gradients.dense[norm.weight]);
        let d_bias = &mut gradients.dense[norm.bias];
        normalize_back(ds, normed, &values[norm.weight], &mut d_weight, d_bias);
        gradients.dense[norm.weight] = d_weight;
    }

    fn firsts(&self, xs: &[f32], bounds: &[usize]) -> Vec<f32> {
        let begins = &bounds[..bounds.len() - 1];
        begins
            .iter()
            .flat_map(|it| &xs[it * self.hidden..(it + 1) * self.hidden])
            .copied()
            .collect()
    }
}

/// Where the values of a row's asking tokens and of all its tokens are.
fn spans(
    row_idx: usize,
    row: &[usize],
    is_last: bool,
    hidden: usize,
) -> (std::ops::Range<usize>, std::ops::Range<usize>) {
    let tokens = row[0] * hidden..row[1] * hidden;
    let askers = if is_last { row_idx * hidden..(row_idx + 1) * hidden } else { tokens.clone() };
    (askers, tokens)
}

/// Puts rows of `size` values into rows of `width`, from column `begin` on.
fn put(to: &mut [f32], from: &[f32], begin: usize, width: usize, size: usize) {
    for (to, from) in to.chunks_exact_mut(width).zip(from.chunks_exact(size)) {
        to[begin..begin + size].copy_from_slice(from);
    }
}

/// Adds one row of `by` to the first token of each row.
fn add_firsts(to: &mut [f32], by: &[f32], bounds: &[usize], hidden: usize) {
    for (begin, by) in bounds.iter().zip(by.chunks_exact(hidden)) {
        each(&mut to[begin * hidden..(begin + 1) * hidden], by, |to, by| to + by);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};
    use candle_transformers::models::bert::{Config, HiddenAct};

    use crate::model::heads::{HeadSizes, Heads};
    use crate::model::network::Network;
    use crate::model::transformer::{self, Mode, tiny};

    const SIZES: HeadSizes = HeadSizes { n_types: 3, n_levels: 4, n_grounds: 2 };
    const ROWS: [&[u32]; 4] =
        [&[2, 7, 8, 9, 3], &[2, 11, 12, 13, 14, 15, 16, 17, 18, 3], &[2, 3], &[2, 29, 5, 8, 3]];

    /// Some slope at each output, so that no term can hide.
    fn slope(row_idx: usize, at: usize) -> f32 {
        ((row_idx * 7 + at * 3) as f32 * 0.9).sin()
    }

    #[test]
    fn outputs_and_every_slope_are_those_of_candle() {
        for hidden_act in [HiddenAct::Gelu, HiddenAct::GeluApproximate, HiddenAct::Relu] {
            let (config, mut weights) = tiny(1);
            let config = Config { hidden_act, ..config };
            Heads::start(&mut weights, config.hidden_size, SIZES, 2).unwrap();
            let (vars, tensors) = weights.trainable().unwrap();
            let network = Network::load(&tensors, &config, SIZES).unwrap();
            let no_dropout = transformer::Dropout::new(0.0, 0);
            let expected = network.forward(&ROWS, &Mode::Train(&no_dropout)).unwrap();
            let heads = [expected.kind, expected.level, expected.grounds];
            let slopes = heads.each_ref().map(|it| {
                let (n_rows, width) = it.dims2().unwrap();
                let of = |it: usize| slope(it / width, it % width);
                (0..n_rows * width).map(of).collect::<Vec<f32>>()
            });
            let mut loss = Tensor::zeros((), candle_core::DType::F32, &Device::Cpu).unwrap();
            for (head, slopes) in heads.iter().zip(&slopes) {
                let slopes = Tensor::from_slice(slopes, head.dims(), &Device::Cpu).unwrap();
                loss = (loss + (head * slopes).unwrap().sum_all().unwrap()).unwrap();
            }
            let candle = loss.backward().unwrap();

            let parameters = Parameters::new(&weights).unwrap();
            let ours = Trainable::new(&weights, &parameters, &config, SIZES).unwrap();
            let (values, mut dropout) = (&parameters.values, Dropout::new(0.0, 0));
            let tape = ours.forward(values, &ROWS, &mut dropout);
            let answer = ours.answer(values, tape.pooled.clone(), &mut dropout);
            for (actual, expected) in answer.outputs.iter().zip(&heads) {
                let expected: Vec<f32> = expected.flatten_all().unwrap().to_vec1().unwrap();
                let gap = gap(actual, &expected);
                assert!(gap < 1e-4, "{hidden_act:?} outputs: {gap}");
            }
            let mut gradients = ours.no_gradients(&parameters);
            let d_pooled = ours.answer_back(values, &answer, &slopes, &mut gradients);
            ours.back(values, &tape, d_pooled, &mut gradients);
            let mut words = vec![0.0; parameters.values[ours.words].len()];
            let (ids, ds) = &gradients.words;
            for (&id, ds) in ids.iter().zip(ds.chunks_exact(config.hidden_size)) {
                let begin = id as usize * config.hidden_size;
                each(&mut words[begin..begin + config.hidden_size], ds, |sum, d| sum + d);
            }
            gradients.dense[ours.words] = words;
            for (idx, name) in parameters.names.iter().enumerate() {
                let expected = candle.get(vars[name].as_tensor()).expect(name);
                let expected: Vec<f32> = expected.flatten_all().unwrap().to_vec1().unwrap();
                let actual = &gradients.dense[idx];
                let size = expected.iter().fold(0.0_f32, |size, it| size.max(it.abs()));
                let gap = gap(actual, &expected);
                assert!(gap < 1e-4 + 1e-3 * size, "{hidden_act:?} {name}: {gap} of {size}");
                // A key's bias shifts every score of a row alike, so softmax gives it no slope.
                assert!(size > 1e-4 || name.ends_with("key.bias"), "{name}: {size}");
            }
        }
    }

    fn gap(a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    #[test]
    fn parameters_survive_the_way_to_weights() {
        let (_, weights) = tiny(3);
        let parameters = Parameters::new(&weights).unwrap();
        let back = parameters.weights(parameters.values.iter().map(Vec::as_slice)).unwrap();
        assert_eq!(Parameters::new(&back).unwrap(), parameters);
        assert!(parameters.position(WORDS).is_some() && parameters.position("x").is_none());
    }
}
