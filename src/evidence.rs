//! Pure: which words carried a type, by taking them away, and whether that explanation can be trusted.
//!
//! A word's effect is the probability its absence costs. The explanation is then tested: taking the top words
//! away together must cost clearly more than taking random ones, or it is withheld. Knows no model and no
//! request; callers ask the model.
//!
//! Source: Li, Monroe and Jurafsky 2016, "Understanding Neural Networks through Representation Erasure"; the
//! test after DeYoung et al. 2020, "ERASER" (comprehensiveness).

use rand::SeedableRng;
use rand::seq::index::sample;
use rand_chacha::ChaCha8Rng;

/// Texts of more words are not explained: each word costs a prediction.
pub const MAX_WORDS: usize = 128;
/// Words shown at most.
const MAX_SHOWN: usize = 8;
/// Words whose joint absence is tested.
const N_TESTED: usize = 3;
/// Random sets of words to compare with.
const N_RANDOM: usize = 4;
/// The least effect shown.
const MIN_EFFECT: f32 = 0.005;
/// How much more than random words the top words must cost.
const MIN_GAIN: f32 = 0.02;

/// The explanation of one type.
#[derive(Debug, Clone, PartialEq)]
pub enum Evidence {
    /// The words that carried it.
    Words {
        /// Which word, and its effect; greatest effect first.
        words: Vec<(usize, f32)>,
        /// How far the words can be trusted.
        fidelity: Fidelity,
    },
    /// No explanation, and why.
    Withheld(Reason),
}

/// The probability that is lost with the top words, and on average with as many random ones.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fidelity {
    /// Without the top words.
    pub top: f32,
    /// Without random words.
    pub random: f32,
}

/// Why there is no explanation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Too few words for a test.
    TooShort,
    /// More than [`MAX_WORDS`] words.
    TooLong,
    /// The top words cost no more than random ones.
    PoorFidelity,
    /// There was no room for the extra predictions.
    Overloaded,
}

impl Reason {
    /// Stable code.
    pub const fn code(self) -> &'static str {
        match self {
            Self::TooShort => "too_short",
            Self::TooLong => "too_long",
            Self::PoorFidelity => "poor_fidelity",
            Self::Overloaded => "overloaded",
        }
    }
}

/// Sets of words to take away in the first round: each of `n_words` alone.
///
/// # Errors
/// [`Reason`] when the text cannot be explained.
pub fn singles(n_words: usize) -> Result<Vec<Vec<usize>>, Reason> {
    if n_words <= N_TESTED {
        return Err(Reason::TooShort);
    }
    if n_words > MAX_WORDS {
        return Err(Reason::TooLong);
    }
    Ok((0..n_words).map(|it| vec![it]).collect())
}

/// Sets of words to take away in the second round: the top words, then random ones. The same effects give
/// the same sets.
pub fn tests(effects: &[f32]) -> Vec<Vec<usize>> {
    let mut rng = ChaCha8Rng::seed_from_u64(effects.len() as u64);
    let random = (0..N_RANDOM).map(|_| sample(&mut rng, effects.len(), N_TESTED).into_vec());
    std::iter::once(ranked(effects)[..N_TESTED].to_vec()).chain(random).collect()
}

/// The explanation: `effects` of the first round, `losses` of the second.
///
/// # Panics
/// When `losses` is not as long as [`tests`] of `effects`.
pub fn explain(effects: &[f32], losses: &[f32]) -> Evidence {
    assert_eq!(losses.len(), 1 + N_RANDOM, "one loss per test");
    let random = losses[1..].iter().sum::<f32>() / N_RANDOM as f32;
    let fidelity = Fidelity { top: losses[0], random };
    let shown = ranked(effects).into_iter().map(|it| (it, effects[it]));
    let words: Vec<_> = shown.take_while(|it| it.1 >= MIN_EFFECT).take(MAX_SHOWN).collect();
    // Words that matter only together have no effect of their own to show.
    if words.is_empty() || fidelity.top - fidelity.random < MIN_GAIN {
        return Evidence::Withheld(Reason::PoorFidelity);
    }
    Evidence::Words { words, fidelity }
}

fn ranked(effects: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..effects.len()).collect();
    order.sort_by(|&a, &b| effects[b].total_cmp(&effects[a]).then(a.cmp(&b)));
    order
}

#[cfg(test)]
mod tests_of_the_rules {
    use super::*;

    /// A model whose probability is 0.9, less what each missing word is worth.
    fn ask(worth: &[f32]) -> Evidence {
        let loss = |set: &Vec<usize>| set.iter().map(|&it| worth[it]).sum::<f32>();
        let sets = match singles(worth.len()) {
            Ok(sets) => sets,
            Err(reason) => return Evidence::Withheld(reason),
        };
        let effects: Vec<f32> = sets.iter().map(loss).collect();
        let losses: Vec<f32> = tests(&effects).iter().map(loss).collect();
        explain(&effects, &losses)
    }

    #[test]
    fn the_words_that_matter_come_first() {
        let Evidence::Words { words, fidelity } = ask(&[0.0, 0.3, 0.0, 0.1, -0.1, 0.0, 0.0, 0.0])
        else {
            panic!("a clear case is explained")
        };
        assert_eq!(words, [(1, 0.3), (3, 0.1)]);
        assert!(fidelity.top > fidelity.random + 0.2, "{fidelity:?}");
    }

    #[test]
    fn what_cannot_be_trusted_is_withheld() {
        assert_eq!(ask(&[0.01; 20]), Evidence::Withheld(Reason::PoorFidelity));
        assert_eq!(ask(&[0.9; 3]), Evidence::Withheld(Reason::TooShort));
        assert_eq!(ask(&[0.1; MAX_WORDS + 1]), Evidence::Withheld(Reason::TooLong));
    }
}
