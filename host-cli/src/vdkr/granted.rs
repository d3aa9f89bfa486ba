//! What a user gave to containers that stay: ports and paths of this computer, noted in the state
//! directory when a container is made, and given again before each later start.
//!
//! ```text
//! granted/<id>.json   one container's
//! ```
//!
//! Only what is noted here is ever given again, whatever the machine says. A path is given again as it
//! was: one that a symbolic link has come to lead elsewhere is not.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use vdkr_core::{
    channel::message::{
        ContainerReply, ContainerRequest, ContainerRow, MountSource, MountSpec, PublishRequest,
        Reply, Request,
    },
    container::ports::Publish,
};

use super::{
    command::wrong_reply,
    error::{Error, Result},
    session::Session,
    settings::{Settings, StatePlace},
    volumes,
    words::say,
};
use crate::{
    exit::Exit,
    share::{Mark, Source},
};

/// Directory in a state directory.
const DIR: &str = "granted";
/// Bytes of a note.
const MAX_NOTE: u64 = 1 << 20;
/// Notes in a state directory.
const MAX_NOTES: usize = 1024;
/// Digits of a container's id.
const ID: usize = 64;

/// What one container was given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Granted {
    /// Its ports, as they were asked for.
    pub ports: Vec<Publish>,
    /// They lead to the machine's own address.
    pub machine: bool,
    /// Its paths.
    pub paths: Vec<SharedPath>,
}

/// A path of this computer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedPath {
    /// What the container knows it by.
    pub share: String,
    /// Absolute, and through links.
    pub path: PathBuf,
    /// The machine may not change anything.
    pub read_only: bool,
    /// Which directory it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<Mark>,
}

impl SharedPath {
    /// Opens it again, as long as no link leads to something else.
    pub fn open(&self) -> Result<Source> {
        Source::open_again(&self.path, self.mark).map_err(|error| volumes::told(&error))
    }
}

impl Granted {
    /// What a new container gets by these mounts.
    pub fn of_mounts(mounts: &[MountSpec]) -> Self {
        let paths = mounts.iter().filter_map(|mount| match &mount.source {
            MountSource::Share { share, path } => Some(SharedPath {
                share: share.clone(),
                path: path.into(),
                read_only: mount.read_only,
                mark: Source::open(path.as_ref()).ok().and_then(|it| it.mark()),
            }),
            _ => None,
        });
        Self {
            paths: paths.collect(),
            ..Self::default()
        }
    }

    fn is_empty(&self) -> bool {
        self.ports.is_empty() && self.paths.is_empty()
    }

    /// Notes what the container of this id was given.
    pub fn note(&self, settings: &Settings, id: &str) {
        let StatePlace::Directory(dir) = &settings.state else {
            return;
        };
        if self.is_empty() {
            return;
        }
        if let Err(error) = self.write(dir, id) {
            say(&format!(
                "the ports and paths of container {id} will not be given to it again: {error}"
            ));
        }
    }

    fn write(&self, dir: &Path, id: &str) -> io::Result<()> {
        let path = note_path(dir, id)
            .ok_or_else(|| io::Error::other("the machine's agent gave it no id"))?;
        if notes(dir).len() >= MAX_NOTES {
            return Err(io::Error::other("there are too many containers"));
        }
        let directory = dir.join(DIR);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)?;
        let draft = path.with_extension("new");
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600);
        options
            .open(&draft)?
            .write_all(&serde_json::to_vec(self)?)?;
        fs::rename(draft, path)
    }

    /// Reads what the container of this id was given; nothing when nothing is noted.
    pub fn read(dir: &Path, id: &str) -> Result<Self> {
        let Some(path) = note_path(dir, id) else {
            return Ok(Self::default());
        };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error.into()),
        };
        let mut text = Vec::new();
        file.take(MAX_NOTE).read_to_end(&mut text)?;
        serde_json::from_slice(&text).map_err(|error| {
            let message = format!("{} is damaged: {error}", path.display());
            Error::new(Exit::Failed, message).with_hint("remove the container and run it again")
        })
    }
}

/// Whether a text is a container's id in full.
pub fn is_id(id: &str) -> bool {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    id.len() == ID && id.bytes().all(is_digit)
}

fn note_path(dir: &Path, id: &str) -> Option<PathBuf> {
    is_id(id).then(|| dir.join(DIR).join(format!("{id}.json")))
}

/// The ids of containers that were given something.
fn notes(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir.join(DIR)).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let name = entry.file_name();
            let id = name.to_str()?.strip_suffix(".json")?;
            is_id(id).then(|| id.to_owned())
        })
        .collect()
}

/// The ports that a container was given when it was made, whether it runs or not.
pub fn ports(settings: &Settings, id: &str) -> Result<Vec<Publish>> {
    match &settings.state {
        StatePlace::Directory(dir) => Ok(Granted::read(dir, id)?.ports),
        StatePlace::Nowhere => Ok(Vec::new()),
    }
}

/// Forgets what containers had that are no more.
pub async fn forget_gone(session: &mut Session, settings: &Settings) -> Result<()> {
    let StatePlace::Directory(dir) = &settings.state else {
        return Ok(());
    };
    let noted = notes(dir);
    if noted.is_empty() {
        return Ok(());
    }
    let list = Request::Container(ContainerRequest::List);
    match session.ask(&list).await? {
        Reply::Container(ContainerReply::List { containers }) => {
            let there: BTreeSet<String> = containers.into_iter().map(|row| row.id).collect();
            for path in noted.difference(&there).filter_map(|id| note_path(dir, id)) {
                let _ = fs::remove_file(path);
            }
            Ok(())
        }
        other => Err(wrong_reply(&other)),
    }
}

