//! Who may call: a file of hashed keys with roles and limits, read again when it changes.
//!
//! Knows nothing of HTTP. A key has 256 random bits, so a plain SHA-256 of it can be kept: there is nothing to
//! guess. The file never holds a key itself.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Instant, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use thiserror::Error;

/// How every key begins, so that one found in the wrong place is known for what it is.
const PREFIX: &str = "triage_";
/// Random bytes in a key.
const KEY_BYTES: usize = 32;

/// What a key may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Classify texts.
    Classify,
    /// Look at cases and correct them; no route takes it yet.
    Review,
    /// Train and promote models; no route takes it yet. Uncalibrated scores are for who does.
    Train,
    /// Read metrics.
    Operate,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 4] = [Self::Classify, Self::Review, Self::Train, Self::Operate];

    /// Stable code.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Classify => "classify",
            Self::Review => "review",
            Self::Train => "train",
            Self::Operate => "operate",
        }
    }
}

/// One key of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// What the operator calls it.
    pub name: String,
    /// What it may be used for.
    pub roles: Vec<Role>,
    /// Requests a minute; no limit when absent.
    pub requests_per_minute: Option<NonZeroU32>,
    digest: [u8; 32],
}

/// A key as the file has it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    sha256: String,
    roles: Vec<Role>,
    #[serde(skip_serializing_if = "Option::is_none")]
    requests_per_minute: Option<NonZeroU32>,
}

/// The keys of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keyring(Vec<Key>);

impl Keyring {
    /// The keys in `text`: TOML, one line a key.
    ///
    /// # Errors
    /// [`KeysError`], naming the key.
    pub fn parse(text: &str) -> Result<Self, KeysError> {
        // Its message may quote the line, so only the place is kept.
        let lines: BTreeMap<String, Line> = toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |it| it.start);
            let line = 1 + text.get(..at).unwrap_or("").matches('\n').count();
            KeysError::Toml { line }
        })?;
        if lines.is_empty() {
            return Err(KeysError::NoKeys);
        }
        let keys = lines.into_iter().map(|(name, line)| {
            let digest =
                unhex(&line.sha256).ok_or_else(|| KeysError::Digest { name: name.clone() })?;
            if line.roles.is_empty() {
                return Err(KeysError::NoRoles { name });
            }
            let Line { roles, requests_per_minute, .. } = line;
            Ok(Key { name, roles, requests_per_minute, digest })
        });
        Ok(Self(keys.collect::<Result<_, _>>()?))
    }

    /// The key that was presented. All keys are compared, each in constant time.
    pub fn find(&self, presented: &str) -> Option<&Key> {
        let digest: [u8; 32] = Sha256::digest(presented.as_bytes()).into();
        let mut found = None;
        for key in &self.0 {
            if bool::from(key.digest.ct_eq(&digest)) {
                found = Some(key);
            }
        }
        found
    }

    /// Number of keys.
    #[expect(clippy::len_without_is_empty, reason = "a keyring is never empty")]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

/// A new key and its line for the file.
///
/// # Errors
/// [`KeysError::Random`] when the system gives no random bytes, [`KeysError::Name`] for a name that is none.
pub fn fresh(
    name: &str,
    roles: &[Role],
    requests_per_minute: Option<NonZeroU32>,
) -> Result<(String, String), KeysError> {
    let is_plain = |it: char| it.is_ascii_alphanumeric() || matches!(it, '-' | '_');
    if name.is_empty() || name.len() > 64 || !name.chars().all(is_plain) {
        return Err(KeysError::Name);
    }
    let mut bytes = [0; KEY_BYTES];
    getrandom::fill(&mut bytes).map_err(|_| KeysError::Random)?;
    let key = format!("{PREFIX}{}", hex(&bytes));
    let roles: Vec<String> = roles.iter().map(|it| format!("\"{}\"", it.code())).collect();
    let limit =
        requests_per_minute.map(|it| format!(", requests_per_minute = {it}")).unwrap_or_default();
    let digest = hex(&Sha256::digest(key.as_bytes()));
    let line =
        format!("{name} = {{ sha256 = \"{digest}\", roles = [{}]{limit} }}", roles.join(", "));
    Ok((key, line))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|it| format!("{it:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

/// A keys file in use.
#[derive(Debug)]
pub struct KeysFile {
    path: PathBuf,
    current: RwLock<Arc<Keyring>>,
    /// What the file looked like when it was last read, well or badly.
    seen: Mutex<Option<(SystemTime, u64)>>,
}

impl KeysFile {
    /// Reads `path`.
    ///
    /// # Errors
    /// [`KeysError`].
    pub fn load(path: &Path) -> Result<Self, KeysError> {
        let seen = stamp(path);
        let current = RwLock::new(Arc::new(read(path)?));
        Ok(Self { path: path.to_owned(), current, seen: Mutex::new(seen) })
    }

    /// The keys in force.
    pub fn current(&self) -> Arc<Keyring> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the file again when it has changed: the number of keys then, `None` when it is as it was.
    ///
    /// # Errors
    /// [`KeysError`], once a change; the keys in force stay.
    pub fn refresh(&self) -> Result<Option<usize>, KeysError> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = stamp(&self.path);
        if *seen == now {
            return Ok(None);
        }
        *seen = now;
        let keyring = Arc::new(read(&self.path)?);
        let n_keys = keyring.len();
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = keyring;
        Ok(Some(n_keys))
    }
}

fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

fn read(path: &Path) -> Result<Keyring, KeysError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| KeysError::Read { path: path.to_owned(), source })?;
    Keyring::parse(&text)
}

