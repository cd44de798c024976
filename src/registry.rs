//! Model versions in one directory: which is in production, which was before, which is waiting, and the
//! append-only log of how it came about.
//!
//! A version is a bundle directory and never changes; an alias names one by directory *and* digest, so
//! that a bundle somebody replaced by hand is noticed. All aliases are in one small file that is renamed
//! into place: a reader sees the old state or the new one. Knows neither how good a version is (that is
//! `evaluation::gate`) nor who runs it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::model::bundle::{Bundle, BundleError, sha256};

/// The aliases' file in the models directory.
pub const FILE: &str = "registry.toml";
/// The log's file in the models directory.
pub const LOG: &str = "promotions.jsonl";
/// The format of [`FILE`] this binary reads and writes.
pub const FORMAT: u32 = 1;

const LOCK: &str = ".registry.lock";
const MANIFEST: &str = "bundle.toml";

/// A version as an alias names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Directory of the bundle, inside the models directory.
    pub dir: String,
    /// `sha256:…` of the bundle.
    pub digest: String,
}

/// Which version is what.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Aliases {
    format: u32,
    /// Counts changes of production, so that a watcher can tell a second promotion of the same bundle.
    pub generation: u64,
    /// The version to serve; none means the shipped one.
    pub production: Option<Entry>,
    /// What production was before; `rollback` goes there.
    pub previous: Option<Entry>,
    /// The version that waits for promotion.
    pub candidate: Option<Entry>,
}

/// One line of the log.
#[derive(Debug, Serialize)]
struct Line<'a> {
    at_unix_seconds: u64,
    action: &'a str,
    generation: u64,
    from: Option<&'a Entry>,
    to: Option<&'a Entry>,
    evidence: &'a serde_json::Value,
}

/// A bundle directory that was looked at.
pub struct Version {
    /// Name of the directory.
    pub dir: String,
    /// The checked bundle, or why it cannot be used.
    pub bundle: Result<Bundle, BundleError>,
}

/// A models directory.
#[derive(Debug, Clone)]
pub struct Registry {
    dir: PathBuf,
}

/// Why the registry cannot be read or changed.
#[derive(Debug, Error)]
pub enum RegistryError {
    /// A file cannot be read or written.
    #[error("registry_file: {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The aliases' file does not say what it should.
    #[error("registry_content: {}: {reason}; restore it from {LOG}, or remove it to serve the shipped model", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A name that is no directory in the models directory.
    #[error(
        "invalid_version_name: `{name}` is no name of a directory in {}; `triage models list` shows them",
        dir.display()
    )]
    Name {
        /// What was given.
        name: String,
        /// The models directory.
        dir: PathBuf,
    },
    /// The bundle cannot be used.
    #[error("invalid_bundle: {0}")]
    Bundle(#[from] BundleError),
    /// The bundle is not the one the alias was given to.
    #[error(
        "changed_bundle: {} has digest {actual}, the registry expects {expected}: somebody replaced it; \
         copy the right bundle back, or promote this one under a name of its own",
        path.display()
    )]
    Changed {
        /// The bundle.
        path: PathBuf,
        /// Digest the alias names.
        expected: String,
        /// Digest it has.
        actual: String,
    },
    /// Somebody else changed production between the look and the change.
    #[error(
        "production_changed: another promotion or rollback came in between, so the comparison is with a version \
         that is no longer served; run the command again"
    )]
    Moved,
    /// There is no version with this alias.
    #[error("no_{alias}: the registry names no {alias} version; {fix}")]
    NoAlias {
        /// The alias.
        alias: &'static str,
        /// What to do.
        fix: &'static str,
    },
}

impl Registry {
    /// The registry of the models directory `dir`. Nothing is read yet.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The models directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the bundle of `entry` is.
    pub fn path(&self, entry: &Entry) -> PathBuf {
        self.dir.join(&entry.dir)
    }

