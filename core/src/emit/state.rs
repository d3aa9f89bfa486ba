//! The memory of a target: what was baked into it and what was there before. With it a second run
//! changes nothing, another run replaces what the last one added, and [`undo`] takes everything back.

use alloc::borrow::ToOwned as _;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::{Emission, EmitError, File, Input, Present, Profile, Settings, emit, inputs, trusted};
use crate::digest::Digest;

/// Where the memory is kept, within the target. It may hold parts of secret files: mode 600.
pub const STATE: &str = "/etc/vdkr/baked.json";
/// The version of its format.
const VERSION: u32 = 1;
/// Most files and directories that it may name.
const MOST: usize = 4096;

/// What was baked into a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    version: u32,
    files: Vec<Record>,
    /// Directories that were made, parents first.
    pub directories: Vec<String>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            version: VERSION,
            files: Vec::new(),
            directories: Vec::new(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    path: String,
    profiles: Vec<Profile>,
    /// Digest of the file as it was baked.
    after: Digest,
    /// What was there before; `None` when nothing was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    before: Option<Before>,
}

/// How to get from a baked file back to what it was: at byte `at`, take `added` bytes out and put
/// `removed` in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Before {
    digest: Digest,
    mode: u32,
    at: usize,
    added: usize,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    removed: String,
}

/// A file of the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// Its text.
    pub text: String,
    /// Its permission bits.
    pub mode: u32,
}

/// The target's file system, for reading.
pub trait Files {
    /// What reading fails with.
    type Error: From<EmitError>;

    /// A file, `None` when there is none.
    fn read(&mut self, path: &str) -> Result<Option<Content>, Self::Error>;

    /// The names in a directory that end in `.conf`; none when there is no directory.
    fn drops(&mut self, directory: &str) -> Result<Vec<String>, Self::Error>;
}

/// What happens to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It is new.
    Create,
    /// It gets another content or mode.
    Change,
    /// It is as it shall be.
    Keep,
    /// It goes.
    Remove,
    /// It was changed by somebody else and stays as it is.
    Leave,
}

/// One file of a [`Plan`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Absolute path within the target.
    pub path: String,
    /// What happens.
    pub action: Action,
    /// What is there.
    pub old: Option<String>,
    /// What shall be there.
    pub new: Option<String>,
    /// The mode that it shall have; `None` keeps what it has.
    pub mode: Option<u32>,
    /// Whether the contents are nobody's to see.
    pub secret: bool,
}

/// What is to be done to a target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The files in the order of their paths.
    pub changes: Vec<Change>,
    /// The memory to write before the first file is: what is remembered already as well as what will
    /// be, so that an interrupted run can be finished or taken back.
    pub interim: State,
    /// The memory to write behind the last file.
    pub state: State,
    /// What the user should know.
    pub notes: Vec<String>,
}

impl Plan {
    /// Whether anything is to be written or removed.
    pub fn does_something(&self) -> bool {
        self.changes.iter().any(|change| {
            matches!(
                change.action,
                Action::Create | Action::Change | Action::Remove
            )
        })
    }
}

impl State {
    /// Reads the memory of a target. It is foreign input: its paths are checked.
    pub fn parse(text: &str) -> Result<Self, EmitError> {
        let bad = |reason: String| EmitError::present(STATE, reason);
        let state: Self = serde_json::from_str(text).map_err(|error| bad(error.to_string()))?;
        if state.version != VERSION {
            return Err(bad(format!("version {} is not known", state.version)));
        }
        if state.files.len() > MOST || state.directories.len() > MOST {
            return Err(bad(format!("it names more than {MOST} files")));
        }
        let files = state.files.iter().map(|record| &record.path);
        for path in files.chain(&state.directories) {
            if !super::is_plain_path(path) || path.ends_with('/') || path == STATE {
                return Err(bad(format!("it names {path:?}, which no bake writes")));
            }
        }
        Ok(state)
    }

    /// The text to keep.
    pub fn to_json(&self) -> String {
        // Nothing in it has keys that are no texts, and writing to memory does not fail.
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }

    /// Whether it remembers nothing.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// The profiles that were baked.
    pub fn profiles(&self) -> Vec<Profile> {
        let mut profiles: Vec<_> = self.files.iter().flat_map(|r| r.profiles.clone()).collect();
        profiles.sort_unstable();
        profiles.dedup();
        profiles
    }
}

