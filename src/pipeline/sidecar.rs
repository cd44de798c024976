//! Files that may lie beside a bundle's own: the taxonomy it was trained with, and a review policy fitted
//! to it. Both say which bundle they belong to; what does not fit is refused by name.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::domain::taxonomy::{self, Taxonomy, TaxonomyError};
use crate::model::bundle::{Bundle, sha256};

/// Taxonomy of a version with labels of its own.
pub const TAXONOMY: &str = "taxonomy.toml";
/// Review policy fitted to a version.
pub const POLICY: &str = "policy.toml";
/// The format of [`POLICY`] this binary reads and writes.
pub const FORMAT: u32 = 1;

/// `policy.toml`: thresholds and what they rest on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyFile {
    /// [`FORMAT`].
    pub format: u32,
    /// Digest of the bundle whose probabilities these thresholds are for.
    pub bundle: String,
    /// Below this probability a person looks first.
    pub min_confidence: f32,
    /// Types a person always looks at are proposed from this probability on.
    pub min_accusation: f32,
    /// A type is in the prediction set from this probability on.
    pub set_threshold: f32,
    /// What was promised and found.
    pub evidence: PolicyEvidence,
}

/// What a fitted policy rests on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyEvidence {
    /// `sha256:…` of the held-out cases.
    pub cases_digest: String,
    /// Their number.
    pub cases: usize,
    /// Chance that a bound is wrong, each.
    pub alpha: f64,
    /// Upper bound asked of the share of false accusations.
    pub max_false_accusation: f64,
    /// Share of prediction sets that must hold the true type, and of routed items that must be right.
    pub coverage: f64,
    /// Upper bound found of the share of false accusations.
    pub false_accusation_upper: f64,
    /// Upper bound found of the share of sets without the true type.
    pub missed_upper: f64,
    /// Upper bound found of the share of routed items of the wrong type; none when nothing may be routed.
    pub routed_error_upper: Option<f64>,
    /// Share of the cases that a person looks at first.
    pub review_load: f64,
}

impl PolicyFile {
    /// As it is written.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("numbers and strings are TOML")
    }

    /// Writes it beside the bundle in `dir`, in place of an earlier one.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, dir: &Path) -> Result<(), SidecarError> {
        let path = dir.join(POLICY);
        let partial = dir.join(format!(".{POLICY}.partial"));
        fs::write(&partial, self.to_toml())
            .and_then(|()| fs::rename(&partial, &path))
            .map_err(|source| SidecarError::File { path, source })
    }
}

/// Why a file beside a bundle cannot be used.
#[derive(Debug, Error)]
pub enum SidecarError {
    /// It cannot be read or written.
    #[error("sidecar_file: {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Not a policy.
    #[error("sidecar_policy: {}: {reason}; fit it again with `triage models policy`, or remove it", path.display())]
    Policy {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Not the taxonomy the bundle was made with.
    #[error("sidecar_taxonomy: {} is not the one this bundle was trained with; copy the bundle again", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// Not a taxonomy.
    #[error("{}: {source}", path.display())]
    Taxonomy {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: Box<TaxonomyError>,
    },
}

/// The version's own taxonomy, or the built-in one, and the text it was read from.
pub(super) fn taxonomy(dir: &Path, bundle: &Bundle) -> Result<(Taxonomy, String), SidecarError> {
    // A taxonomy the manifest does not name is somebody's file, not the model's.
    let Some(expected) = bundle.manifest.digests.get(TAXONOMY) else {
        return Ok((Taxonomy::embedded(), taxonomy::DEFAULT_TOML.to_owned()));
    };
    let path = dir.join(TAXONOMY);
    let text = fs::read_to_string(&path)
        .map_err(|source| SidecarError::File { path: path.clone(), source })?;
    if sha256(text.as_bytes()) != *expected {
        return Err(SidecarError::Changed { path });
    }
    let taxonomy = Taxonomy::parse(&text)
        .map_err(|it| SidecarError::Taxonomy { path, source: Box::new(it) })?;
    Ok((taxonomy, text))
}

/// The policy fitted to the bundle with `digest`, when there is one beside it.
pub(super) fn policy(dir: &Path, digest: &str) -> Result<Option<PolicyFile>, SidecarError> {
    let path = dir.join(POLICY);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(SidecarError::File { path, source }),
    };
    let fail = |reason: String| SidecarError::Policy { path: path.clone(), reason };
    let policy: PolicyFile = toml::from_str(&text).map_err(|it| fail(it.to_string()))?;
    if policy.format != FORMAT {
        return Err(fail(format!("format {} is not format {FORMAT}", policy.format)));
    }
    if policy.bundle != digest {
        return Err(fail(format!("it was fitted to {}, this bundle is {digest}", policy.bundle)));
    }
    let shares = [policy.min_confidence, policy.min_accusation, policy.set_threshold];
    if shares.iter().any(|it| !(0.0..=1.0).contains(it)) {
        return Err(fail("a threshold does not lie between 0 and 1".into()));
    }
    Ok(Some(policy))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::runtime::Precision;
    use crate::pipeline::Pipeline;

