//! Seeded, leak-free split, by lot or by time: near-duplicates stay on one side.
//!
//! Source: Broder 1997, "On the resemblance and containment of documents" (MinHash with banding).

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// Characters of one shingle.
const SHINGLE_CHARS: usize = 4;
/// A text of fewer characters is one shingle: only its equal is near it.
const SHORT_CHARS: usize = 8;
/// Least share of their shingles that near-duplicates have in common. Two characters changed in forty
/// leave 0.64.
const LEAST_RESEMBLANCE: f64 = 0.6;
/// Bands times rows a band: texts sharing about half of their shingles or more meet in some band.
const N_BANDS: usize = 12;
const ROWS_PER_BAND: usize = 4;

/// Indices of the training and of the validation cases, each ascending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// To train on.
    pub train: Vec<usize>,
    /// To stop early and to calibrate on.
    pub validation: Vec<usize>,
}

/// Splits `texts`, holding out about `validation_share` of each label; a group of near-duplicates is
/// never cut. The same seed and texts give the same split.
pub fn split(texts: &[&str], labels: &[usize], validation_share: f64, seed: u64) -> Split {
    assert_eq!(texts.len(), labels.len(), "one label per text");
    let groups = near_duplicate_groups(texts);
    let mut members: HashMap<usize, Vec<usize>> = HashMap::new();
    for (idx, group) in groups.iter().enumerate() {
        members.entry(*group).or_default().push(idx);
    }
    // Groups in a reproducible order, then shuffled.
    let mut order: Vec<usize> = members.keys().copied().collect();
    order.sort_unstable();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    let n_labels = labels.iter().max().map_or(0, |it| it + 1);
    let mut wanted: Vec<f64> = (0..n_labels)
        .map(|label| labels.iter().filter(|&&it| it == label).count() as f64 * validation_share)
        .map(f64::round)
        .collect();
    let mut split = Split { train: Vec::new(), validation: Vec::new() };
    for group in order {
        let cases = &members[&group];
        // The group goes by its first label; a group larger than what is wanted stays in training.
        let label = labels[cases[0]];
        if wanted[label] >= cases.len() as f64 {
            for &idx in cases {
                wanted[labels[idx]] -= 1.0;
            }
            split.validation.extend(cases);
        } else {
            split.train.extend(cases);
        }
    }
    split.train.sort_unstable();
    split.validation.sort_unstable();
    split
}

/// Splits `texts` by time: the newest `validation_share` are held out, so that what is measured is how the
/// model does on what comes after. A group of near-duplicates is of the day of its oldest text, for what
/// was said before is known before; `days` has any ordered measure of time, one per text.
pub fn split_by_time(texts: &[&str], days: &[impl Ord + Copy], validation_share: f64) -> Split {
    assert_eq!(texts.len(), days.len(), "one day per text");
    let groups = near_duplicate_groups(texts);
    let mut first_days: Vec<_> = days.to_vec();
    for (idx, &leader) in groups.iter().enumerate() {
        first_days[leader] = first_days[leader].min(days[idx]);
    }
    let mut order: Vec<usize> = (0..texts.len()).collect();
    // Newest first, groups together.
    order.sort_by_key(|&it| (std::cmp::Reverse(first_days[groups[it]]), groups[it], it));
    let wanted = (texts.len() as f64 * validation_share).round() as usize;
    let mut end = wanted.min(order.len());
    // A group at the border stays in training, whole.
    while 0 < end && end < order.len() && groups[order[end - 1]] == groups[order[end]] {
        end -= 1;
    }
    let mut train = order.split_off(end);
    train.sort_unstable();
    order.sort_unstable();
    Split { train, validation: order }
}

/// For each text the index of its group's first text.
pub fn near_duplicate_groups(texts: &[&str]) -> Vec<usize> {
    let mut parent: Vec<usize> = (0..texts.len()).collect();
    let shingles: Vec<Vec<u64>> = texts.iter().map(|it| shingles(it)).collect();
    let mut seen: HashMap<(usize, [u64; ROWS_PER_BAND]), Vec<usize>> = HashMap::new();
    for (idx, own) in shingles.iter().enumerate() {
        for (band, signature) in signatures(own).into_iter().enumerate() {
            // A band says who may be near; the shingles decide.
            let met = seen.entry((band, signature)).or_default();
            match met.iter().find(|&&it| resemblance(&shingles[it], own) >= LEAST_RESEMBLANCE) {
                Some(&other) => {
                    let (a, b) = (find(&mut parent, other), find(&mut parent, idx));
                    // The smaller index leads, so that a group's name is its first text.
                    parent[a.max(b)] = a.min(b);
                }
                None => met.push(idx),
            }
        }
    }
    (0..texts.len()).map(|idx| find(&mut parent, idx)).collect()
}

fn find(parent: &mut [usize], mut idx: usize) -> usize {
    while parent[idx] != idx {
        parent[idx] = parent[parent[idx]];
        idx = parent[idx];
    }
    idx
}