/// A file that is neither as it was baked nor as it was before.
struct Changed;

/// What is remembered of a path. After an interrupted run there may be two records of it, and what is
/// there now tells which one is right.
struct Memory<'s> {
    records: Vec<&'s Record>,
    original: Result<Option<Content>, Changed>,
}

impl State {
    fn memory(&self, path: &str, now: Option<&Content>) -> Option<Memory<'_>> {
        let records: Vec<_> = self
            .files
            .iter()
            .filter(|record| record.path == path)
            .collect();
        let judged = records.iter().map(|record| record.original(now));
        let original = judged.reduce(Result::or)?;
        Some(Memory { records, original })
    }

    /// The paths of the files, each once.
    fn paths(&self) -> Vec<&str> {
        let mut paths: Vec<_> = self
            .files
            .iter()
            .map(|record| record.path.as_str())
            .collect();
        paths.sort_unstable();
        paths.dedup();
        paths
    }
}

impl Memory<'_> {
    /// Those who asked for the file and are not among these.
    fn others(&self, profiles: &[Profile]) -> Vec<Profile> {
        let owners = self.records.iter().flat_map(|record| &record.profiles);
        let mut others: Vec<_> = owners.copied().filter(|p| !profiles.contains(p)).collect();
        others.sort_unstable();
        others.dedup();
        others
    }
}

impl Record {
    fn new(path: &str, profiles: Vec<Profile>, before: Option<&Content>, after: &str) -> Self {
        Self {
            path: path.to_owned(),
            profiles,
            after: Digest::sha256(after.as_bytes()),
            before: before.map(|before| Before::new(before, after)),
        }
    }

    /// What was there before the bake, judged by what is there now.
    fn original(&self, now: Option<&Content>) -> Result<Option<Content>, Changed> {
        let digest = now.map(|now| Digest::sha256(now.text.as_bytes()));
        match (&self.before, now) {
            // Written down but never done: the run was interrupted.
            (None, None) => Ok(None),
            (Some(before), Some(now)) if digest.as_ref() == Some(&before.digest) => {
                Ok(Some(Content {
                    text: now.text.clone(),
                    mode: before.mode,
                }))
            }
            (None, Some(_)) if digest.as_ref() == Some(&self.after) => Ok(None),
            (Some(before), Some(now)) if digest.as_ref() == Some(&self.after) => {
                before.restore(&now.text).map(Some).ok_or(Changed)
            }
            _ => Err(Changed),
        }
    }
}

impl Before {
    fn new(before: &Content, after: &str) -> Self {
        let (old, new) = (before.text.as_bytes(), after.as_bytes());
        let same = |pair: &(&u8, &u8)| pair.0 == pair.1;
        let mut at = old.iter().zip(new).take_while(same).count();
        while !(before.text.is_char_boundary(at) && after.is_char_boundary(at)) {
            at -= 1;
        }
        let (old_rest, new_rest) = (&old[at..], &new[at..]);
        let mut tail = old_rest
            .iter()
            .rev()
            .zip(new_rest.iter().rev())
            .take_while(same)
            .count();
        while !(before.text.is_char_boundary(old.len() - tail)
            && after.is_char_boundary(new.len() - tail))
        {
            tail -= 1;
        }
        Self {
            digest: Digest::sha256(old),
            mode: before.mode,
            at,
            added: new_rest.len() - tail,
            removed: before.text[at..old.len() - tail].to_owned(),
        }
    }

    fn restore(&self, after: &str) -> Option<Content> {
        let (head, rest) = (after.get(..self.at)?, after.get(self.at..)?);
        let text = format!("{head}{}{}", self.removed, rest.get(self.added..)?);
        (Digest::sha256(text.as_bytes()) == self.digest).then_some(Content {
            text,
            mode: self.mode & 0o7777,
        })
    }
}

