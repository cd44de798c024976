//! Pure: which unlabelled texts are worth a person's time. Three shares: a random one, the only one that
//! figures may be measured on; the texts the model is least sure of, of each proposed type in turn, for the rare
//! types are where cases are wanting; and, among those it is nearly as unsure of, texts unlike all others: what is
//! merely odd teaches little.
//!
//! Sources: margin sampling, Scheffer et al. 2001, "Active hidden Markov models for information
//! extraction"; farthest-first traversal, Gonzalez 1985, as used for labelling by Sener and Savarese 2018,
//! "Active learning for convolutional neural networks: a core-set approach". Knows no model and no files.

use std::collections::HashMap;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// Numbers a text is compared by.
pub const N_FEATURES: usize = 64;
/// Diverse texts are looked for among this many times as many of the least sure.
const POOL_PER_DIVERSE: usize = 8;
/// From this cosine on two texts teach the same.
const SAME: f32 = 0.9;

/// An unlabelled text, as far as the choice needs it.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// Column of the most probable type.
    pub type_idx: usize,
    /// Its probability less that of the next: low means unsure.
    pub margin: f32,
    /// Direction of the text, of length 1; from [`features`].
    pub features: [f32; N_FEATURES],
}

/// Why a text was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// By lot. Only these say how good a model is.
    Random,
    /// The model is unsure.
    Uncertain,
    /// It is unlike the others.
    Diverse,
}

impl Reason {
    /// Stable code, the value of the column `selected`.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Uncertain => "uncertain",
            Self::Diverse => "diverse",
        }
    }
}

/// How many of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shares {
    /// By lot.
    pub random: usize,
    /// Least sure.
    pub uncertain: usize,
    /// Least like the others.
    pub diverse: usize,
}

impl Shares {
    /// `n` texts, `random_share` of them by lot, the rest half and half.
    pub fn of(n: usize, random_share: f64) -> Self {
        let random = (n as f64 * random_share).round() as usize;
        let uncertain = n.saturating_sub(random).div_ceil(2);
        Self { random, uncertain, diverse: n.saturating_sub(random + uncertain) }
    }
}

/// A text's direction from its weighted n-grams: a random projection of signs that depend on the n-gram
/// alone, so that texts with n-grams in common point the same way.
pub fn features(ngrams: impl Iterator<Item = (u32, f32)>) -> [f32; N_FEATURES] {
    let mut features = [0.0; N_FEATURES];
    for (ngram, weight) in ngrams {
        let signs = mix(u64::from(ngram) + 1);
        for (idx, it) in features.iter_mut().enumerate() {
            *it += if signs >> idx & 1 == 1 { weight } else { -weight };
        }
    }
    let norm = dot(&features, &features).sqrt().max(1e-12);
    features.map(|it| it / norm)
}

/// Chooses among `candidates`: index and reason, in order of indices. `known` are texts that are labelled
/// already: nothing like them is chosen, except by lot. Fewer than asked for when there are no more.
pub fn select(
    candidates: &[Candidate],
    known: &[[f32; N_FEATURES]],
    shares: Shares,
    seed: u64,
) -> Vec<(usize, Reason)> {
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    // The lot first, among all: what the others leave would be no fair sample.
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    let mut rest = order.split_off(shares.random.min(order.len()));
    let mut chosen: Vec<(usize, Reason)> = order.iter().map(|&it| (it, Reason::Random)).collect();
    // Cosine to the nearest text that is chosen or known.
    let mut nearest = vec![f32::MIN; candidates.len()];
    let meet = |nearest: &mut [f32], other: &[f32; N_FEATURES]| {
        for (nearest, it) in nearest.iter_mut().zip(candidates) {
            *nearest = nearest.max(dot(&it.features, other));
        }
    };
    known.iter().for_each(|it| meet(&mut nearest, it));
    order.iter().for_each(|&it| meet(&mut nearest, &candidates[it].features));
    by_turns(&mut rest, candidates);
    let mut n_uncertain = 0;
    let mut is_taken = vec![false; candidates.len()];
    for &idx in &rest {
        if n_uncertain == shares.uncertain {
            break;
        }
        if nearest[idx] < SAME {
            chosen.push((idx, Reason::Uncertain));
            is_taken[idx] = true;
            n_uncertain += 1;
            meet(&mut nearest, &candidates[idx].features);
        }
    }
    rest.retain(|&it| !is_taken[it]);
    rest.truncate(POOL_PER_DIVERSE * shares.diverse);
    for _ in 0..shares.diverse {
        let farthest = rest
            .iter()
            .copied()
            .filter(|&it| nearest[it] < SAME && !is_taken[it])
            .min_by(|&a, &b| nearest[a].total_cmp(&nearest[b]).then(a.cmp(&b)));
        let Some(idx) = farthest else { break };
        chosen.push((idx, Reason::Diverse));
        is_taken[idx] = true;
        meet(&mut nearest, &candidates[idx].features);
    }
    chosen.sort_unstable();
    chosen
}

