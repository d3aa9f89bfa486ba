//! `vdkr cp`: files from and to a container, by docker's rules about what a target means.

use std::{
    fs::{self, File},
    io::{self, IsTerminal as _, Write},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    slice,
};

use tokio::{io::AsyncReadExt as _, sync::mpsc, task::spawn_blocking};
use vdkr_core::channel::message::{
    ContainerReply, ContainerRequest, Done, PathKind, Reply, Request,
};
use vdkr_transfer::tree::{Policy, TreeError, pack, unpack};

use super::receive::{Pieces, receive, to_stdout};
use crate::{
    exit::Exit,
    vdkr::{
        command::wrong_reply,
        container_args::CpArgs,
        error::{Error, Result},
        human, layers,
        session::{Session, interruptible, with_session},
        settings::Settings,
        words::say,
    },
    vm::channel::{CallSender, ChannelError, Incoming},
};

/// Pieces of a stream that wait between the machine and a file.
const AHEAD: usize = 16;
/// Bytes of a piece.
const PIECE: usize = 64 * 1024;

/// One side of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Side {
    Container(String, String),
    Local(String),
    Stream,
}

impl Side {
    /// As docker reads it: a container's name, a colon and a path; what starts with `/` or `.` is
    /// a path of this computer.
    fn read(text: &str) -> Self {
        if text == "-" {
            return Self::Stream;
        }
        match text.split_once(':') {
            Some((name, path)) if !name.starts_with(['/', '.']) && !name.contains('/') => {
                Self::Container(name.to_owned(), path.to_owned())
            }
            _ => Self::Local(text.to_owned()),
        }
    }
}

/// Copies in one of the directions.
pub async fn run(settings: &Settings, args: &CpArgs) -> Result<u8> {
    let (source, target) = (Side::read(&args.source), Side::read(&args.target));
    match (source, target) {
        (Side::Container(..), Side::Container(..)) => {
            Err(Error::usage("copying between containers is not supported"))
        }
        (Side::Container(name, path), target) => {
            if path.is_empty() {
                return Err(Error::usage("the path in the container is empty"));
            }
            with_session(settings, "vdkr cp", async |session| {
                layers::prepare_containers(session, settings, slice::from_ref(&name)).await?;
                copy_out(session, args, &name, &path, &target).await
            })
            .await
        }
        (source, Side::Container(name, path)) => {
            if path.is_empty() {
                return Err(Error::usage("the path in the container is empty"));
            }
            with_session(settings, "vdkr cp", async |session| {
                layers::prepare_containers(session, settings, slice::from_ref(&name)).await?;
                copy_in(session, args, &source, &name, &path).await
            })
            .await
        }
        _ => Err(Error::usage(
            "one of the two has to be in a container: write NAME:PATH",
        )),
    }
}

/// What lies at a path of a container.
async fn look(
    session: &mut Session,
    name: &str,
    path: &str,
    follow: bool,
) -> Result<Option<PathKind>> {
    let request = Request::Container(ContainerRequest::Path {
        name: name.to_owned(),
        path: path.to_owned(),
        follow,
    });
    match session.ask(&request).await? {
        Reply::Container(ContainerReply::Path(facts)) => Ok(facts.kind),
        other => Err(wrong_reply(&other)),
    }
}

/// The last part of a path; `.` when there is none or when its content alone is meant.
fn last_part(path: &str) -> &str {
    if path.ends_with("/.") || path == "." {
        return ".";
    }
    match path.trim_end_matches('/').rsplit('/').next() {
        None | Some("" | "..") => ".",
        Some(part) => part,
    }
}

/// What is before the last part.
fn above(path: &str) -> &str {
    match path.trim_end_matches('/').rsplit_once('/') {
        Some(("", _)) => "/",
        Some((above, _)) => above,
        None if path.starts_with('/') => "/",
        None => ".",
    }
}

/// Where a copy goes: a directory that is there, and what the first member is called in it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    directory: String,
    entry: String,
}

/// Docker's rules, from what lies at source and target. `Err` says what is wrong.
fn place(
    source: &str,
    is_directory: bool,
    target: &str,
    there: Option<PathKind>,
) -> Result<Place, String> {
    let name = last_part(source);
    let into = |directory: &str, entry: &str| Place {
        directory: directory.to_owned(),
        entry: entry.to_owned(),
    };
    let ends_as_directory = target.ends_with('/') || target.ends_with("/.");
    match (is_directory, there) {
        (_, Some(PathKind::Directory)) => Ok(into(target, name)),
        (true, Some(_)) => Err(format!(
            "cannot copy a directory over {target}, which is none"
        )),
        (false, Some(_)) if ends_as_directory => Err(format!("{target} is no directory")),
        (false, None) if ends_as_directory => {
            Err(format!("the target directory {target} does not exist"))
        }
        (_, _) => Ok(into(above(target), last_part(target))),
    }
}

