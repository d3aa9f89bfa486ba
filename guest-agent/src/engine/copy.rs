//! `copy_in`, `copy_out` and `path` with an engine's containers.

use std::rc::Rc;

use serde_json::Value;
use vdkr_core::{
    base64,
    channel::{
        Pipe,
        message::{ContainerReply, Done, Failure, FailureCode, PathFacts, PathKind, Reply},
    },
    engine::rows::{number, text},
    tar::rename::Renamer,
};

use super::{Engine, client::with_query, done, path as target_of, streams::send};
use crate::channel::stream::SharedStream;

/// The head field with what lies at a path.
const STAT: &str = "x-docker-container-path-stat";
/// Bits of a mode as Go has them.
const DIRECTORY: u64 = 1 << 31;
const LINK: u64 = 1 << 27;
const OTHERS: u64 = 1 << 26 | 1 << 25 | 1 << 24 | 1 << 21 | 1 << 19;

/// Unpacks a tar stream into a directory of a container.
pub(super) async fn copy_in(
    engine: &Engine,
    name: &str,
    path: &str,
    stream: &SharedStream,
) -> Done {
    let target = with_query(&target_of(name, "/archive")?, &[("path", path)]);
    let mut upload = engine.client.upload("PUT", &target).await?;
    while let Some(bytes) = stream.read().await {
        upload.send(&bytes).await?;
        stream.consumed(bytes.len()).await;
    }
    upload.finish().await.map(|_| done())
}

/// Packs a path of a container.
pub(super) async fn copy_out(
    engine: &Engine,
    name: &str,
    path: &str,
    entry: &str,
    follow: bool,
    stream: &SharedStream,
) -> Done {
    let path = match follow {
        true => engine.followed(name, path).await?,
        false => path.to_owned(),
    };
    let target = with_query(&target_of(name, "/archive")?, &[("path", &path)]);
    let mut answer = engine.client.open(&target).await?;
    let mut renamer = Renamer::new(entry);
    let mut out = Vec::new();
    while let Some(piece) = answer.piece().await? {
        renamer.push(&piece, &mut out).map_err(|error| {
            let text = format!("{} sent no archive of {path}: {error}", engine.kind());
            Failure::new(FailureCode::Failed, text)
        })?;
        send(stream, Pipe::Stdout, &out).await?;
        out.clear();
    }
    Ok(done())
}

/// Says what lies at a path of a container.
pub(super) async fn look(engine: &Rc<Engine>, name: &str, path: &str, follow: bool) -> Done {
    // A container that is not there is no path that is not there.
    engine.container(name).await?;
    let path = match follow {
        true => engine.followed(name, path).await?,
        false => path.to_owned(),
    };
    let kind = engine.stat(name, &path).await?.map(|stat| kind(&stat));
    Ok(Reply::Container(ContainerReply::Path(PathFacts { kind })))
}

fn kind(stat: &Value) -> PathKind {
    match number(stat, "mode") {
        mode if mode & DIRECTORY != 0 => PathKind::Directory,
        mode if mode & LINK != 0 => PathKind::Link,
        mode if mode & OTHERS != 0 => PathKind::Other,
        _ => PathKind::File,
    }
}

impl Engine {
    async fn stat(&self, name: &str, path: &str) -> Result<Option<Value>, Failure> {
        let target = with_query(&target_of(name, "/archive")?, &[("path", path)]);
        let head = match self.client.head(&target).await {
            Ok(head) => head,
            Err(failure) if failure.code == FailureCode::NotFound => return Ok(None),
            Err(failure) => return Err(failure),
        };
        let stat = head
            .field(STAT)
            .and_then(|text| base64::decode(text.as_bytes()));
        let stat = stat.and_then(|json| serde_json::from_slice(&json).ok());
        let unread = || {
            let text = format!("{} does not say what lies at {path}", self.kind());
            Failure::new(FailureCode::Failed, text)
        };
        stat.ok_or_else(unread).map(Some)
    }

    /// Where a link leads; any other path as it is.
    async fn followed(&self, name: &str, path: &str) -> Result<String, Failure> {
        let stat = self.stat(name, path).await?;
        let led = stat.filter(|stat| kind(stat) == PathKind::Link);
        let led = led.map(|stat| text(&stat, "linkTarget").to_owned());
        Ok(led
            .filter(|led| !led.is_empty())
            .unwrap_or_else(|| path.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn modes_are_gos() {
        for (mode, wanted) in [
            (0o755 | 1_u64 << 31, PathKind::Directory),
            (0o777 | 1 << 27, PathKind::Link),
            (0o644, PathKind::File),
            (0o666 | 1 << 26 | 1 << 21, PathKind::Other),
        ] {
            assert_eq!(kind(&json!({"mode": mode})), wanted, "{mode:o}");
        }
    }
}