/// Orders `indices`: the least sure of every type, then the next of every type, and so on.
fn by_turns(indices: &mut [usize], candidates: &[Candidate]) {
    let by_margin =
        |a: usize, b: usize| candidates[a].margin.total_cmp(&candidates[b].margin).then(a.cmp(&b));
    indices.sort_by(|&a, &b| by_margin(a, b));
    let mut n_before: HashMap<usize, usize> = HashMap::new();
    let mut turns = vec![0; candidates.len()];
    for &it in indices.iter() {
        let turn = n_before.entry(candidates[it].type_idx).or_default();
        turns[it] = *turn;
        *turn += 1;
    }
    indices.sort_by(|&a, &b| turns[a].cmp(&turns[b]).then_with(|| by_margin(a, b)));
}

fn dot(a: &[f32; N_FEATURES], b: &[f32; N_FEATURES]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The finalizer of SplitMix64: neighbouring numbers get unrelated signs.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Texts of three n-grams, one of them the cluster's; margins fall with the index.
    fn candidates(n: u32, n_clusters: u32) -> Vec<Candidate> {
        (0..n)
            .map(|it| {
                let own = [(it % n_clusters, 6.0), (1000 + it, 1.0), (9000 + it, 1.0)];
                Candidate {
                    type_idx: 0,
                    margin: 1.0 - it as f32 / n as f32,
                    features: features(own.into_iter()),
                }
            })
            .collect()
    }

    fn of(chosen: &[(usize, Reason)], reason: Reason) -> Vec<usize> {
        chosen.iter().filter(|it| it.1 == reason).map(|it| it.0).collect()
    }

    #[test]
    fn shares_add_up() {
        for n in [0, 1, 7, 200] {
            let it = Shares::of(n, 0.25);
            assert_eq!(it.random + it.uncertain + it.diverse, n);
        }
        assert_eq!(Shares::of(200, 0.25), Shares { random: 50, uncertain: 75, diverse: 75 });
    }

    #[test]
    fn each_share_is_what_it_says() {
        let all = candidates(400, 20);
        let shares = Shares { random: 40, uncertain: 5, diverse: 10 };
        let chosen = select(&all, &[], shares, 7);
        let [random, uncertain] = [Reason::Random, Reason::Uncertain].map(|it| of(&chosen, it));
        assert_eq!(random.len(), 40);
        // By lot: spread over the whole file, another seed another lot, the same seed the same.
        assert!(random[0] < 60 && random[39] > 340, "{random:?}");
        assert_eq!(chosen, select(&all, &[], shares, 7));
        assert_ne!(random, of(&select(&all, &[], shares, 8), Reason::Random));
        let mut indices: Vec<usize> = chosen.iter().map(|it| it.0).collect();
        indices.dedup();
        assert_eq!(indices.len(), chosen.len());
        // Without the lot the surest is never among the unsure.
        let few = select(&all, &[], Shares { random: 0, uncertain: 5, diverse: 0 }, 7);
        assert!(few.iter().all(|it| it.0 >= 380), "{few:?} {uncertain:?}");
    }

    #[test]
    fn diverse_texts_are_of_different_kinds_and_unlike_the_known() {
        let all = candidates(400, 20);
        let known: Vec<_> = all[..10].iter().map(|it| it.features).collect();
        let shares = Shares { random: 0, uncertain: 0, diverse: 10 };
        let mut kinds: Vec<usize> =
            select(&all, &known, shares, 1).iter().map(|it| it.0 % 20).collect();
        kinds.sort_unstable();
        // Ten kinds are known; the ten others come once each.
        assert_eq!(kinds, (10..20).collect::<Vec<_>>());
    }

    #[test]
    fn every_type_has_its_turn() {
        let mut all = candidates(400, 20);
        // One in a hundred is of another type, and surer than most; each of another cluster, so that none is
        // left out as like the one before.
        all.iter_mut().step_by(101).for_each(|it| it.type_idx = 1);
        let shares = Shares { random: 0, uncertain: 8, diverse: 0 };
        let chosen = of(&select(&all, &[], shares, 1), Reason::Uncertain);
        assert_eq!(chosen, [0, 101, 202, 303, 396, 397, 398, 399]);
    }

    #[test]
    fn what_is_odd_and_sure_is_not_diverse() {
        let mut all = candidates(400, 20);
        // Unlike everything, and the surest of all.
        all[0] =
            Candidate { type_idx: 0, margin: 1.0, features: features([(77_777, 1.0)].into_iter()) };
        let shares = Shares { random: 0, uncertain: 5, diverse: 10 };
        let chosen = select(&all, &[], shares, 1);
        assert_eq!(of(&chosen, Reason::Diverse).len(), 10);
        assert!(chosen.iter().all(|it| it.0 >= 400 - 5 - 8 * 10), "{chosen:?}");
    }

    #[test]
    fn copies_are_chosen_once_and_a_short_file_gives_what_it_has() {
        let one = candidates(1, 1).remove(0);
        let copies = vec![one; 30];
        let chosen = select(&copies, &[], Shares { random: 0, uncertain: 5, diverse: 5 }, 1);
        assert_eq!(chosen.len(), 1);
        let few = candidates(3, 3);
        let all = select(&few, &[], Shares::of(200, 0.5), 1);
        assert_eq!(all.len(), 3);
        assert!(select(&[], &[], Shares::of(5, 0.5), 1).is_empty());
    }
}