async fn copy_out(
    session: &mut Session,
    args: &CpArgs,
    name: &str,
    path: &str,
    target: &Side,
) -> Result<u8> {
    let kind = look(session, name, path, args.follow_link).await?;
    let Some(kind) = kind else {
        let text = format!("there is no {path} in container {name}");
        return Err(Error::new(Exit::NotFound, text));
    };
    let request = |entry: &str| {
        Request::Container(ContainerRequest::CopyOut {
            name: name.to_owned(),
            path: path.to_owned(),
            entry: entry.to_owned(),
            follow: args.follow_link,
        })
    };
    let Side::Local(target) = target else {
        if io::stdout().is_terminal() {
            return Err(Error::usage(
                "an archive does not belong on a terminal; redirect it",
            ));
        }
        let request = request(last_part(path));
        receive(session, &request, to_stdout).await?;
        return Ok(0);
    };
    let there = match fs::metadata(target) {
        Ok(meta) if meta.is_dir() => Some(PathKind::Directory),
        Ok(_) => Some(PathKind::File),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(Error::new(Exit::Failed, format!("{target}: {error}"))),
    };
    let place = place(path, kind == PathKind::Directory, target, there).map_err(Error::usage)?;
    let entry = place.entry.clone();
    let directory = PathBuf::from(&place.directory);
    let request = request(&entry);
    let copied = receive(session, &request, async move |pieces| {
        spawn_blocking(move || write_tree(&directory, &entry, pieces))
            .await
            .map_err(io::Error::other)?
    })
    .await?;
    if !args.quiet {
        say(&format!("copied {} to {target}", human::size(copied)));
    }
    Ok(0)
}

/// Makes what a stream says in a directory: `entry` and what is below it, and nothing else.
fn write_tree(directory: &Path, entry: &str, pieces: Pieces) -> Result<(), Error> {
    let root = File::open(directory)
        .map_err(|error| Error::new(Exit::NotFound, format!("{}: {error}", directory.display())))?;
    let wanted = entry.as_bytes();
    let policy = Policy {
        owners: false,
        follow: false,
    };
    unpack(pieces, root.as_fd(), policy, |name| {
        let rest = name.strip_prefix(wanted)?;
        (entry == "." || rest.is_empty() || rest.starts_with(b"/")).then(|| name.to_vec())
    })
    .map_err(|error| tree_error(&error))
}

fn tree_error(error: &TreeError) -> Error {
    Error::new(Exit::Failed, error.to_string())
}

async fn copy_in(
    session: &mut Session,
    args: &CpArgs,
    source: &Side,
    name: &str,
    path: &str,
) -> Result<u8> {
    let there = look(session, name, path, true).await?;
    let Side::Local(source) = source else {
        if there != Some(PathKind::Directory) {
            let text = format!("{path} in container {name} is no directory");
            return Err(Error::new(Exit::NotFound, text));
        }
        send(session, name, path, from_stdin).await?;
        return Ok(0);
    };
    // As the kernel sees it: a `/` at the end of a link is what it points to.
    let follow = args.follow_link || source.ends_with('/');
    let meta = if follow {
        fs::metadata(source)
    } else {
        fs::symlink_metadata(source)
    };
    let meta = meta.map_err(|error| {
        let exit = if error.kind() == io::ErrorKind::NotFound {
            Exit::NotFound
        } else {
            Exit::Failed
        };
        Error::new(exit, format!("{source}: {error}"))
    })?;
    let place = place(source, meta.is_dir(), path, there).map_err(Error::usage)?;
    if there != Some(PathKind::Directory)
        && look(session, name, &place.directory, true).await? != Some(PathKind::Directory)
    {
        let text = format!(
            "there is no directory {} in container {name}",
            place.directory
        );
        return Err(Error::new(Exit::NotFound, text));
    }
    let (from, entry, owners) = (PathBuf::from(source), place.entry, args.archive);
    let copied = send(session, name, &place.directory, async move |sender| {
        read_tree(from, entry, follow, owners, sender).await
    })
    .await?;
    if !args.quiet {
        say(&format!("copied {} to {name}:{path}", human::size(copied)));
    }
    Ok(0)
}