    fn policy(bundle: &str) -> PolicyFile {
        PolicyFile {
            format: FORMAT,
            bundle: bundle.into(),
            min_confidence: 0.75,
            min_accusation: 0.5,
            set_threshold: 0.25,
            evidence: PolicyEvidence {
                cases_digest: "sha256:c".into(),
                cases: 10,
                alpha: 0.05,
                max_false_accusation: 0.01,
                coverage: 0.9,
                false_accusation_upper: 0.009,
                missed_upper: 0.08,
                routed_error_upper: None,
                review_load: 1.0,
            },
        }
    }

    fn load_error(dir: &Path) -> String {
        Pipeline::load(dir, None, Precision::F32).err().expect("refused").to_string()
    }

    #[test]
    fn a_fitted_policy_is_in_force_and_a_strangers_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("a");
        let digest = Bundle::for_tests().save(&dir, "").unwrap();
        let before = Pipeline::load(&dir, None, Precision::F32).unwrap();
        policy(&digest).save(&dir).unwrap();
        let after = Pipeline::load(&dir, None, Precision::F32).unwrap();
        assert_eq!(after.taxonomy().policy.min_confidence, 0.75);
        // Another policy is another digest, the same bundle.
        assert_ne!(before.policy_digest(), after.policy_digest());
        assert_eq!(before.identity(), after.identity());
        policy("sha256:other").save(&dir).unwrap();
        assert!(load_error(&dir).starts_with("sidecar_policy"));
        let wrong = PolicyFile { min_confidence: 1.5, ..policy(&digest) };
        wrong.save(&dir).unwrap();
        assert!(load_error(&dir).contains("between 0 and 1"));
        fs::write(dir.join(POLICY), "format = 1").unwrap();
        assert!(load_error(&dir).contains("triage models policy"));
    }

    #[test]
    fn a_bundle_with_its_own_taxonomy_needs_that_one() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("a");
        let text = taxonomy::DEFAULT_TOML.replace("问题类", "诉求类");
        let mut bundle = Bundle::for_tests();
        bundle.manifest.digests.insert(TAXONOMY.into(), sha256(text.as_bytes()));
        bundle.save(&dir, "").unwrap();
        assert!(load_error(&dir).starts_with("sidecar_file"));
        fs::write(dir.join(TAXONOMY), &text).unwrap();
        let pipeline = Pipeline::load(&dir, None, Precision::F32).unwrap();
        assert_eq!(pipeline.taxonomy().types[0].zh, "诉求类");
        fs::write(dir.join(TAXONOMY), taxonomy::DEFAULT_TOML).unwrap();
        assert!(load_error(&dir).starts_with("sidecar_taxonomy"));
    }
}