/// Requests each key has left.
#[derive(Debug, Default)]
pub struct Quotas(Mutex<HashMap<String, Quota>>);

/// One key's allowance: it refills evenly, up to a minute's worth.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Quota {
    left: f64,
    at: Instant,
}

impl Quota {
    /// One request at `now`.
    ///
    /// # Errors
    /// Seconds until one is allowed, at least 1.
    fn take(&mut self, per_minute: NonZeroU32, now: Instant) -> Result<(), u64> {
        let most = f64::from(per_minute.get());
        let per_second = most / 60.0;
        let refilled = now.saturating_duration_since(self.at).as_secs_f64() * per_second;
        *self = Self { left: (self.left + refilled).min(most), at: now };
        // What adds up to one request, or to whole seconds, may miss it by a rounding error.
        if self.left < 1.0 - 1e-9 {
            return Err(((1.0 - self.left) / per_second - 1e-9).ceil().max(1.0) as u64);
        }
        self.left -= 1.0;
        Ok(())
    }
}

impl Quotas {
    /// One request with `key` at `now`. Kept by the key's name, so that a rotated key brings no new allowance.
    ///
    /// # Errors
    /// The limit, and seconds until one is allowed.
    pub fn take(&self, key: &Key, now: Instant) -> Result<(), (NonZeroU32, u64)> {
        let Some(per_minute) = key.requests_per_minute else { return Ok(()) };
        let mut quotas = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = Quota { left: f64::from(per_minute.get()), at: now };
        let quota = quotas.entry(key.name.clone()).or_insert(fresh);
        quota.take(per_minute, now).map_err(|seconds| (per_minute, seconds))
    }
}