/// What baking these profiles does to a target that remembers `state`. What an earlier bake of the
/// same profiles added is taken back first, so the outcome is the same whatever was baked before.
pub fn bake<F: Files>(
    profiles: &[Profile],
    settings: &Settings,
    state: &State,
    files: &mut F,
) -> Result<Plan, F::Error> {
    let mut now = Now::default();
    for input in inputs(profiles, &settings.home) {
        match input {
            Input::File(path) => now.read(files, &path)?,
            Input::Drops(directory) => {
                for name in files.drops(&directory)? {
                    now.read(files, &format!("{directory}/{name}"))?;
                }
            }
        }
    }
    for path in trusted(settings) {
        now.read(files, &path)?;
    }
    let mut present: Present = now.texts();
    for path in state.paths() {
        now.read(files, path)?;
        let memory = state.memory(path, now.get(path));
        let memory = memory.filter(|memory| memory.others(profiles).is_empty());
        match memory.map(|memory| memory.original) {
            Some(Ok(Some(original))) => {
                present.insert(path.to_owned(), original.text);
            }
            Some(Ok(None)) => {
                present.remove(path);
            }
            Some(Err(Changed)) | None => {}
        }
    }
    let Emission {
        files: emitted,
        notes,
    } = emit(profiles, settings, &present)?;
    let mut plan = Plan {
        notes,
        ..Plan::default()
    };
    plan.state.directories.clone_from(&state.directories);
    for file in &emitted {
        now.read(files, &file.path)?;
        let known = state.memory(&file.path, now.get(&file.path));
        let (change, record) = settle(file, now.get(&file.path), known, profiles);
        plan.changes.push(change);
        plan.state.files.extend(record);
    }
    for path in state.paths() {
        if emitted.iter().any(|file| file.path == path) {
            continue;
        }
        let Some(memory) = state.memory(path, now.get(path)) else {
            continue;
        };
        let others = memory.others(profiles);
        if !others.is_empty() {
            let records = memory.records.into_iter().map(|record| Record {
                profiles: others.clone(),
                ..record.clone()
            });
            plan.state.files.extend(records);
            continue;
        }
        let records = memory.records.clone();
        let change = take_back(path, memory, now.get(path));
        if change.action == Action::Leave {
            plan.state.files.extend(records.into_iter().cloned());
        }
        plan.changes.push(change);
    }
    plan.interim = plan.state.clone();
    let done = &plan.state.files;
    let still = state.files.iter().filter(|record| !done.contains(record));
    plan.interim.files.extend(still.cloned());
    plan.changes.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(plan)
}

/// What happens to an emitted file, and what is remembered of it.
fn settle(
    file: &File,
    now: Option<&Content>,
    known: Option<Memory<'_>>,
    profiles: &[Profile],
) -> (Change, Option<Record>) {
    let others = known.as_ref().map(|memory| memory.others(profiles));
    let original = match known.map(|memory| memory.original) {
        Some(Ok(original)) => original,
        // Whatever it is now is what this bake finds.
        Some(Err(Changed)) | None => now.cloned(),
    };
    let too_open = |content: &Content| file.secret && content.mode & 0o077 != 0;
    let action = match now {
        None => Action::Create,
        Some(now) if now.text == file.content && !too_open(now) => Action::Keep,
        Some(_) => Action::Change,
    };
    let mut owners = file.profiles.clone();
    owners.extend(others.unwrap_or_default());
    owners.sort_unstable();
    owners.dedup();
    let ours = !original
        .as_ref()
        .is_some_and(|original| original.text == file.content && !too_open(original));
    let record = ours.then(|| Record::new(&file.path, owners, original.as_ref(), &file.content));
    let mode = match (file.secret, action) {
        (true, _) => Some(0o600),
        (false, Action::Create) => Some(0o644),
        (false, _) => None,
    };
    let change = Change {
        path: file.path.clone(),
        action,
        old: now.map(|now| now.text.clone()),
        new: Some(file.content.clone()),
        mode,
        secret: file.secret,
    };
    (change, record)
}

fn take_back(path: &str, memory: Memory<'_>, now: Option<&Content>) -> Change {
    let old = now.map(|now| now.text.clone());
    let secret = is_secret(path);
    let same = |original: &Content| {
        now.is_some_and(|now| now.text == original.text && !(secret && now.mode != original.mode))
    };
    let (action, new, mode) = match memory.original {
        Ok(Some(original)) if same(&original) => (Action::Keep, Some(original.text), None),
        Ok(Some(original)) => (Action::Change, Some(original.text), Some(original.mode)),
        Ok(None) if old.is_none() => (Action::Keep, None, None),
        Ok(None) => (Action::Remove, None, None),
        Err(Changed) => (Action::Leave, old.clone(), None),
    };
    Change {
        path: path.to_owned(),
        action,
        old,
        new,
        mode,
        secret,
    }
}

/// Whether the file is one that holds credentials.
fn is_secret(path: &str) -> bool {
    path.ends_with("/config.json") || path.ends_with("/auth.json")
}

