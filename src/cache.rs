//! Predictions already made, by what the model saw: a reposted text costs no second forward pass.
//!
//! Bounded in bytes. Holds digests and numbers, never a text. Knows no model and no request.

use quick_cache::Weighter;
use quick_cache::sync::Cache;
use sha2::{Digest, Sha256};

use crate::domain::prediction::Prediction;

/// Digest of a text as the model sees it: normalized and masked.
pub type Fingerprint = [u8; 32];

/// Allocator and table overhead of an entry, estimated; `an_entry_is_not_underestimated` checks the rest.
const ENTRY_OVERHEAD: usize = 160;

#[derive(Debug, Clone)]
struct ByBytes;

impl Weighter<Fingerprint, Prediction> for ByBytes {
    fn weight(&self, _key: &Fingerprint, value: &Prediction) -> u64 {
        bytes(value) as u64
    }
}

/// Memory of an entry.
fn bytes(value: &Prediction) -> usize {
    let floats = value.type_logits.len()
        + value.type_probabilities.len()
        + value.level_probabilities.len()
        + value.ground_probabilities.len();
    size_of::<Fingerprint>()
        + size_of::<Prediction>()
        + floats * size_of::<f32>()
        + value.prediction_set.len() * size_of::<usize>()
        + ENTRY_OVERHEAD
}

/// The predictions of one model version under one policy.
pub struct PredictionCache {
    predictions: Cache<Fingerprint, Prediction, ByBytes>,
    /// Fed with the digests of the model and of the policy: another version or policy never finds these entries.
    seed: Sha256,
}

impl PredictionCache {
    /// A cache of at most `max_bytes`, or none when that is zero.
    pub fn new(max_bytes: usize, model_digest: &str, policy_digest: &str) -> Option<Self> {
        const TYPICAL_BYTES: usize = 512;
        if max_bytes == 0 {
            return None;
        }
        let mut seed = Sha256::new();
        for part in [model_digest, policy_digest] {
            seed.update((part.len() as u64).to_le_bytes());
            seed.update(part);
        }
        let n_items = (max_bytes / TYPICAL_BYTES).max(1);
        let predictions = Cache::with_weighter(n_items, max_bytes as u64, ByBytes);
        Some(Self { predictions, seed })
    }

    /// The prediction for the text of `fingerprint`, when it was made before.
    pub fn get(&self, fingerprint: &Fingerprint) -> Option<Prediction> {
        self.predictions.get(&self.key(fingerprint))
    }

    /// Keeps a prediction, in place of others when there is no room.
    pub fn insert(&self, fingerprint: &Fingerprint, prediction: Prediction) {
        self.predictions.insert(self.key(fingerprint), prediction);
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.predictions.weight()
    }

    fn key(&self, fingerprint: &Fingerprint) -> Fingerprint {
        self.seed.clone().chain_update(fingerprint).finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::prediction::Probability;

    fn prediction(value: f32) -> Prediction {
        let p = Probability::new(value).unwrap();
        Prediction {
            type_logits: vec![value; 6],
            type_probabilities: vec![p; 6],
            prediction_set: vec![0, 1],
            level_probabilities: vec![p; 4],
            ground_probabilities: vec![p; 7],
        }
    }

    fn fingerprint(n: u64) -> Fingerprint {
        Sha256::digest(n.to_le_bytes()).into()
    }

    #[test]
    fn what_was_kept_is_found_again_and_nothing_else() {
        let cache = PredictionCache::new(1 << 20, "model", "policy").unwrap();
        cache.insert(&fingerprint(1), prediction(0.25));
        assert_eq!(cache.get(&fingerprint(1)), Some(prediction(0.25)));
        assert_eq!(cache.get(&fingerprint(2)), None);
        assert!(PredictionCache::new(0, "model", "policy").is_none());
    }

    #[test]
    fn another_model_or_policy_has_other_keys() {
        let key = |model, policy| {
            PredictionCache::new(1 << 20, model, policy).unwrap().key(&fingerprint(1))
        };
        let keys = [key("a", "b"), key("a", "c"), key("b", "b"), key("ab", ""), key("", "ab")];
        for (idx, it) in keys.iter().enumerate() {
            assert!(!keys[..idx].contains(it), "{idx}");
        }
    }

    #[test]
    fn memory_stays_within_its_bound() {
        let max_bytes = 1 << 16;
        let cache = PredictionCache::new(max_bytes, "model", "policy").unwrap();
        for n in 0..10_000 {
            cache.insert(&fingerprint(n), prediction(0.5));
            assert!(cache.bytes() <= max_bytes as u64, "{n}: {}", cache.bytes());
        }
        assert!(cache.bytes() > max_bytes as u64 / 2, "{}", cache.bytes());
    }

    #[test]
    fn an_entry_is_not_underestimated() {
        let it = prediction(0.5);
        let heap = 4 * (6 + 6 + 4 + 7) + 8 * 2;
        assert_eq!(bytes(&it), 32 + size_of::<Prediction>() + heap + ENTRY_OVERHEAD);
    }
}