/// Gives a container that is to start what it was given before. Whether ports of this computer are
/// open for it, to be adopted once it runs.
pub async fn give_again(
    session: &mut Session,
    settings: &Settings,
    container: &ContainerRow,
) -> Result<bool> {
    let StatePlace::Directory(dir) = &settings.state else {
        return Ok(false);
    };
    let granted = Granted::read(dir, &container.id)?;
    if container.state.is_live() || has_ports(session, &container.id).await {
        return Ok(false);
    }
    for path in &granted.paths {
        let (source, name) = (path.open()?, path.share.clone());
        session.share(source, path.read_only, Some(name)).await?;
    }
    if granted.ports.is_empty() {
        return Ok(false);
    }
    let request = PublishRequest {
        ports: granted.ports,
        machine: granted.machine,
        name: Some(container.name.clone()),
        id: Some(container.id.clone()),
    };
    let publication = session.publish(&request).await?;
    let place = Request::Container(ContainerRequest::Place {
        name: container.id.clone(),
        address: (!request.machine).then_some(publication.address),
    });
    match session.ask(&place).await? {
        Reply::Container(ContainerReply::Done) => Ok(true),
        other => Err(wrong_reply(&other)),
    }
}

/// Whether ports of this computer lead to a container.
pub async fn has_ports(session: &mut Session, id: &str) -> bool {
    let published = session.published().await;
    let mut names = published.iter().flat_map(|ports| &ports.container);
    names.any(|name| name == id)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vdkr_core::container::ports::parse_publish;

    use super::*;

    fn granted() -> Granted {
        Granted {
            ports: parse_publish("127.0.0.1:8080:80").unwrap(),
            machine: false,
            paths: vec![SharedPath {
                share: "00ff00ff".into(),
                path: "/some/where".into(),
                read_only: true,
                mark: None,
            }],
        }
    }

    #[test]
    fn what_is_noted_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let id = "0123456789abcdef".repeat(4);
        assert_eq!(Granted::read(dir.path(), &id).unwrap(), Granted::default());
        granted().write(dir.path(), &id).unwrap();
        assert_eq!(Granted::read(dir.path(), &id).unwrap(), granted());
        assert_eq!(notes(dir.path()), BTreeSet::from([id.clone()]));
        fs::write(note_path(dir.path(), &id).unwrap(), "{").unwrap();
        assert!(Granted::read(dir.path(), &id).is_err());
    }

    #[test]
    fn a_path_is_given_again_unless_a_link_leads_elsewhere() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path().canonicalize().unwrap();
        let data = home.join("proj/data");
        fs::create_dir_all(&data).unwrap();
        fs::create_dir(home.join("keys")).unwrap();
        let mount = MountSpec {
            target: "/d".into(),
            source: MountSource::Share {
                share: "00ff".into(),
                path: data.to_str().unwrap().into(),
            },
            read_only: false,
        };
        let id = "0123456789abcdef".repeat(4);
        let granted = Granted::of_mounts(std::slice::from_ref(&mount));
        granted.write(&home, &id).unwrap();
        let again = || Granted::read(&home, &id).unwrap().paths[0].open();
        assert!(again().is_ok());

        // What a container can do that has proj.
        fs::remove_dir(&data).unwrap();
        std::os::unix::fs::symlink("../keys", &data).unwrap();
        let error = again().unwrap_err().to_string();
        assert!(error.contains(data.to_str().unwrap()), "{error}");
        assert!(error.contains("symbolic link"), "{error}");
        fs::remove_file(&data).unwrap();
        fs::create_dir(&data).unwrap();
        assert!(again().is_ok());

        // A note of an earlier version knows the path alone.
        let path = data.to_str().unwrap();
        let note = format!(r#"{{"paths":[{{"share":"00ff","path":"{path}","read_only":false}}]}}"#);
        fs::write(note_path(&home, &id).unwrap(), note).unwrap();
        assert!(again().is_ok());
    }

    #[test]
    fn an_id_from_the_machine_leads_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let long = "a".repeat(65);
        let upper = "A".repeat(64);
        for id in ["", "..", "../../x", "ab", &long, &upper] {
            assert!(granted().write(dir.path(), id).is_err(), "{id}");
            assert_eq!(Granted::read(dir.path(), id).unwrap(), Granted::default());
        }
        assert!(!dir.path().join(DIR).exists());
    }

    #[test]
    fn there_are_never_too_many() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..MAX_NOTES {
            let id = format!("{number:064x}");
            granted().write(dir.path(), &id).unwrap();
        }
        assert!(granted().write(dir.path(), &"f".repeat(64)).is_err());
    }

    proptest! {
        #[test]
        fn any_note_is_read_or_refused(text: Vec<u8>) {
            let dir = tempfile::tempdir().unwrap();
            let id = "f".repeat(64);
            fs::create_dir(dir.path().join(DIR)).unwrap();
            fs::write(note_path(dir.path(), &id).unwrap(), text).unwrap();
            let _ = Granted::read(dir.path(), &id);
        }
    }
}