/// What takes everything back that was baked. Files that somebody changed since are left.
pub fn undo<F: Files>(state: &State, files: &mut F) -> Result<Plan, F::Error> {
    let mut plan = Plan::default();
    plan.state.directories.clone_from(&state.directories);
    plan.interim = state.clone();
    for path in state.paths() {
        let now = files.read(path)?;
        if let Some(memory) = state.memory(path, now.as_ref()) {
            plan.changes.push(take_back(path, memory, now.as_ref()));
        }
    }
    plan.changes.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(plan)
}

/// What was read, each file once.
#[derive(Default)]
struct Now(BTreeMap<String, Option<Content>>);

impl Now {
    fn read<F: Files>(&mut self, files: &mut F, path: &str) -> Result<(), F::Error> {
        if !self.0.contains_key(path) {
            let content = files.read(path)?;
            self.0.insert(path.to_owned(), content);
        }
        Ok(())
    }

    fn get(&self, path: &str) -> Option<&Content> {
        self.0.get(path)?.as_ref()
    }

    fn texts(&self) -> Present {
        let found = self.0.iter();
        found
            .filter_map(|(path, content)| Some((path.clone(), content.as_ref()?.text.clone())))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn content() -> impl Strategy<Value = Content> {
        ("[a-c\né☃\"\\\\]{0,12}", 0..0o7777_u32).prop_map(|(text, mode)| Content { text, mode })
    }

    /// A file's path, its owners, what was there and what was baked.
    fn baked() -> impl Strategy<Value = (String, Vec<Profile>, Option<Content>, String)> {
        (
            "(/[a-z.é ]{0,3}[a-z]){1,4}",
            prop::sample::subsequence(Profile::ALL.to_vec(), 1..=5),
            prop::option::of(content()),
            "[a-c\né☃\"\\\\]{0,12}",
        )
    }

    proptest! {
        #[test]
        fn any_text_gives_an_answer(
            text in "\\PC{0,60}|\\{\"version\":1,\"files\":\\[[^\\]]{0,40}\\],\"directories\":\\[[^\\]]{0,40}\\]\\}",
        ) {
            if let Ok(state) = State::parse(&text) {
                prop_assert_eq!(State::parse(&state.to_json()), Ok(state));
            }
        }

        #[test]
        fn what_is_kept_is_read_and_leads_back(
            files in prop::collection::vec(baked(), 0..5),
            directories in prop::collection::vec("(/[a-z]{1,3}){1,3}", 0..4),
        ) {
            let records = files.iter().map(|(path, profiles, before, after)| {
                Record::new(path, profiles.clone(), before.as_ref(), after)
            });
            let state = State { files: records.collect(), directories, ..State::default() };
            let text = state.to_json();
            prop_assert_eq!(State::parse(&text), Ok(state.clone()));
            // One that is cut is no shorter memory.
            for (end, _) in text.trim_end().char_indices() {
                prop_assert!(State::parse(&text[..end]).is_err(), "{}", &text[..end]);
            }
            for (record, (_, _, before, after)) in state.files.iter().zip(&files) {
                let now = Content { text: after.clone(), mode: 0o644 };
                let original = record.original(Some(&now));
                prop_assert_eq!(original.ok().flatten(), before.clone());
                // What somebody else has changed is not taken for ours.
                let changed = Content { text: format!("{after}!"), mode: 0o644 };
                let known = before.as_ref().is_some_and(|before| before.text == changed.text);
                prop_assert_eq!(record.original(Some(&changed)).is_ok(), known);
            }
        }

        #[test]
        fn a_path_that_is_no_files_is_refused(
            path in "(/[a-z]{1,3}){1,3}",
            ending in prop::sample::select(alloc::vec!["/", "/.", "/..", "\n", "//x"]),
        ) {
            let state = State { directories: alloc::vec![path.clone()], ..State::default() };
            prop_assert!(State::parse(&state.to_json()).is_ok());
            let state = State { directories: alloc::vec![path + ending], ..State::default() };
            prop_assert!(State::parse(&state.to_json()).is_err());
        }

        #[test]
        fn more_than_a_target_holds_is_refused(beyond in 0..3_usize) {
            let directories = alloc::vec!["/d".to_owned(); MOST + beyond];
            let state = State { directories, ..State::default() };
            prop_assert_eq!(State::parse(&state.to_json()).is_ok(), beyond == 0);
        }
    }
}
