//! `vdkr diff`: which paths of a container differ from its image.

use std::io::{self, BufRead as _, BufReader};

use tokio::task::spawn_blocking;
use vdkr_core::channel::message::{ContainerRequest, Request};

use super::receive::receive;
use crate::{
    out,
    vdkr::{
        container_args::OneArgs, error::Result, layers, session::with_session, settings::Settings,
    },
};

/// Longest path that is read, and its letter.
const MAX_PATH: u64 = 64 * 1024;

/// Prints a line for each: `A` added, `C` changed, `D` deleted.
pub async fn run(settings: &Settings, args: &OneArgs) -> Result<u8> {
    let name = args.container.clone();
    let request = Request::Container(ContainerRequest::Changes { name: name.clone() });
    with_session(settings, "vdkr diff", async |session| {
        layers::prepare_containers(session, settings, std::slice::from_ref(&name)).await?;
        receive(session, &request, async |pieces| {
            let work = spawn_blocking(move || {
                let mut from = BufReader::new(pieces);
                while let Some(line) = next(&mut from)? {
                    out!("{line}");
                }
                Ok::<_, io::Error>(())
            });
            Ok(work.await.map_err(io::Error::other)??)
        })
        .await
    })
    .await?;
    Ok(0)
}

/// The next line, harmless to a terminal.
fn next(from: &mut impl io::BufRead) -> io::Result<Option<String>> {
    use io::Read as _;
    let mut record = Vec::new();
    from.take(MAX_PATH).read_until(0, &mut record)?;
    if record.is_empty() {
        return Ok(None);
    }
    let Some((letter @ (b'A' | b'C' | b'D'), name)) = record
        .strip_suffix(b"\0")
        .and_then(|record| record.split_first())
    else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the machine's list of changes is damaged",
        ));
    };
    let plain: String = String::from_utf8_lossy(name)
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect();
    Ok(Some(format!("{} /{plain}", char::from(*letter))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_dockers() {
        let mut from = &b"Cetc\0Aetc/a b\x1b\n\0Dtmp/x\0"[..];
        let mut lines = Vec::new();
        while let Some(line) = next(&mut from).unwrap() {
            lines.push(line);
        }
        assert_eq!(lines, ["C /etc", "A /etc/a b??", "D /tmp/x"]);
        for bad in [&b"Aetc"[..], b"\0", b"Xetc\0"] {
            assert!(next(&mut &*bad).is_err());
        }
    }
}