/// Sends files as a stream; how many bytes there were.
async fn read_tree(
    from: PathBuf,
    entry: String,
    follow: bool,
    owners: bool,
    sender: CallSender,
) -> Result<u64> {
    let (give, mut pieces) = mpsc::channel(AHEAD);
    let packing = spawn_blocking(move || {
        let mut out = io::BufWriter::with_capacity(PIECE, Giver(give));
        pack(&from, &entry, follow, owners, &mut out)
    });
    let mut count = 0;
    let mut open = true;
    while let Some(piece) = pieces.recv().await {
        let piece: Vec<u8> = piece;
        count += piece.len() as u64;
        open = open && matches!(sender.stdin(&piece).await, Ok(true));
        if !open {
            break;
        }
    }
    drop(pieces);
    let packed = packing.await.map_err(io::Error::other)?;
    match packed {
        // The machine took no more, and says why.
        Err(_) if !open => {}
        // An archive without its end is refused there; the reason is told here.
        Err(error) => return Err(tree_error(&error)),
        Ok(()) => {}
    }
    let _ = sender.end_stdin().await;
    Ok(count)
}

/// Writes into a queue.
struct Giver(mpsc::Sender<Vec<u8>>);

impl Write for Giver {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(bytes.to_vec());
        sent.map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

async fn from_stdin(sender: CallSender) -> Result<u64> {
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0; PIECE];
    let mut count = 0;
    loop {
        let length = stdin.read(&mut buffer).await?;
        let piece = buffer.get(..length).unwrap_or_default();
        if piece.is_empty() {
            let _ = sender.end_stdin().await;
            return Ok(count);
        }
        if !matches!(sender.stdin(piece).await, Ok(true)) {
            return Ok(count);
        }
        count += length as u64;
    }
}

/// Has a stream unpacked in a container; what `giver` counted.
async fn send<F: Future<Output = Result<u64>>>(
    session: &mut Session,
    name: &str,
    directory: &str,
    giver: impl FnOnce(CallSender) -> F,
) -> Result<u64> {
    let request = Request::Container(ContainerRequest::CopyIn {
        name: name.to_owned(),
        path: directory.to_owned(),
    });
    let mut call = match session.connection.call(&request).await {
        Ok(call) => call,
        Err(error) => return Err(session.explain(error).await),
    };
    let sender = call.sender();
    let cancel = call.sender();
    let answer = async {
        loop {
            match call.next().await {
                Ok(Incoming::Data(..) | Incoming::Event(_)) => {}
                Ok(Incoming::Done(done)) => return Ok(done),
                Err(error) => return Err(error),
            }
        }
    };
    let given = async {
        let given = giver(sender).await;
        if given.is_err() {
            let _ = cancel.cancel().await;
        }
        given
    };
    let both = async { Ok(tokio::join!(answer, given)) };
    let (done, given): (Result<Done, ChannelError>, Result<u64>) = interruptible(both).await?;
    // What went wrong here made the machine give up.
    let count = given?;
    match session.answer(done).await? {
        Reply::Container(ContainerReply::Done) => Ok(count),
        other => Err(wrong_reply(&other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides() {
        let container = |name: &str, path: &str| Side::Container(name.into(), path.into());
        let local = |path: &str| Side::Local(path.into());
        for (text, side) in [
            ("web:/etc", container("web", "/etc")),
            ("web:", container("web", "")),
            ("web:a:b", container("web", "a:b")),
            ("./web:x", local("./web:x")),
            ("/web:x", local("/web:x")),
            ("a/b:x", local("a/b:x")),
            ("file", local("file")),
            ("-", Side::Stream),
        ] {
            assert_eq!(Side::read(text), side, "{text}");
        }
    }

    #[test]
    fn targets_mean_what_docker_says() {
        use PathKind::{Directory, File};
        let at = |source, is_directory, target, there| {
            place(source, is_directory, target, there).map(|place| (place.directory, place.entry))
        };
        let into = |directory: &str, entry: &str| Ok((directory.to_owned(), entry.to_owned()));
        assert_eq!(at("/a/f", false, "d", Some(Directory)), into("d", "f"));
        assert_eq!(at("/a/f", false, "x/g", None), into("x", "g"));
        assert_eq!(at("/a/f", false, "g", None), into(".", "g"));
        assert_eq!(at("/a/f", false, "/g", Some(File)), into("/", "g"));
        assert_eq!(at("/a/d", true, "t", Some(Directory)), into("t", "d"));
        assert_eq!(at("/a/d/", true, "t", Some(Directory)), into("t", "d"));
        assert_eq!(at("/a/d/.", true, "t", Some(Directory)), into("t", "."));
        assert_eq!(at("/", true, "t", Some(Directory)), into("t", "."));
        assert_eq!(at("..", true, "t", Some(Directory)), into("t", "."));
        assert_eq!(at("/a/d/.", true, "x/new", None), into("x", "new"));
        assert_eq!(at("/a/d", true, "x/new/", None).unwrap().1, "new");
        assert!(at("/a/d", true, "f", Some(File)).is_err());
        assert!(at("/a/f", false, "new/", None).is_err());
        assert!(at("/a/f", false, "f/", Some(File)).is_err());
    }
}