    /// The aliases; empty when there is no file.
    ///
    /// # Errors
    /// [`RegistryError::File`] or [`RegistryError::Content`].
    pub fn aliases(&self) -> Result<Aliases, RegistryError> {
        let path = self.dir.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Aliases::default()),
            Err(source) => return Err(RegistryError::File { path, source }),
        };
        let content = |reason: String| RegistryError::Content { path: path.clone(), reason };
        let aliases: Aliases = toml::from_str(&text).map_err(|it| content(it.to_string()))?;
        if aliases.format != FORMAT {
            return Err(content(format!("format {} is not format {FORMAT}", aliases.format)));
        }
        let named = [&aliases.production, &aliases.previous, &aliases.candidate];
        for entry in named.into_iter().flatten() {
            self.check_name(&entry.dir)?;
        }
        Ok(aliases)
    }

    /// Directory of the version in production, when the registry names one and its manifest is the one
    /// that was promoted. Cheap: reads the manifest only.
    ///
    /// # Errors
    /// [`RegistryError`]; a bundle that was replaced is [`RegistryError::Changed`].
    pub fn production(&self) -> Result<Option<PathBuf>, RegistryError> {
        let Some(entry) = self.aliases()?.production else { return Ok(None) };
        let path = self.path(&entry);
        let manifest = path.join(MANIFEST);
        let bytes =
            fs::read(&manifest).map_err(|source| RegistryError::File { path: manifest, source })?;
        match sha256(&bytes) {
            actual if actual == entry.digest => Ok(Some(path)),
            actual => Err(RegistryError::Changed { path, expected: entry.digest, actual }),
        }
    }

    /// Every bundle in the models directory, in order of names.
    ///
    /// # Errors
    /// [`RegistryError::File`] when the directory cannot be read; a broken bundle is a value.
    pub fn versions(&self) -> Result<Vec<Version>, RegistryError> {
        let fail = |source| RegistryError::File { path: self.dir.clone(), source };
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // A name with a dot before it is a bundle that is still being written.
            if !name.starts_with('.') && entry.path().join(MANIFEST).is_file() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names
            .into_iter()
            .map(|dir| Version { bundle: Bundle::load(&self.dir.join(&dir)), dir })
            .collect())
    }

    /// The version in directory `name` with its whole bundle, digests checked.
    ///
    /// # Errors
    /// [`RegistryError::Name`] or [`RegistryError::Bundle`].
    pub fn check(&self, name: &str) -> Result<(Entry, Bundle), RegistryError> {
        self.check_name(name)?;
        let bundle = Bundle::load(&self.dir.join(name))?;
        Ok((Entry { dir: name.to_owned(), digest: bundle.digest.clone() }, bundle))
    }

    /// As [`Registry::check`], for a version an alias names.
    ///
    /// # Errors
    /// As there, and [`RegistryError::Changed`].
    pub fn check_entry(&self, entry: &Entry) -> Result<Bundle, RegistryError> {
        let (found, bundle) = self.check(&entry.dir)?;
        if found.digest != entry.digest {
            return Err(RegistryError::Changed {
                path: self.path(entry),
                expected: entry.digest.clone(),
                actual: found.digest,
            });
        }
        Ok(bundle)
    }

    /// Names `entry` the candidate.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn set_candidate(&self, entry: Entry) -> Result<(), RegistryError> {
        let _lock = self.lock()?;
        let mut aliases = self.aliases()?;
        aliases.candidate = Some(entry);
        self.write(&aliases)
    }

    /// Puts `entry` in production; `seen` are the aliases it was compared under, `before` is what was served
    /// until now when the registry named nothing. `evidence` goes to the log.
    ///
    /// # Errors
    /// [`RegistryError`]; then production is as it was.
    pub fn promote(
        &self,
        entry: &Entry,
        seen: &Aliases,
        before: Option<Entry>,
        evidence: &serde_json::Value,
    ) -> Result<(), RegistryError> {
        let _lock = self.lock()?;
        self.check_entry(entry)?;
        let old = self.aliases()?;
        if old.generation != seen.generation {
            return Err(RegistryError::Moved);
        }
        let mut new = old.clone();
        new.previous = old.production.clone().or(before);
        new.production = Some(entry.clone());
        if new.candidate.as_ref() == Some(entry) {
            new.candidate = None;
        }
        self.change("promote", &old, new, evidence)
    }

    /// Puts the previous version in production again and the present one in its place, so that a second
    /// rollback undoes the first. Returns the version now in production; none is the shipped one.
    ///
    /// # Errors
    /// [`RegistryError`]; then production is as it was.
    pub fn rollback(&self) -> Result<Option<Entry>, RegistryError> {
        let _lock = self.lock()?;
        let old = self.aliases()?;
        if old.production.is_none() && old.previous.is_none() {
            return Err(RegistryError::NoAlias {
                alias: "previous",
                fix: "there is nothing to roll back to before the first promotion",
            });
        }
        if let Some(previous) = &old.previous {
            self.check_entry(previous)?;
        }
        let mut new = old.clone();
        new.production = old.previous.clone();
        new.previous = old.production.clone();
        let back_to = new.production.clone();
        self.change("rollback", &old, new, &serde_json::Value::Null)?;
        Ok(back_to)
    }

    /// Log first, then rename: a change that was not logged does not happen.
    fn change(
        &self,
        action: &str,
        old: &Aliases,
        mut new: Aliases,
        evidence: &serde_json::Value,
    ) -> Result<(), RegistryError> {
        new.generation = old.generation + 1;
        let log = |action: &str| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            self.append(&Line {
                at_unix_seconds: now.as_secs(),
                action,
                generation: new.generation,
                from: old.production.as_ref(),
                to: new.production.as_ref(),
                evidence,
            })
        };
        log(action)?;
        self.write(&new).inspect_err(|_| {
            // The error itself is what the caller hears; the log keeps the attempt from looking done.
            let _ = log(&format!("{action}_failed"));
        })
    }

    fn append(&self, line: &Line<'_>) -> Result<(), RegistryError> {
        let path = self.dir.join(LOG);
        let append = || {
            let mut bytes = serde_json::to_vec(line).map_err(io::Error::other)?;
            bytes.push(b'\n');
            let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
            file.write_all(&bytes)?;
            file.sync_all()
        };
        append().map_err(|source| RegistryError::File { path: path.clone(), source })
    }

    fn write(&self, aliases: &Aliases) -> Result<(), RegistryError> {
        let path = self.dir.join(FILE);
        let partial = self.dir.join(format!(".{FILE}.partial"));
        let aliases = Aliases { format: FORMAT, ..aliases.clone() };
        let text = toml::to_string(&aliases)
            .map_err(|it| RegistryError::Content { path: path.clone(), reason: it.to_string() })?;
        let write = || {
            let mut file = File::create(&partial)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&partial, &path)
        };
        write().map_err(|source| RegistryError::File { path: path.clone(), source })
    }

    /// One change at a time, also among processes; released when dropped, and by the system when a
    /// process dies.
    fn lock(&self) -> Result<File, RegistryError> {
        let path = self.dir.join(LOCK);
        let lock = || {
            let file = OpenOptions::new().create(true).append(true).open(&path)?;
            file.lock()?;
            Ok(file)
        };
        lock().map_err(|source| RegistryError::File { path: path.clone(), source })
    }

    fn check_name(&self, name: &str) -> Result<(), RegistryError> {
        let mut parts = Path::new(name).components();
        match (parts.next(), parts.next()) {
            (Some(Component::Normal(part)), None) if part == name && !name.starts_with('.') => {
                Ok(())
            }
            _ => Err(RegistryError::Name { name: name.to_owned(), dir: self.dir.clone() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry() -> (tempfile::TempDir, Registry, Vec<Entry>) {
        let home = tempfile::tempdir().unwrap();
        let registry = Registry::new(home.path());
        let entries = ["a", "b"]
            .map(|name| {
                let mut bundle = Bundle::for_tests();
                bundle.manifest.name = name.into();
                bundle.save(&home.path().join(name), "").unwrap();
                registry.check(name).unwrap().0
            })
            .to_vec();
        (home, registry, entries)
    }

    fn log(registry: &Registry) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(registry.dir().join(LOG)).unwrap_or_default();
        text.lines().map(|it| serde_json::from_str(it).unwrap()).collect()
    }

    #[test]
    fn a_promotion_over_another_production_than_it_was_compared_with_is_refused() {
        let (_home, registry, entries) = registry();
        let [a, b] = [&entries[0], &entries[1]];
        let seen = registry.aliases().unwrap();
        registry.promote(a, &seen, None, &serde_json::Value::Null).unwrap();
        let refused = registry.promote(b, &seen, None, &serde_json::Value::Null).unwrap_err();
        assert!(refused.to_string().starts_with("production_changed"), "{refused}");
        assert_eq!(registry.aliases().unwrap().production.as_ref(), Some(a));
    }

    #[test]
    fn promotion_and_rollback_go_there_and_back_and_are_logged() {
        let (_home, registry, entries) = registry();
        assert_eq!(registry.production().unwrap(), None);
        assert!(registry.rollback().unwrap_err().to_string().starts_with("no_previous"));
        let [a, b] = [&entries[0], &entries[1]];
        registry.set_candidate(b.clone()).unwrap();
        let evidence = serde_json::json!({"gates": 1});
        registry.promote(b, &registry.aliases().unwrap(), Some(a.clone()), &evidence).unwrap();
        let aliases = registry.aliases().unwrap();
        assert_eq!((aliases.production.as_ref(), aliases.previous.as_ref()), (Some(b), Some(a)));
        assert_eq!(aliases.candidate, None);
        assert_eq!(registry.production().unwrap(), Some(registry.path(b)));
        assert_eq!(registry.rollback().unwrap().as_ref(), Some(a));
        assert_eq!(registry.rollback().unwrap().as_ref(), Some(b));
        let log = log(&registry);
        let actions: Vec<_> = log.iter().map(|it| it["action"].as_str().unwrap()).collect();
        assert_eq!(actions, ["promote", "rollback", "rollback"]);
        assert_eq!(log[0]["evidence"], evidence);
        assert_eq!(log[2]["generation"], 3);
    }

    #[test]
    fn a_corrupt_or_foreign_bundle_leaves_production_untouched() {
        let (_home, registry, entries) = registry();
        let [a, b] = [&entries[0], &entries[1]];
        registry.promote(a, &registry.aliases().unwrap(), None, &serde_json::Value::Null).unwrap();
        let before = registry.aliases().unwrap();
        // Weights that were damaged after the entry was made.
        let weights = registry.path(b).join("model.safetensors");
        let whole = fs::read(&weights).unwrap();
        fs::write(&weights, &whole[..whole.len() / 2]).unwrap();
        let error = registry
            .promote(b, &registry.aliases().unwrap(), None, &serde_json::Value::Null)
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("invalid_bundle") && error.contains("digest"), "{error}");
        fs::write(&weights, &whole).unwrap();
        // A whole bundle, but another one than was named.
        let other = Entry { digest: "sha256:0".into(), ..b.clone() };
        let error = registry
            .promote(&other, &registry.aliases().unwrap(), None, &serde_json::Value::Null)
            .unwrap_err();
        assert!(error.to_string().starts_with("changed_bundle"), "{error}");
        // A directory that is no bundle, and names that lead outside.
        fs::create_dir(registry.dir().join("c")).unwrap();
        assert!(registry.check("c").is_err());
        for name in ["../a", "", ".", "a/../b", "/tmp", ".hidden"] {
            let error = registry.check(name).err().expect("refused").to_string();
            assert!(error.starts_with("invalid_version_name"), "{name}: {error}");
        }
        assert_eq!(registry.aliases().unwrap(), before);
        assert_eq!(log(&registry).len(), 1);
    }

    #[test]
    fn a_production_bundle_that_was_replaced_is_noticed() {
        let (_home, registry, entries) = registry();
        registry
            .promote(&entries[0], &registry.aliases().unwrap(), None, &serde_json::Value::Null)
            .unwrap();
        fs::copy(
            registry.path(&entries[1]).join(MANIFEST),
            registry.path(&entries[0]).join(MANIFEST),
        )
        .unwrap();
        assert!(registry.production().unwrap_err().to_string().starts_with("changed_bundle"));
    }

    #[test]
    fn a_file_of_another_format_or_no_toml_is_refused() {
        let (_home, registry, _) = registry();
        for text in ["format = 9\ngeneration = 0\n", "format = [", "format = 1\nspeed = 3\n"] {
            fs::write(registry.dir().join(FILE), text).unwrap();
            let error = registry.aliases().unwrap_err().to_string();
            assert!(error.starts_with("registry_content"), "{error}");
        }
    }
}