/// What is wrong with keys.
#[derive(Debug, Error)]
pub enum KeysError {
    /// The file cannot be read.
    #[error("keys file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error(
        "keys file, line {line}: write one key a line, as `triage keys new` prints it: \
         NAME = {{ sha256 = \"…\", roles = [\"classify\"], requests_per_minute = 600 }}"
    )]
    Toml {
        /// Where.
        line: usize,
    },
    /// A file without keys would lock everybody out.
    #[error("the keys file has no key; add the line that `triage keys new` prints")]
    NoKeys,
    /// A digest that is none.
    #[error(
        "key `{name}`: `sha256` must be 64 hexadecimal digits, as `triage keys new` prints them"
    )]
    Digest {
        /// The key.
        name: String,
    },
    /// A key good for nothing.
    #[error("key `{name}` has no roles; give it some of classify, review, train, operate")]
    NoRoles {
        /// The key.
        name: String,
    },
    /// A name that is none.
    #[error("a key's name has 1 to 64 letters, digits, hyphens and underscores")]
    Name,
    /// No randomness.
    #[error("the system gives no random bytes; no key was made")]
    Random,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_fresh_key_is_found_by_its_line_and_no_other_key_is() {
        let limit = NonZeroU32::new(60);
        let (key, line) = fresh("console", &[Role::Classify, Role::Operate], limit).unwrap();
        let (other, second) = fresh("batch", &[Role::Classify], None).unwrap();
        assert_ne!(key, other);
        assert_eq!(key.len(), PREFIX.len() + 2 * KEY_BYTES);
        assert!(!line.contains(&key[PREFIX.len()..]), "the line must not give the key away");
        let keyring = Keyring::parse(&format!("# ours\n{line}\n{second}\n")).unwrap();
        let found = keyring.find(&key).unwrap();
        assert_eq!(found.name, "console");
        assert_eq!(found.roles, [Role::Classify, Role::Operate]);
        assert_eq!(found.requests_per_minute, limit);
        assert_eq!(keyring.find(&other).unwrap().name, "batch");
        for wrong in ["", PREFIX, &key[..key.len() - 1], &format!("{key} ")] {
            assert!(keyring.find(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn a_wrong_file_names_the_key_or_the_line_and_quotes_nothing() {
        let digest = "0".repeat(64);
        let cases = [
            ("", "no key"),
            ("# nothing\n", "no key"),
            ("a = { sha256 = \"12\", roles = [\"classify\"] }", "key `a`"),
            (&format!("a = {{ sha256 = \"{digest}\", roles = [] }}"), "no roles"),
            (&format!("\na = {{ sha256 = \"{digest}\", roles = [\"root\"] }}"), "line 2"),
            (
                &format!("a = {{ sha256 = \"{digest}\", roles = [\"train\"], key = \"s3\" }}"),
                "line 1",
            ),
            ("\n\nnonsense", "line 3"),
        ];
        for (text, expected) in cases {
            let message = Keyring::parse(text).unwrap_err().to_string();
            assert!(message.contains(expected), "{text}: {message}");
            assert!(!message.contains(&digest) && !message.contains("s3"), "{message}");
        }
        assert!(matches!(fresh("a b", &[Role::Train], None), Err(KeysError::Name)));
    }

    #[test]
    fn a_changed_file_is_read_again_and_a_bad_change_keeps_the_old_keys() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("keys.toml");
        let (old, old_line) = fresh("a", &[Role::Classify], None).unwrap();
        let (new, new_line) = fresh("b", &[Role::Classify], NonZeroU32::new(7)).unwrap();
        std::fs::write(&path, &old_line).unwrap();
        let file = KeysFile::load(&path).unwrap();
        assert_eq!(file.refresh().unwrap(), None);
        // Both at once while callers move over, then the old one goes.
        std::fs::write(&path, format!("{old_line}\n{new_line}\n")).unwrap();
        assert_eq!(file.refresh().unwrap(), Some(2));
        assert!(file.current().find(&old).is_some() && file.current().find(&new).is_some());
        std::fs::write(&path, "broken").unwrap();
        assert!(file.refresh().is_err());
        assert_eq!(file.refresh().unwrap(), None);
        assert!(file.current().find(&new).is_some());
        std::fs::write(&path, new_line).unwrap();
        assert_eq!(file.refresh().unwrap(), Some(1));
        assert!(file.current().find(&old).is_none() && file.current().find(&new).is_some());
    }

    #[test]
    fn a_quota_refills_with_time_and_says_when() {
        let start = Instant::now();
        let per_minute = NonZeroU32::new(2).unwrap();
        let mut quota = Quota { left: 2.0, at: start };
        assert_eq!(quota.take(per_minute, start), Ok(()));
        assert_eq!(quota.take(per_minute, start), Ok(()));
        assert_eq!(quota.take(per_minute, start), Err(30));
        assert_eq!(quota.take(per_minute, start + Duration::from_secs(20)), Err(10));
        assert_eq!(quota.take(per_minute, start + Duration::from_secs(31)), Ok(()));
        assert_eq!(quota.take(per_minute, start + Duration::from_secs(3600)), Ok(()));
        assert!(quota.left <= 1.0, "an hour's rest is worth a minute's requests");
    }

    proptest! {
        #[test]
        fn never_more_than_the_limit_in_a_minute_and_the_wait_named_is_enough(
            per_minute in 1_u32..200,
            waits in proptest::collection::vec(0_u64..2_000, 1..400),
        ) {
            let per_minute = NonZeroU32::new(per_minute).unwrap();
            let start = Instant::now();
            let mut quota = Quota { left: f64::from(per_minute.get()), at: start };
            let mut now = start;
            let mut n_taken = 0_u32;
            for wait in waits {
                now += Duration::from_millis(wait);
                match quota.take(per_minute, now) {
                    Ok(()) => n_taken += 1,
                    Err(seconds) => {
                        let mut later = quota;
                        prop_assert_eq!(later.take(per_minute, now + Duration::from_secs(seconds)), Ok(()));
                    }
                }
                let minutes = now.duration_since(start).as_secs_f64() / 60.0;
                prop_assert!(f64::from(n_taken) <= f64::from(per_minute.get()) * (1.0 + minutes) + 1e-6);
            }
        }
    }
}
