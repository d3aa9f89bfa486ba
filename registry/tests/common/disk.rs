//! A model of a disk: what of a record of file operations is there after a power cut.

use std::collections::BTreeMap;
use std::path::Path;

use vdkr_registry::fs::Op;

/// What the power cut takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Nothing: only the process died.
    Nothing,
    /// Everything that was not synced.
    Unsynced,
    /// The content of files that were not synced, while all names are there.
    Content,
    /// Any part of what was not synced, drawn with this seed.
    Some(u64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    Directory,
    File(u64),
}

#[derive(Clone, Debug, Default)]
struct Content {
    now: Vec<u8>,
    synced: Vec<u8>,
}

/// The disk after some operations.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    now: BTreeMap<String, Node>,
    synced: BTreeMap<String, Node>,
    contents: BTreeMap<u64, Content>,
    /// Files by the number of each opening of them.
    openings: BTreeMap<u64, u64>,
}

impl Disk {
    pub fn after(ops: &[Op]) -> Self {
        let mut disk = Self::default();
        for op in ops {
            disk.apply(op);
        }
        disk
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Mkdir { path } => {
                self.now.entry(path.clone()).or_insert(Node::Directory);
            }
            Op::Create { path, file } => {
                // Creating fails where something is already; the code under test never does that.
                assert!(
                    self.now.insert(path.clone(), Node::File(*file)).is_none(),
                    "{path}"
                );
                self.contents.insert(*file, Content::default());
                self.openings.insert(*file, *file);
            }
            Op::Open { path, file } => {
                if let Some(Node::File(id)) = self.now.get(path) {
                    self.openings.insert(*file, *id);
                }
            }
            Op::Write {
                file,
                offset,
                bytes,
            } => {
                let content = &mut self.content(*file).now;
                let at = usize::try_from(*offset).unwrap();
                content.resize(content.len().max(at + bytes.len()), 0);
                content[at..at + bytes.len()].copy_from_slice(bytes);
            }
            Op::SyncFile { file } => {
                let content = self.content(*file);
                content.synced = content.now.clone();
            }
            Op::Rename { from, to } => {
                if let Some(node) = self.now.remove(from) {
                    assert!(self.now.contains_key(parent(to)), "{to} has no directory");
                    self.now.insert(to.clone(), node);
                }
            }
            Op::SyncDir { path } => {
                let inside = |key: &String| parent(key) == path;
                self.synced.retain(|key, _| !inside(key));
                let there: Vec<_> = self.now.iter().filter(|(key, _)| inside(key)).collect();
                self.synced
                    .extend(there.into_iter().map(|(k, v)| (k.clone(), v.clone())));
            }
            Op::RemoveFile { path } => {
                if matches!(self.now.get(path), Some(Node::File(_))) {
                    self.now.remove(path);
                }
            }
            Op::RemoveDir { path } => {
                if !self.now.keys().any(|key| parent(key) == path) {
                    self.now.remove(path);
                }
            }
            Op::Read { .. }
            | Op::Stat { .. }
            | Op::List { .. }
            | Op::Lock { .. }
            | Op::Touch { .. } => {}
        }
    }

    fn content(&mut self, opening: u64) -> &mut Content {
        let id = self.openings[&opening];
        self.contents.get_mut(&id).unwrap()
    }

    /// Writes what is left to an empty directory.
    pub fn materialise(&self, loss: Loss, root: &Path) {
        let mut dice = match loss {
            Loss::Some(seed) => seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            _ => 0,
        };
        let mut roll = |sides: u64| {
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            dice % sides
        };
        let names: std::collections::BTreeSet<_> =
            self.now.keys().chain(self.synced.keys()).collect();
        for name in names {
            let (now, synced) = (self.now.get(name), self.synced.get(name));
            let node = match loss {
                Loss::Nothing | Loss::Content => now,
                Loss::Unsynced => synced,
                Loss::Some(_) => [now, synced][usize::try_from(roll(2)).unwrap()],
            };
            let path = root.join(name);
            // Names in order: whatever is above was decided before.
            if !path.parent().unwrap().is_dir() {
                continue;
            }
            match node {
                None => {}
                Some(Node::Directory) => std::fs::create_dir(&path).unwrap(),
                Some(Node::File(id)) => {
                    let Content { now, synced } = &self.contents[id];
                    let content = match loss {
                        Loss::Nothing => &now[..],
                        Loss::Unsynced | Loss::Content => synced,
                        Loss::Some(_) if now == synced => now,
                        Loss::Some(_) => match roll(3) {
                            0 => now,
                            1 => synced,
                            _ => &now[..now.len() / 2],
                        },
                    };
                    std::fs::write(&path, content).unwrap();
                }
            }
        }
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or(".", |(parent, _)| parent)
}