/// Hashes of the text's shingles, ascending, each once; a text has at least one.
fn shingles(text: &str) -> Vec<u64> {
    // Punctuation, spaces and case are what reposts change.
    let mut chars: Vec<char> =
        text.chars().filter(|it| it.is_alphanumeric()).flat_map(char::to_lowercase).collect();
    if chars.is_empty() {
        // A text of emoji or question marks is what it is.
        chars = text.chars().filter(|it| !it.is_whitespace()).collect();
    }
    let hash = |shingle: &[char]| {
        // `DefaultHasher::new` has fixed keys: the same on every run.
        let mut hasher = DefaultHasher::new();
        shingle.hash(&mut hasher);
        hasher.finish()
    };
    let mut hashes: Vec<u64> = match chars.len() < SHORT_CHARS {
        true => vec![hash(&chars)],
        false => chars.windows(SHINGLE_CHARS).map(hash).collect(),
    };
    hashes.sort_unstable();
    hashes.dedup();
    hashes
}

/// Share of the shingles of either that both have (Jaccard).
fn resemblance(a: &[u64], b: &[u64]) -> f64 {
    let n_common = a.iter().filter(|it| b.binary_search(it).is_ok()).count();
    n_common as f64 / (a.len() + b.len() - n_common) as f64
}

fn signatures(shingles: &[u64]) -> [[u64; ROWS_PER_BAND]; N_BANDS] {
    let mut minima = [[u64::MAX; ROWS_PER_BAND]; N_BANDS];
    for base in shingles {
        for (hash_idx, minimum) in minima.as_flattened_mut().iter_mut().enumerate() {
            *minimum =
                (*minimum).min(mix(base ^ (hash_idx as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15)));
        }
    }
    minima
}

/// The finalizer of SplitMix64: one hash becomes many.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts() -> (Vec<String>, Vec<usize>) {
        let mut texts = Vec::new();
        for idx in 0..200_u32 {
            // Distinct texts: each character depends on the index.
            let text: String = (0..30_u32)
                .map(|at| char::from_u32(0x4e00 + (idx * 331 + at * 17) % 9000).unwrap())
                .collect();
            texts.push(format!("{text}！"));
            texts.push(format!("转发：{text}"));
        }
        let labels = (0..texts.len()).map(|it| (it / 2) % 4).collect();
        (texts, labels)
    }

    #[test]
    fn near_duplicates_never_part() {
        let (texts, labels) = texts();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let split = split(&texts, &labels, 0.2, 7);
        for pair in 0..200 {
            let is_held_out = |it| split.validation.contains(&it);
            assert_eq!(is_held_out(pair * 2), is_held_out(pair * 2 + 1), "pair {pair}");
        }
    }

    #[test]
    fn near_is_what_shares_most_of_its_shingles() {
        let long = "小区停水三天了物业一直没有人管我们打了很多次电话都没有用希望尽快处理";
        let copy = long.replace("三天", "四天") + "！！";
        let texts = [
            // Nothing but signs: each is near its equal only.
            "😡😡😡😡😡",
            "👍👍👍👍",
            "？？？？？",
            "👍👍👍👍",
            // Too short to be told apart by shingles.
            "同意拆迁方案",
            "不同意拆迁方案",
            "同意，拆迁方案！",
            long,
            &copy,
        ];
        assert_eq!(near_duplicate_groups(&texts), [0, 1, 2, 1, 4, 5, 4, 7, 7]);
    }

    #[test]
    fn a_band_in_common_is_not_enough() {
        // A common first half: about a third of the shingles, and in many pairs some band.
        let head: String = ('一'..).take(24).collect();
        let texts: Vec<String> = (0..60_u32)
            .map(|idx| {
                let tail = (0..16).map(|at| char::from_u32(0x6000 + idx * 16 + at).unwrap());
                head.chars().chain(tail).collect()
            })
            .collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        assert_eq!(near_duplicate_groups(&texts), (0..60).collect::<Vec<_>>());
    }

    #[test]
    fn by_time_the_newest_are_held_out_and_copies_are_as_old_as_their_first() {
        let (texts, _) = texts();
        // Later ones happen to share some text with earlier ones.
        let texts: Vec<&str> = texts[..380].iter().map(String::as_str).collect();
        // Pairs of copies; the second of the oldest pair is reposted last of all.
        let mut days: Vec<usize> = (0..texts.len()).map(|it| it / 2).collect();
        days[1] = 1000;
        let split = split_by_time(&texts, &days, 0.2);
        assert_eq!(split.validation, (304..380).collect::<Vec<_>>());
        assert_eq!(split.train, (0..304).collect::<Vec<_>>());
        // A border inside a pair moves to its edge.
        let odd = split_by_time(&texts, &days, 0.2025);
        assert_eq!(odd.validation, split.validation);
    }

    #[test]
    fn every_case_is_in_one_part_and_every_label_is_held_out() {
        let (texts, labels) = texts();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let parts = split(&texts, &labels, 0.2, 7);
        let mut all = [parts.train.clone(), parts.validation.clone()].concat();
        all.sort_unstable();
        assert_eq!(all, (0..texts.len()).collect::<Vec<_>>());
        for label in 0..4 {
            let n = parts.validation.iter().filter(|&&it| labels[it] == label).count();
            assert_eq!(n, 20, "label {label}");
        }
        assert_eq!(parts, split(&texts, &labels, 0.2, 7));
        assert_ne!(parts, split(&texts, &labels, 0.2, 8));
    }
}
